"""Attention of one query a window to its cached keys, as a Triton kernel: flash-decoding (Dao, Haziza, Massa and Sizov, 2023).

A decoder's step reads the keys and values of 1,500 positions for a single query, so the memory's bandwidth is the limit. PyTorch's
fused attention multiplies tiles of many queries and reaches half of it (docs/architecture.md). Here each program reads a part of one
head's keys and values once and keeps its sums in registers; a second kernel adds the parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS_A_PROCESSOR = 4
"""So many programs fit on a multiprocessor at once, by their registers."""
_MOST_PARTS = 8
_LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class OneQueryAttention:
    """`block`: positions that a program reads at a time, 16 KB for 64 of them with 64 numbers in 16 bits. `warps`: of a program."""

    block: int = 64
    warps: int = 4

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scaled dot-product attention of one query: (n, heads, 1, size) to (n, heads, length, size) → (n, heads, 1, size).

        `size` is a power of two; its elements lie side by side in all three. Sums are float32 in any precision.
        """
        windows, heads, length, size = key.shape
        per_part = self._positions_per_part(windows * heads, length, query.device)
        parts = -(-length // per_part)
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        sums = torch.empty((windows * heads, parts, size + 2) if parts > 1 else 0, dtype=torch.float32, device=query.device)
        strides = (*query.stride()[:2], *key.stride()[:3], *value.stride()[:3])
        numbers = (*strides, heads, length, per_part, _LOG2E * size**-0.5)
        _attend_part[(windows * heads, parts)](
            query, key, value, attended, sums, *numbers, SIZE=size, BLOCK=self.block, PARTS=parts, num_warps=self.warps
        )
        if parts > 1:
            _add_parts[(windows * heads,)](sums, attended, SIZE=size, PARTS=parts, num_warps=1)
        return attended

    def _positions_per_part(self, heads: int, length: int, device: torch.device) -> int:
        """The keys of each head are divided so that every multiprocessor has work, by a power of two: each number is another kernel."""
        wanted = min(-(-_PROGRAMS_A_PROCESSOR * _processors(device) // heads), _MOST_PARTS)
        parts = 1 << (max(1, wanted).bit_length() - 1)
        return -(-length // (parts * self.block)) * self.block


def _processors(device: torch.device) -> int:
    """The multiprocessors of a GPU; 1 elsewhere, as in Triton's interpreter."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1


@triton.jit  # type: ignore[untyped-decorator]
def _attend_part(  # type: ignore[no-untyped-def]  # Triton takes the types from the call
    query,
    key,
    value,
    attended,
    sums,
    query_window,
    query_head,
    key_window,
    key_head,
    key_position,
    value_window,
    value_head,
    value_position,
    heads,
    length,
    per_part,
    scale,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Attention of one head's query to a part of its keys.

    Position n belongs to lane n % BLOCK. Each lane computes a softmax of its own positions, and the end joins the lanes. So the loop has
    no sum over positions, for which all threads would wait for each other.
    """
    place, part = tl.program_id(0), tl.program_id(1)
    window, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    lane, element = tl.arange(0, BLOCK), tl.arange(0, SIZE)
    asked = tl.load(query + window * query_window + head * query_head + element).to(tl.float32) * scale
    keys = key + window * key_window + head * key_head
    values = value + window * value_window + head * value_head
    # less than any score, but finite: the difference of two of them is a number
    most = tl.full([BLOCK], -1e30, tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, SIZE], tl.float32)
    end = tl.minimum((part + 1) * per_part, length)
    for begin in tl.range(part * per_part, end, BLOCK, num_stages=3):
        position = begin + lane
        inside = position < end
        k = tl.load(keys + position[:, None] * key_position + element[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + position[:, None] * value_position + element[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(k * asked[None, :], axis=1), float("-inf"))
        above = tl.maximum(most, score)
        kept, weight = tl.exp2(most - above), tl.exp2(score - above)
        weights = weights * kept + weight
        mixed = mixed * kept[:, None] + v * weight[:, None]
        most = above
    highest = tl.max(most, axis=0)
    share = tl.exp2(most - highest)
    weight_sum = tl.sum(weights * share, axis=0)
    value_sum = tl.sum(mixed * share[:, None], axis=0)
    if PARTS == 1:
        tl.store(attended + place * SIZE + element, (value_sum / weight_sum).to(attended.dtype.element_ty))
    else:
        row = sums + (place * PARTS + part) * (SIZE + 2)
        tl.store(row + element, value_sum)
        tl.store(row + SIZE, weight_sum)
        tl.store(row + SIZE + 1, highest)


@triton.jit  # type: ignore[untyped-decorator]
def _add_parts(sums, attended, SIZE: tl.constexpr, PARTS: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    """The parts of one head's sums → its output."""
    place = tl.program_id(0)
    element = tl.arange(0, SIZE)
    highest = -1e30
    weights = 0.0
    mixed = tl.zeros([SIZE], tl.float32)
    for part in tl.static_range(PARTS):
        row = sums + (place * PARTS + part) * (SIZE + 2)
        most = tl.load(row + SIZE + 1)
        above = tl.maximum(highest, most)
        kept, share = tl.exp2(highest - above), tl.exp2(most - above)
        weights = weights * kept + tl.load(row + SIZE) * share
        mixed = mixed * kept + tl.load(row + element) * share
        highest = above
    tl.store(attended + place * SIZE + element, (mixed / weights).to(attended.dtype.element_ty))
