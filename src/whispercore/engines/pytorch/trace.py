"""What the decoder was fed and looked for while a text was sampled: with it the times of its words need no second pass.

openai-whisper feeds a finished text to the decoder once more, without its prompt and timestamps, and keeps the attention of a few heads
(`whisper.timing.find_alignment`). A text that was sampled without both was fed the same tokens. Their queries are kept instead of their
attention, which would take 1500 numbers for each of the 64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..batched import SampledSequence


@dataclass(slots=True, eq=False)
class Trace:
    """`tokens`: those fed to the decoder, from the first on. `queries`: of the alignment heads, parts of (heads, tokens, size).

    `probs`: the probability of each sampled token among all text tokens.
    """

    tokens: list[int]
    queries: list[Tensor]
    probs: list[float] = field(default_factory=list)

    def feed(self, token: int, queries: Tensor) -> None:
        """A token that was fed to the decoder, and its queries (heads, 1, size)."""
        self.tokens.append(token)
        self.queries.append(queries)

    def all_queries(self) -> Tensor:
        """(heads, tokens, size)."""
        return torch.cat(self.queries, dim=1)


@dataclass(frozen=True, slots=True)
class TracedSequence(SampledSequence):
    """A sequence with its trace, where there is one."""

    trace: Trace | None = None
