"""A post-LN byte GPT twice as deep as the tiny one and half as wide again: depth is what post-LN suffers from."""

from __future__ import annotations

from lbw_sim.stress.corpus import text_of
from lbw_sim.stress.gpt import Gpt, GptSize
from lbw_sim.stress.text import ByteText, TextSession
from lbw_sim.stress.workload import Setting, Workload

SIZE = GptSize(width=48, layers=4, heads=4, context=32, norm="post")
BATCH = 8


def _build(setting: Setting) -> TextSession:
    text = ByteText(text_of(setting.data, "prose"), setting.seed, BATCH, SIZE.context)
    return TextSession(Gpt(SIZE, setting.seed), text, BATCH * SIZE.context)


POST_LN_DEEP = Workload(
    name="post_ln_deep",
    about="Post-LN byte GPT, 4 layers of 48, on Python's help topics.",
    build=_build,
    reference_lr=3e-3,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    steps=250,
    tokens_per_step=BATCH * SIZE.context,
    parameters=SIZE.parameters,
    trained_parameters=SIZE.parameters,
)
