"""Static tensors through which windows enter slots: samples, start sequences, rules. CUDA graphs may hold their addresses."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from whisper.audio import N_FFT

from ...types import WINDOW_SAMPLES
from .state import LENGTH

SAMPLES = WINDOW_SAMPLES + 4 * N_FFT
"""A window; the 320 samples before and the 200 after it, into which its outermost frames reach; and silence."""
NUMBERS = (
    "slot",
    "sot",
    "detect",
    "first_frame",
    "searched_frames",
    "kept_frames",
    "begin",
    "limit",
    "blank",
    "timed",
    "latest_first",
    "ngram",
    "seed",
)
REALS = ("loudest", "temperature", "penalty")


@dataclass(frozen=True, slots=True)
class AdmissionBuffers:
    """One row a window. `numbers` (windows, 13) and `reals` (windows, 3): their columns are named above.

    `slot`; `sot`: the position of <|startoftranscript|>; `detect`: whether to detect the language after it;
    `first_frame`, `searched_frames`, `kept_frames` and `loudest`: see `spectrogram.frame_range`; the others as in
    `state.Rows`. `tokens` (windows, LENGTH + 1): the start sequence; `candidates` (windows, languages): the languages to
    choose from; `suppressed` (windows, vocabulary); `audio` (windows, SAMPLES).
    """

    numbers: Tensor
    reals: Tensor
    tokens: Tensor
    candidates: Tensor
    suppressed: Tensor
    audio: Tensor

    def head(self, count: int) -> AdmissionBuffers:
        """Views of the first `count` rows."""
        return AdmissionBuffers(*(getattr(self, field.name)[:count] for field in fields(self)))

    @property
    def frame_ranges(self) -> Tensor:
        """`first_frame`, `searched_frames` and `kept_frames` (windows, 3)."""
        begin = NUMBERS.index("first_frame")
        return self.numbers[:, begin : begin + 3]

    def number(self, name: str) -> Tensor:
        """A column of `numbers` (windows,)."""
        return self.numbers[:, NUMBERS.index(name)]

    def real(self, name: str) -> Tensor:
        """A column of `reals` (windows,)."""
        return self.reals[:, REALS.index(name)]


def make_buffers(most: int, vocabulary: int, languages: int, device: torch.device, *, audio: bool) -> AdmissionBuffers:
    """Windows of silence for the first `most` slots, whose decoding ends at once. `audio`: the device makes the spectrograms."""
    numbers = torch.zeros(most, len(NUMBERS), dtype=torch.long)
    numbers[:, 0] = torch.arange(most)
    for name in ("searched_frames", "begin", "limit"):
        numbers[:, NUMBERS.index(name)] = 1
    return AdmissionBuffers(
        numbers=numbers.to(device),
        reals=torch.ones(most, len(REALS), device=device),
        tokens=torch.zeros(most, LENGTH + 1, dtype=torch.long, device=device),
        candidates=torch.ones(most, languages, dtype=torch.bool, device=device),
        suppressed=torch.zeros(most, vocabulary, dtype=torch.bool, device=device),
        audio=torch.zeros(most, SAMPLES if audio else 0, device=device),
    )
