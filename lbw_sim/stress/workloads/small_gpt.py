"""A byte GPT of 25 million parameters on the sources of the standard library: minutes on a GPU, hours on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lbw_sim.stress.corpus import text_of
from lbw_sim.stress.gpt import Gpt, GptSize
from lbw_sim.stress.text import ByteText, Pair, TextSession
from lbw_sim.stress.workload import Setting, Workload

SIZE = GptSize(width=512, layers=8, heads=8, context=256)
BATCH = 32


class _OnGpu(nn.Module):
    """The model with bfloat16 arithmetic on float32 weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Pair) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss: Tensor = self.inner(batch)
        return loss


def small_session(setting: Setting, size: GptSize = SIZE, batch: int = BATCH) -> TextSession:
    """The workload's session, or one of another size. bfloat16 arithmetic on a GPU, float32 on a CPU."""
    text = ByteText(text_of(setting.data, "library"), setting.seed, batch, size.context, setting.device)
    model: nn.Module = Gpt(size, setting.seed).to(setting.device)
    if setting.device.startswith("cuda"):
        model = _OnGpu(model)
    return TextSession(model, text, batch * size.context)


SMALL_GPT = Workload(
    name="small_gpt",
    about="Pre-LN byte GPT, 8 layers of 512, on the sources of Python's standard library.",
    build=small_session,
    reference_lr=1e-3,
    rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    steps=500,
    tokens_per_step=BATCH * SIZE.context,
    parameters=SIZE.parameters,
    trained_parameters=SIZE.parameters,
    on_gpu=True,
    # weights, gradients, moments; activations of 34 × width per token and layer in bfloat16; logits
    memory_bytes=16 * SIZE.parameters + BATCH * SIZE.context * (68 * SIZE.width * SIZE.layers + 10 * SIZE.vocabulary),
    snapshots_every=20,
)
