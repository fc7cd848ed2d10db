"""What is known of every row while it is decoded: static tensors on the device, one entry a row or a window."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...types import TEXT_CONTEXT

LENGTH = TEXT_CONTEXT + 1
"""Tokens a row has at most: the last one is sampled, never read."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One entry a row (rows,), and what is sampled there under which rules.

    `tokens` (rows, LENGTH + 1): the start sequence and what was sampled, 0 after it. `length`: how many of them count; `begin`: how
    many are the start; `limit`: where it ends at the latest. `score`: sum of the sampled tokens' log-probabilities. The rules:
    `suppressed` (rows, vocabulary) never come, `blank` not first; `timed`: the rules of timestamps hold, the first one is at most
    `latest_first`; `penalty` and `ngram`: CTranslate2's repetition_penalty and no_repeat_ngram_size. `seed`: of the row's noise.
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
        """The first `count` rows: views."""
        return Rows(*(getattr(self, field.name)[:count] for field in fields(self)))

    def move(self, source: int, target: int, group: int) -> None:
        """Copy a window's rows from one slot into another; the first one's are done."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target * group : (target + 1) * group] = tensor[source * group : (source + 1) * group]
        self.done[source * group : (source + 1) * group] = True


@dataclass(frozen=True, slots=True)
class Heard:
    """One entry a window (windows,): probability of silence, the language's token and its probability."""

    no_speech: Tensor
    language: Tensor
    language_probability: Tensor

    def move(self, source: int, target: int) -> None:
        """Copy a window from one slot into another."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensor[target] = tensor[source]


@dataclass(frozen=True, slots=True)
class Bank:
    """Beam search's finished sequences, the last place a dump: `tokens` (windows, places + 1, LENGTH + 1), `length` and `score`
    (windows, places + 1), `count` (windows,).
    """

    tokens: Tensor
    length: Tensor
    score: Tensor
    count: Tensor

    @property
    def places(self) -> int:
        """How many sequences are wanted."""
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


def make_heard(count: int, device: torch.device) -> Heard:
    """Windows of which nothing is known."""
    zeros = torch.zeros(count, device=device)
    return Heard(no_speech=zeros, language=torch.zeros(count, dtype=torch.long, device=device), language_probability=zeros.clone())


def make_bank(windows: int, places: int, device: torch.device) -> Bank:
    """Nothing finished yet."""
    return Bank(
        tokens=torch.zeros(windows, places + 1, LENGTH + 1, dtype=torch.long, device=device),
        length=torch.zeros(windows, places + 1, dtype=torch.long, device=device),
        score=torch.zeros(windows, places + 1, device=device),
        count=torch.zeros(windows, dtype=torch.long, device=device),
    )
