"""The device's record of rows and windows while they are decoded: static tensors, one element a row or a window."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...types import TEXT_CONTEXT

LENGTH = TEXT_CONTEXT + 1
"""The most tokens of a row. The last one is sampled but never fed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The sequence of each row and its rules, (rows,) but where another shape is given.

    `tokens` (rows, LENGTH + 1): the start sequence and the sampled tokens, then zeros. `length`: of both; `begin`: of the start sequence;
    `limit`: the largest `length`. `score`: the sum of the sampled tokens' log-probabilities. Rules: tokens in `suppressed` (rows,
    vocabulary) are never sampled; with `blank`, blanks are never first; with `timed`, the timestamp rules hold, and the first timestamp is
    at most `latest_first`; `penalty` and `ngram` are CTranslate2's repetition_penalty and no_repeat_ngram_size. `seed`: of the noise.
    """

    tokens: Tensor
    length: Tensor
    begin: Tensor
    limit: Tensor
    score: Tensor
    done: Tensor
    temperature: Tensor
    suppressed: Tensor
    blank: Tensor
    timed: Tensor
    latest_first: Tensor
    penalty: Tensor
    ngram: Tensor
    seed: Tensor

    def first(self, count: int) -> Rows:
        """Views of the first `count` rows."""
        return Rows(*(getattr(self, field.name)[:count] for field in fields(self)))

    def move(self, source: int, target: int, group: int) -> None:
        """Copy a window's rows from one slot into another, and mark those of the first as done."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target * group : (target + 1) * group] = tensor[source * group : (source + 1) * group]
        self.done[source * group : (source + 1) * group] = True


@dataclass(frozen=True, slots=True)
class Detections:
    """For each window (windows,): the probability of no speech, the index of its language, and that language's probability."""

    no_speech: Tensor
    language: Tensor
    language_probability: Tensor

    def move(self, source: int, target: int) -> None:
        """Copy a window from one slot into another."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target] = tensor[source]


@dataclass(frozen=True, slots=True)
class FinishedBeams:
    """The finished sequences of beam search: `tokens` (windows, capacity + 1, LENGTH + 1), `length` and `score` (windows, capacity + 1),
    `count` (windows,). The last position takes what is to be discarded.
    """

    tokens: Tensor
    length: Tensor
    score: Tensor
    count: Tensor

    @property
    def capacity(self) -> int:
        """The number of sequences that are kept."""
        return self.score.shape[1] - 1

    def move(self, source: int, target: int) -> None:
        """Copy a window from one slot into another."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target] = tensor[source]


def make_rows(count: int, vocabulary: int, device: torch.device) -> Rows:
    """Rows that are done."""

    def integers(value: int = 0) -> Tensor:
        return torch.full((count,), value, dtype=torch.long, device=device)

    def booleans(value: bool) -> Tensor:
        return torch.full((count,), value, device=device)

    return Rows(
        tokens=torch.zeros(count, LENGTH + 1, dtype=torch.long, device=device),
        length=integers(1),
        begin=integers(1),
        limit=integers(1),
        score=torch.zeros(count, device=device),
        done=booleans(True),
        temperature=torch.zeros(count, device=device),
        suppressed=torch.zeros(count, vocabulary, dtype=torch.bool, device=device),
        blank=booleans(False),
        timed=booleans(False),
        latest_first=integers(),
        penalty=torch.ones(count, device=device),
        ngram=integers(),
        seed=integers(),
    )


def make_detections(count: int, device: torch.device) -> Detections:
    """Zeros."""
    zeros = torch.zeros(count, device=device)
    return Detections(no_speech=zeros, language=torch.zeros(count, dtype=torch.long, device=device), language_probability=zeros.clone())


def make_finished_beams(windows: int, capacity: int, device: torch.device) -> FinishedBeams:
    """No finished sequences yet."""
    return FinishedBeams(
        tokens=torch.zeros(windows, capacity + 1, LENGTH + 1, dtype=torch.long, device=device),
        length=torch.zeros(windows, capacity + 1, dtype=torch.long, device=device),
        score=torch.zeros(windows, capacity + 1, device=device),
        count=torch.zeros(windows, dtype=torch.long, device=device),
    )
