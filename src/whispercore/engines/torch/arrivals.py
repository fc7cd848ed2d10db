"""Windows on their way into slots: samples, what their rows begin with, their rules; static tensors, that CUDA graphs may hold."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from whisper.audio import N_FFT

from ...types import WINDOW_SAMPLES
from .state import LENGTH

SAMPLES = WINDOW_SAMPLES + 4 * N_FFT
"""A window, the 320 samples before it and the 200 after it that its outermost frames see, and silence."""
NUMBERS = ("slot", "sot", "detect", "first", "counted", "heard", "begin", "limit", "blank", "timed", "latest_first", "ngram", "seed")
REALS = ("loudest", "temperature", "penalty")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One entry a window. `numbers` (windows, 13) and `reals` (windows, 3): their columns' names are above.

    `slot`, `sot`: where <|startoftranscript|> is, `detect`: whether the language after it is to be; `first`, `counted`, `heard` and
    `loudest` of `features.log_mels_of`; the others of `state.Rows`. `tokens` (windows, LENGTH + 1): the start; `candidates`
    (windows, languages): which ones it may be; `suppressed` (windows, vocabulary); `audio` (windows, SAMPLES).
    """

    numbers: Tensor
    reals: Tensor
    tokens: Tensor
    candidates: Tensor
    suppressed: Tensor
    audio: Tensor

    def first(self, count: int) -> Arrivals:
        """The first `count`: views."""
        return Arrivals(*(getattr(self, field.name)[:count] for field in fields(self)))

    @property
    def cuts(self) -> Tensor:
        """`first`, `counted` and `heard` (windows, 3)."""
        begin = NUMBERS.index("first")
        return self.numbers[:, begin : begin + 3]

    def number(self, name: str) -> Tensor:
        """A column of `numbers` (windows,)."""
        return self.numbers[:, NUMBERS.index(name)]

    def real(self, name: str) -> Tensor:
        """A column of `reals` (windows,)."""
        return self.reals[:, REALS.index(name)]


def make_arrivals(most: int, vocabulary: int, languages: int, device: torch.device, *, audio: bool) -> Arrivals:
    """Silence on its way into the first slots, which ends at once. `audio`: whether samples come here, or spectrograms of the host's."""
    numbers = torch.zeros(most, len(NUMBERS), dtype=torch.long)
    numbers[:, 0] = torch.arange(most)
    for name in ("counted", "begin", "limit"):
        numbers[:, NUMBERS.index(name)] = 1
    return Arrivals(
        numbers=numbers.to(device),
        reals=torch.ones(most, len(REALS), device=device),
        tokens=torch.zeros(most, LENGTH + 1, dtype=torch.long, device=device),
        candidates=torch.ones(most, languages, dtype=torch.bool, device=device),
        suppressed=torch.zeros(most, vocabulary, dtype=torch.bool, device=device),
        audio=torch.zeros(most, SAMPLES if audio else 0, device=device),
    )
