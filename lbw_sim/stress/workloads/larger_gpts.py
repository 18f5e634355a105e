"""Byte GPTs wider or deeper than the tiny one: does what suits that one carry over? Post-LN suffers from depth."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from lbw_sim.stress.corpus import text_of
from lbw_sim.stress.gpt import Gpt, GptSize
from lbw_sim.stress.text import ByteText, TextSession
from lbw_sim.stress.workload import Setting, Workload

BATCH = 8


class _Model(NamedTuple):
    shown: str
    size: GptSize
    reference_lr: float
    """The best of plain AdamW, mean of three seeds."""


def _build(size: GptSize, setting: Setting) -> TextSession:
    text = ByteText(text_of(setting.data, "prose"), setting.seed, BATCH, size.context)
    return TextSession(Gpt(size, setting.seed), text, BATCH * size.context)


_MODELS = {
    "post_ln_wide": _Model("Post-LN", GptSize(width=64, layers=3, heads=4, context=32, norm="post"), 3e-3),
    "post_ln_deep": _Model("Post-LN", GptSize(width=48, layers=4, heads=4, context=32, norm="post"), 3e-3),
    "pre_ln_deep": _Model("Pre-LN", GptSize(width=48, layers=4, heads=4, context=32, norm="pre"), 1e-2),
}

LARGER_GPTS = tuple(
    Workload(
        name=name,
        about=f"{model.shown} byte GPT, {model.size.layers} layers of {model.size.width}, on Python's help topics.",
        build=partial(_build, model.size),
        reference_lr=model.reference_lr,
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        steps=250,
        tokens_per_step=BATCH * model.size.context,
        parameters=model.size.parameters,
        trained_parameters=model.size.parameters,
    )
    for name, model in _MODELS.items()
)
