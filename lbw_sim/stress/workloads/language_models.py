"""The seed paper's models (arXiv 2605.19008): Qwen2.5 with LoRA and TinyLlama with all its weights, on WikiText-103.

Their weights come from the hub; with `random_weights` the same architecture is built from the numbers below. The two
toys have the same architectures in small, always with random weights, and read what Python ships: they are for trying
the way, and say nothing about the models.
"""

from __future__ import annotations

from functools import partial

from lbw_sim.stress.hugging_face import HuggingFaceSession, LanguageModel, Shape
from lbw_sim.stress.workload import Setting, Workload

# config.json of each repository on the hub
_QWEN_3B = Shape("qwen2", 2048, 36, 16, 2, 11008, 151936, 32768, 1e6, 1e-6, True)
_QWEN_7B = Shape("qwen2", 3584, 28, 28, 4, 18944, 152064, 131072, 1e6, 1e-6, False)
_QWEN_14B = Shape("qwen2", 5120, 48, 40, 8, 13824, 152064, 131072, 1e6, 1e-5, False)
_TINYLLAMA = Shape("llama", 2048, 22, 32, 4, 5632, 32000, 2048, 1e4, 1e-5, False)
_TOY = Shape("qwen2", 32, 2, 4, 2, 64, 256, 64, 1e4, 1e-6, True)

MODELS = {
    "qwen2.5-3b": LanguageModel("Qwen/Qwen2.5-3B", _QWEN_3B, lora=True, batch=4, context=512),
    "qwen2.5-7b": LanguageModel("Qwen/Qwen2.5-7B", _QWEN_7B, lora=True, batch=4, context=512),
    "qwen2.5-14b": LanguageModel("Qwen/Qwen2.5-14B", _QWEN_14B, lora=True, batch=4, context=512, checkpointing=True),
    "tinyllama-1.1b": LanguageModel(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", _TINYLLAMA, lora=False, batch=4, context=512
    ),
    "qwen2.5-toy": LanguageModel("", _TOY, lora=True, batch=8, context=32),
    "tinyllama-toy": LanguageModel(
        "", _TOY._replace(family="llama", tie_word_embeddings=False), lora=False, batch=8, context=32
    ),
}

_LORA_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_FULL_RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_TOY_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def _build(wanted: LanguageModel, setting: Setting) -> HuggingFaceSession:
    return HuggingFaceSession(wanted, setting)


def _workload(name: str, model: LanguageModel) -> Workload:
    toy = not model.repository
    how = "LoRA" if model.lora else "all weights"
    rates = _TOY_RATES if toy else _LORA_RATES if model.lora else _FULL_RATES
    return Workload(
        name=name,
        about=f"The architecture of {'Qwen2.5' if model.lora else 'TinyLlama'} in small, random weights, {how}."
        if toy
        else f"{model.repository.partition('/')[2]}, {how}, on WikiText-103.",
        build=partial(_build, model),
        reference_lr=rates[1],
        rates=rates,
        steps=100 if toy else 500,
        tokens_per_step=model.batch * model.context,
        parameters=model.shape.parameters + (model.shape.lora_parameters if model.lora else 0),
        trained_parameters=model.trained_parameters,
        fine_tuning=not toy,
        on_gpu=not toy,
        loads_weights=not toy,
        memory_bytes=model.memory_bytes,
        snapshots_every=20,
        snapshots_kept=8 if model.lora else 2,
    )


LANGUAGE_MODELS = tuple(_workload(name, model) for name, model in MODELS.items())
