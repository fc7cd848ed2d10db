"""Static key-value caches: their addresses never change, so that CUDA graphs may hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from whisper.model import ModelDimensions

from .device import Device

Places = slice | Tensor
"""Slots: neighbours, or any (windows,) on the device."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of all layers.

    `own`: of the tokens, (layers, 2, rows, heads, positions, size). `cross`: of the sound, (layers, 2, windows, heads, 1500, size), once
    a window however many rows it has. A window's rows lie side by side.
    """

    own: Tensor
    cross: Tensor

    def store_cross(self, layer: int, slots: Tensor, both: Tensor) -> None:
        """Keep the sound's keys and values (2, windows, heads, 1500, size) of the windows in `slots` (windows,)."""
        self.cross[layer].index_copy_(1, slots, both)

    def sound(self, layer: int, places: Places) -> tuple[Tensor, Tensor]:
        """The sound's keys and values of some windows, (windows, heads, 1500, size) each; of neighbours without a copy."""
        return self.cross[layer, 0, places], self.cross[layer, 1, places]

    def store_prompt(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep keys and values (windows, heads, length, size) of the first positions in all `rows` (windows, group)."""
        length = key.shape[2]
        for kept, new in zip(self.own[layer], (key, value), strict=True):
            copies = new[:, None].expand(-1, rows.shape[1], -1, -1, -1).flatten(0, 1)
            kept[:, :, :length].index_copy_(0, rows.flatten(), copies)

    def extend(self, layer: int, at: Tensor, key: Tensor, value: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Keep the first rows' keys and values (rows, heads, size) at their positions `at` (rows,); all of theirs up to `reach`."""
        rows = len(at)
        where = at[:, None, None, None].expand(-1, key.shape[1], 1, key.shape[2])
        keys, values = self.own[layer, 0, :rows, :, :reach], self.own[layer, 1, :rows, :, :reach]
        keys.scatter_(2, where, key[:, :, None])
        values.scatter_(2, where, value[:, :, None])
        return keys, values

    def mask(self, at: Tensor, reach: int) -> Tensor:
        """What is added to scores (rows, heads, 1, reach): -inf beyond each row's position."""
        beyond = torch.arange(reach, device=at.device) > at[:, None]
        return torch.zeros(beyond.shape, dtype=self.own.dtype, device=at.device).masked_fill_(beyond, -torch.inf)[:, None, None]

    def reorder(self, source: Tensor, reach: int) -> None:
        """Row i of the first goes on from what row `source[i]` (rows,) has read."""
        part = self.own[:, :, : len(source), :, :reach]
        part.copy_(part.index_select(2, source))

    def move(self, source: int, target: int, group: int) -> None:
        """Copy a window and its rows from one slot into another."""
        self.cross[:, :, target] = self.cross[:, :, source]
        self.own[:, :, target * group : (target + 1) * group] = self.own[:, :, source * group : (source + 1) * group]


def make_cache(dims: ModelDimensions, windows: int, rows: int, dtype: torch.dtype, device: torch.device) -> Cache:
    """Zeros: a masked position weighs nothing only as long as it is a number."""
    heads, size = dims.n_text_head, dims.n_text_state // dims.n_text_head
    shapes = [(dims.n_text_layer, 2, rows, heads, dims.n_text_ctx, size), (dims.n_text_layer, 2, windows, heads, dims.n_audio_ctx, size)]
    return Cache(*(_zeros(shape, dtype, device) for shape in shapes))


def cache_bytes(dims: ModelDimensions, dtype: torch.dtype) -> tuple[int, int]:
    """What a row of `own` and a window of `cross` take."""
    each = dims.n_text_layer * 2 * dims.n_text_state * dtype.itemsize
    return each * dims.n_text_ctx, each * dims.n_audio_ctx


def places(slots: Sequence[int], device: Device) -> Places:
    """Where these slots are. A list as an index would be copied to the device, and waited for until all that is queued there is done."""
    first = slots[0]
    if list(slots) == list(range(first, first + len(slots))):
        return slice(first, first + len(slots))
    return device.send(torch.tensor(slots))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's zeros take no memory until they are written to: a row that nobody decodes in costs nothing
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)).view(dtype)
