"""A byte LSTM (Hochreiter & Schmidhuber 1997): no attention, no normalisation, torch's own initial weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lbw_sim.errors import StressError
from lbw_sim.stress.corpus import VOCABULARY, text_of
from lbw_sim.stress.text import ByteText, TextSession
from lbw_sim.stress.workload import Setting, Workload

EMBEDDING, WIDTH, CONTEXT, BATCH = 32, 64, 32, 16


class _ByteLstm(nn.Module):
    """Gives the mean cross-entropy of (inputs, labels); every window starts from an empty state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        # torch's layers draw from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(VOCABULARY, EMBEDDING)
            self.lstm = nn.LSTM(EMBEDDING, WIDTH, batch_first=True)
            self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        states, _ = self.lstm(self.tokens(inputs))
        return functional.cross_entropy(self.head(states).flatten(0, 1), labels.reshape(-1))


def _build(setting: Setting) -> TextSession:
    if setting.device != "cpu":
        raise StressError(f"lstm runs on cpu, not on {setting.device}: it is too small for anything else")
    text = ByteText(text_of(setting.data, "prose"), setting.seed, BATCH, CONTEXT)
    return TextSession(_ByteLstm(setting.seed), text, BATCH * CONTEXT)


_PARAMETERS = VOCABULARY * EMBEDDING + 4 * WIDTH * (EMBEDDING + WIDTH + 2) + VOCABULARY * (WIDTH + 1)

LSTM = Workload(
    name="lstm",
    about="Byte LSTM, one layer of 64, on Python's help topics.",
    build=_build,
    reference_lr=1e-1,
    rates=(1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0),
    steps=250,
    tokens_per_step=BATCH * CONTEXT,
    parameters=_PARAMETERS,
    trained_parameters=_PARAMETERS,
)
