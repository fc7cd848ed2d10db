"""Static KV caches: their addresses never change, so CUDA graphs may hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from whisper.model import ModelDimensions

SlotIndex = slice | Tensor
"""Slots: a slice of neighbours, or any slots as a tensor (windows,) on the device."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of all layers.

    `own`: of self-attention, (layers, 2, rows, heads, positions, size). `cross`: of cross-attention, (layers, 2, windows, heads, 1500,
    size), which all rows of a window share. A window's rows lie side by side.
    """

    own: Tensor
    cross: Tensor

    def store_cross(self, layer: int, slots: Tensor, both: Tensor) -> None:
        """Store the cross-attention's keys and values (2, windows, heads, 1500, size) for the windows in `slots` (windows,)."""
        self.cross[layer].index_copy_(1, slots, both)

    def cross_kv(self, layer: int, index: SlotIndex) -> tuple[Tensor, Tensor]:
        """The cross-attention's keys and values of some windows, (windows, heads, 1500, size) each; a slice is not copied."""
        return self.cross[layer, 0, index], self.cross[layer, 1, index]

    def store_prompt(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values (windows, heads, length, size) at the first positions of all `rows` (windows, group)."""
        length = key.shape[2]
        for kept, new in zip(self.own[layer], (key, value), strict=True):
            copies = new[:, None].expand(-1, rows.shape[1], -1, -1, -1).flatten(0, 1)
            kept[:, :, :length].index_copy_(0, rows.flatten(), copies)

    def extend(self, layer: int, at: Tensor, key: Tensor, value: Tensor, kv_length: int) -> tuple[Tensor, Tensor]:
        """Store keys and values (rows, heads, size) of the first rows at positions `at` (rows,); returns theirs up to `kv_length`."""
        rows = len(at)
        index = at[:, None, None, None].expand(-1, key.shape[1], 1, key.shape[2])
        keys, values = self.own[layer, 0, :rows, :, :kv_length], self.own[layer, 1, :rows, :, :kv_length]
        keys.scatter_(2, index, key[:, :, None])
        values.scatter_(2, index, value[:, :, None])
        return keys, values

    def mask(self, at: Tensor, kv_length: int) -> Tensor:
        """The mask that is added to scores (rows, heads, 1, kv_length): -inf beyond each row's position."""
        beyond = torch.arange(kv_length, device=at.device) > at[:, None]
        return torch.zeros(beyond.shape, dtype=self.own.dtype, device=at.device).masked_fill_(beyond, -torch.inf)[:, None, None]

    def reorder(self, source: Tensor, kv_length: int) -> None:
        """Give row i, of the first, the cache of row `source[i]` (rows,)."""
        part = self.own[:, :, : len(source), :, :kv_length]
        part.copy_(part.index_select(2, source))

    def move(self, source: int, target: int, group: int) -> None:
        """Copy a window and its rows from one slot into another."""
        self.cross[:, :, target] = self.cross[:, :, source]
        self.own[:, :, target * group : (target + 1) * group] = self.own[:, :, source * group : (source + 1) * group]


def make_cache(dims: ModelDimensions, windows: int, rows: int, dtype: torch.dtype, device: torch.device) -> Cache:
    """Caches of zeros. A masked position has no weight only as long as it is finite."""
    heads, size = dims.n_text_head, dims.n_text_state // dims.n_text_head
    shapes = [(dims.n_text_layer, 2, rows, heads, dims.n_text_ctx, size), (dims.n_text_layer, 2, windows, heads, dims.n_audio_ctx, size)]
    return Cache(*(_zeros(shape, dtype, device) for shape in shapes))


def cache_bytes(dims: ModelDimensions, dtype: torch.dtype) -> tuple[int, int]:
    """The bytes of a row of `own` and of a window of `cross`."""
    position = dims.n_text_layer * 2 * dims.n_text_state * dtype.itemsize
    return position * dims.n_text_ctx, position * dims.n_audio_ctx


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's zeros take no memory until they are written to, so unused rows cost nothing
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)).view(dtype)
