"""The tiny byte GPT in three architectures, from scratch on prose and fine-tuned: trained on code, then on prose."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from lbw_sim.errors import StressError
from lbw_sim.stress.corpus import corpus, text_of
from lbw_sim.stress.schedule import scheduled_lr
from lbw_sim.stress.text import ByteText, TextSession
from lbw_sim.stress.tiny_gpt import BATCH, CONTEXT, PARAMETERS, TinyGpt
from lbw_sim.stress.workload import Setting, Workload

PRETRAINING_STEPS, PRETRAINING_LR = 300, 5e-3
"""On code. The data of other steps than those that a run will draw: another text has another order anyway."""


def _from_scratch(architecture: str, setting: Setting) -> TextSession:
    text = ByteText(text_of(setting.data, "prose"), setting.seed, BATCH, CONTEXT)
    if setting.device != "cpu":
        raise StressError(f"the tiny GPT runs on cpu, not on {setting.device}: it is too small for anything else")
    return TextSession(TinyGpt(setting.seed, architecture), text, BATCH * CONTEXT)


def _fine_tuning(architecture: str, setting: Setting) -> TextSession:
    session = _from_scratch(architecture, setting)
    session.model.load_state_dict(_pretrained(architecture, setting.seed))
    session.facts["pretraining_steps"] = PRETRAINING_STEPS
    session.facts["pretraining_text_digest"] = corpus("code").digest
    return session


@lru_cache(maxsize=256)
def _pretrained(architecture: str, seed: int) -> dict[str, torch.Tensor]:
    """Weights after the first training, from the seed; remembered in this process, for it takes as long as a run."""
    model = TinyGpt(seed, architecture)
    text = ByteText(corpus("code"), seed, BATCH, CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(PRETRAINING_STEPS):
        optimizer.param_groups[0]["lr"] = scheduled_lr(step, PRETRAINING_STEPS, PRETRAINING_LR)
        optimizer.zero_grad()
        model(text.batch(step)).backward()
        optimizer.step()
    return model.state_dict()


_SHOWN = {"post_ln": "Post-LN", "pre_ln": "Pre-LN", "pre_ln_qk_norm": "Pre-LN with normalised queries and keys:"}
_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_BEST = {"post_ln": 1e-2, "pre_ln": 1e-2, "pre_ln_qk_norm": 3e-2}

TINY_GPTS = tuple(
    Workload(
        name=name + ("_fine_tune" if fine_tuning else ""),
        about=f"{shown} byte GPT, 2 layers of 32, "
        + ("trained on Python code, then on prose." if fine_tuning else "on Python's help topics."),
        build=partial(_fine_tuning if fine_tuning else _from_scratch, name),
        reference_lr=_BEST[name],
        rates=_RATES,
        steps=200 if fine_tuning else 300,
        tokens_per_step=BATCH * CONTEXT,
        parameters=PARAMETERS,
        trained_parameters=PARAMETERS,
        fine_tuning=fine_tuning,
    )
    for name, shown in _SHOWN.items()
    for fine_tuning in (False, True)
)
