"""Attention to the audio's cached keys and values, in bfloat16 or in 8 bits.

Every token reads the audio's keys and values as a whole: of base in float32 147 MB for four windows, more than all weights. They are
bfloat16 where the processor multiplies that. Elsewhere they are 8-bit integers with a scale for each position, which take a quarter of
the memory and, on a processor with AVX2, half of the time. The scales cost next to nothing: those of keys multiply the scores, those of
values the weights of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...devices import multiplies_bfloat16
from .linear import ROW_MULTIPLE

_LARGEST = 127.0
_SMALLEST = 1e-30
"""What the largest number of a position is at least, so that zeros have a scale."""
_ROUNDED_UP = 1 + 2**-8
"""What a scale is multiplied by before bfloat16 rounds it: no number becomes larger than 127."""
_FEW = 8
"""Up to this many queries a window PyTorch's kernel for 8-bit weights is faster than widening the keys to float32."""

_ALL = slice(None)


@dataclass(frozen=True, slots=True)
class AudioKeys:
    """The cross-attention's keys and values of some windows, a list of tensors for each layer.

    In floats these are keys and values, (windows, heads, 1500, size) each. In 8 bits they are keys (windows, heads, 1500, size), values
    (windows, heads, size, 1536) with zeros at the end, and the scales of both: bfloat16 and float32 (windows, heads, 1500).
    """

    layers: list[list[Tensor]]

    @property
    def windows(self) -> int:
        """The number of windows."""
        return len(self.layers[0][0])

    def of(self, windows: Sequence[int]) -> AudioKeys:
        """Those of some windows; views where these lie side by side."""
        part = _slice(windows)
        return AudioKeys([[kept[part] for kept in layer] for layer in self.layers])

    def store(self, layer: int, window: int, both: Tensor) -> None:
        """Keep keys and values, float32 (1500, 2, heads, size), which this may change."""
        kept = self.layers[layer]
        if len(kept) == 2:
            for room, tensor in zip(kept, both.permute(1, 2, 0, 3), strict=True):
                room[window].copy_(tensor)
            return
        scale = torch.maximum(both.amax(dim=-1, keepdim=True), -both.amin(dim=-1, keepdim=True)).clamp_(min=_SMALLEST)
        scale = (scale * (_ROUNDED_UP / _LARGEST)).to(torch.bfloat16).float()
        keys, values = both.mul_(1 / scale).round_().to(torch.int8).permute(1, 2, 0, 3)
        kept[0][window].copy_(keys)
        kept[1][window, :, :, : values.shape[1]].copy_(values.transpose(1, 2))
        for room, scales in zip(kept[2:], scale[..., 0].permute(1, 2, 0), strict=True):
            room[window].copy_(scales)


