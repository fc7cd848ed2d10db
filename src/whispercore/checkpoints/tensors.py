"""The types that all readers and writers of checkpoints share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch  # engine ct2 works without it

State: TypeAlias = "Mapping[str, torch.Tensor]"
"""Tensors by name. The names are openai-whisper's unless a function says otherwise."""
AlignmentHeads = Sequence[tuple[int, int]]
"""The decoder's cross-attention heads that follow the audio, as (layer, head) pairs.

Word timestamps are read from them.
"""
