"""What `lbw stress` flies under a name: grids of workload, method, learning rate and seed. Data, and how to find it."""

from __future__ import annotations

import dataclasses

from lbw_sim.errors import StressError, unknown_name
from lbw_sim.score.stress_results import BASELINE, NUDGE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Which grid a name stands for. Empty `lrs`: each workload's own seven, and those of `extra_lrs`."""

    name: str
    about: str
    workloads: tuple[str, ...]
    methods: tuple[str, ...]
    controlled: tuple[str, ...]
    """Guarded methods whose controls are flown."""
    seeds: tuple[int, ...]
    lrs: tuple[float, ...] = ()
    extra_lrs: tuple[float, ...] = ()


SEED_PAPER_LRS = (1e-3, 3e-3)
"""Beside the reference learning rate (arXiv 2605.19008)."""
CLIPS = ("clip:1.0", "clip:0.5", "clip:0.1")
PUBLISHED = (
    "zclip", "adagc", "spam", "stable_adamw", "skip_step", "plateau", "metaseq", "static_cap", "slow_start", "rewind",
    "restart",
)  # fmt: skip
"""Rules of others that are flown beside the guards."""
GUARDS = ("guard:default", "guard:canary_rollback", "guard:paired_rollback", "guard:adaptive_cap")
"""Loss only; with a canary and rollback; with a paired probe and rollback; with a cap learned from half steps."""
ALL = (BASELINE, NUDGE, *CLIPS, *PUBLISHED, *GUARDS)
CONTROLLED = ("guard:adaptive_cap",)
TINY = tuple(
    f"{architecture}{tuning}"
    for tuning in ("", "_fine_tune")
    for architecture in ("post_ln", "pre_ln", "pre_ln_qk_norm")
)


def _large(name: str, about: str) -> Preset:
    return Preset(
        name=name,
        about=about,
        workloads=(name,),
        methods=ALL,
        controlled=CONTROLLED,
        seeds=(0, 1, 2),
        extra_lrs=SEED_PAPER_LRS,
    )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            about="Two tiny byte GPTs, three learning rates, AdamW, clipping, a guard: minutes on two cores",
            workloads=("post_ln", "pre_ln"),
            methods=(BASELINE, "clip:1.0", "guard:adaptive_cap"),
            controlled=CONTROLLED,
            seeds=(0, 1, 2),
            lrs=(1e-2, 1e-1, 1.0),
        ),
        Preset(
            name="tiny-full",
            about="Tiny byte GPTs of three architectures, from scratch and fine-tuned; every method, seven rates",
            workloads=TINY,
            methods=ALL,
            controlled=CONTROLLED,
            seeds=(0, 1, 2),
        ),
        Preset(
            name="small",
            about="A byte GPT of tens of millions of parameters: one GPU, minutes a run",
            workloads=("small_gpt",),
            methods=ALL,
            controlled=CONTROLLED,
            seeds=(0, 1, 2),
        ),
        _large("qwen2.5-3b", "Qwen2.5-3B with LoRA in bf16 on WikiText-103 raw, as in the seed paper"),
        _large("qwen2.5-7b", "Qwen2.5-7B with LoRA in bf16 on WikiText-103 raw, as in the seed paper"),
        _large("qwen2.5-14b", "Qwen2.5-14B with LoRA in bf16 on WikiText-103 raw, as in the seed paper"),
        _large("tinyllama-1.1b", "TinyLlama-1.1B, every parameter trained, on WikiText-103 raw, as in the seed paper"),
    )
}
"""By name."""


def preset(name: str) -> Preset:
    """A preset by name. Raises StressError.

    >>> preset("tiny").seeds
    (0, 1, 2)
    """
    if name not in PRESETS:
        raise StressError(unknown_name("stress preset", name, PRESETS))
    return PRESETS[name]