def room_for_audio(windows: int, layers: int, heads: int, positions: int, size: int, dtype: torch.dtype) -> AudioKeys:
    """Memory for the keys of so many windows, in bfloat16, float32 or int8."""
    shape = (windows, heads, positions, size)
    if dtype != torch.int8:
        return AudioKeys([[torch.empty(shape, dtype=dtype) for _ in range(2)] for _ in range(layers)])
    turned, scales = (windows, heads, size, -(-positions // ROW_MULTIPLE) * ROW_MULTIPLE), (windows, heads, positions)
    kinds = ((shape, torch.int8), (turned, torch.int8), (scales, torch.bfloat16), (scales, torch.float32))
    return AudioKeys([[torch.zeros(shape, dtype=dtype) for shape, dtype in kinds] for _ in range(layers)])


def fastest_dtype(size: int) -> torch.dtype:
    """The dtype of keys and values that this processor and this PyTorch read fastest, for heads of `size`."""
    if multiplies_bfloat16():
        return torch.bfloat16
    return torch.int8 if multiplies_int8(size) else torch.float32


def multiplies_int8(size: int) -> bool:
    """Whether this PyTorch has its kernel for 8-bit weights, which it does not document, but uses itself, and heads of `size` suit it."""
    if size % ROW_MULTIPLE:
        return False
    try:
        product = torch._weight_int8pack_mm(torch.ones(1, 64).bfloat16(), torch.ones(3, 64, dtype=torch.int8), torch.ones(3).bfloat16())
    except (AttributeError, RuntimeError):
        return False
    return product.tolist() == [[64.0] * 3]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of float32 queries in the dtype of the keys → float32 (n, heads, length, size)."""
    scores = (query * query.shape[-1] ** -0.5).to(key.dtype) @ key.transpose(-1, -2)
    return (torch.softmax(scores, dim=-1) @ value).float()


def attend_audio(query: Tensor, layer: list[Tensor], windows: list[int]) -> Tensor:
    """Attention of float32 queries (n, heads, length, size) to some windows of a layer of `AudioKeys`. In TorchScript's Python.

    Neighbours in order, which need no copy, are attended to at once in floats; in 8 bits each head is a product of its own.
    """
    if len(layer) > 2:
        return _attend_int8(query, layer, windows)
    first, count = windows[0], len(windows)
    if are_neighbours(windows):
        return attend(query, layer[0][first : first + count], layer[1][first : first + count])
    parts: list[Tensor] = []
    for place, window in enumerate(windows):
        parts.append(attend(query[place : place + 1], layer[0][window : window + 1], layer[1][window : window + 1]))
    return torch.cat(parts)


def _attend_int8(query: Tensor, layer: list[Tensor], windows: list[int]) -> Tensor:
    keys, values, key_scales, value_scales = layer
    heads, length, size = query.shape[1:]
    queries = (query * size**-0.5).to(torch.bfloat16).contiguous().flatten(0, 1).unbind()
    key_heads, scale_heads, value_heads = keys.flatten(0, 1).unbind(), key_scales.flatten(0, 1).unbind(), values.flatten(0, 1).unbind()
    scores: list[Tensor] = []
    for place, window in enumerate(windows):
        for head in range(heads):
            at = window * heads + head
            scores.append(torch._weight_int8pack_mm(queries[place * heads + head], key_heads[at], scale_heads[at]))
    weights = torch.softmax(torch.cat(scores).float(), dim=-1).view(len(windows) * heads, length, -1)
    weights = weights * value_scales[torch.tensor(windows)].view(len(windows) * heads, 1, -1)
    padded = F.pad(weights.to(torch.bfloat16), [0, values.shape[-1] - weights.shape[-1]]).unbind()
    ones = torch.ones(size, dtype=torch.bfloat16)
    mixed: list[Tensor] = []
    for place, window in enumerate(windows):
        for head in range(heads):
            mixed.append(torch._weight_int8pack_mm(padded[place * heads + head], value_heads[window * heads + head], ones))
    return torch.cat(mixed).view(query.shape).float()


def attend_audio_long(query: Tensor, layer: list[Tensor]) -> Tensor:
    """As `attend_audio`, of texts of any length to all windows of a layer."""
    windows, length = query.shape[0], query.shape[2]
    if len(layer) == 2 or length <= _FEW:
        return attend_audio(query, layer, list(range(windows)))
    # window by window: the widened keys of one stay in a core's cache
    return torch.cat([attend(query[i : i + 1], _keys(layer, i)[None], _values(layer, i)[None]) for i in range(windows)])


def audio_scores(query: Tensor, layer: list[Tensor], window: int, heads: Sequence[int]) -> Tensor:
    """The scores, before the softmax, of queries (heads, length, size) of some heads → float32 (heads, length, 1500)."""
    scores: Tensor = query @ _keys(layer, window, list(heads)).transpose(-1, -2)
    return scores.mul_(query.shape[-1] ** -0.5)


def _keys(layer: list[Tensor], window: int, heads: slice | list[int] = _ALL) -> Tensor:
    """The keys of a window in float32, (heads, 1500, size)."""
    keys = layer[0][window, heads].float()
    return keys if len(layer) == 2 else keys.mul_(layer[2][window, heads].float()[..., None])


def _values(layer: list[Tensor], window: int) -> Tensor:
    """Its values, of 8 bits, in float32 and the same shape."""
    scales = layer[3][window]
    return layer[1][window, :, :, : scales.shape[-1]].float().mul_(scales[:, None]).transpose(1, 2)


def are_neighbours(indices: list[int]) -> bool:
    """Whether each index is one more than the one before."""
    neighbours = True
    for place, index in enumerate(indices):
        neighbours = neighbours and index == indices[0] + place
    return neighbours


def _slice(indices: Sequence[int]) -> slice | list[int]:
    """Indices as a slice when they are neighbours in order, of which PyTorch makes a view."""
    return slice(indices[0], indices[0] + len(indices)) if are_neighbours(list(indices)) else list(indices)
