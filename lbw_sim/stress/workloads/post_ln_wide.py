"""A post-LN byte GPT twice as wide and one layer deeper than the tiny one: does a constant carry over?"""

from __future__ import annotations

from lbw_sim.errors import StressError
from lbw_sim.stress.corpus import text_of
from lbw_sim.stress.gpt import Gpt, GptSize
from lbw_sim.stress.text import ByteText, TextSession
from lbw_sim.stress.workload import Setting, Workload

SIZE = GptSize(width=64, layers=3, heads=4, context=32, norm="post")
BATCH = 8


def _build(setting: Setting) -> TextSession:
    if setting.device != "cpu":
        raise StressError(f"post_ln_wide runs on cpu, not on {setting.device}: it is too small for anything else")
    text = ByteText(text_of(setting.data, "prose"), setting.seed, BATCH, SIZE.context)
    return TextSession(Gpt(SIZE, setting.seed), text, BATCH * SIZE.context)


POST_LN_WIDE = Workload(
    name="post_ln_wide",
    about="Post-LN byte GPT, 3 layers of 64, on Python's help topics.",
    build=_build,
    reference_lr=3e-3,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    steps=250,
    tokens_per_step=BATCH * SIZE.context,
    parameters=SIZE.parameters,
    trained_parameters=SIZE.parameters,
)
