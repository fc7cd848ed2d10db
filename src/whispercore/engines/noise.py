"""Random numbers for sampling above temperature 0: a function of a seed, a step and a token, without state.

A row's numbers depend on its own seed only, not on the other rows, their order or earlier draws. They are computed by integer arithmetic
on the device of the logits. So they can be part of a CUDA graph, the host never waits for them, and every engine that samples with
PyTorch draws the same numbers on every device.

The integers are mixed by the finalisers of SplitMix64 (Steele, Lea and Flood 2014) and of lowbias32 (https://github.com/skeeto/hash-prospector).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Window


def _signed(number: int, bits: int) -> int:
    """The signed integer with the same bits: PyTorch's integers are signed."""
    return number - (1 << bits) if number >> (bits - 1) else number


_SAMPLE, _STEP = _signed(0x9E3779B97F4A7C15, 64), _signed(0xD1B54A32D192ED03, 64)
_MIX_64 = ((30, _signed(0xBF58476D1CE4E5B9, 64)), (27, _signed(0x94D049BB133111EB, 64)))
_MIX_32 = ((16, _signed(0x7FEB352D, 32)), (15, _signed(0x846CA68B, 32)))
_TOKEN = _signed(0x9E3779B9, 32)


def seeds(windows: Sequence[Window], samples: int, device: torch.device | str = "cpu") -> Tensor:
    """The seed of each row, int64 (windows x samples,), the samples of a window one after the other."""
    return streams(torch.tensor([window.seed for window in windows], device=device), samples).flatten()


def streams(seeds: Tensor, samples: int) -> Tensor:
    """Seeds of windows, int64 (windows,) → a seed for each of their samples, int64 (windows, samples)."""
    return _mixed(seeds[:, None] + torch.arange(samples, device=seeds.device) * _SAMPLE, _MIX_64, 31)


def gumbel(seeds: Tensor, steps: Tensor | int, tokens: int) -> Tensor:
    """Gumbel noise, float32 (rows, tokens), for the token number `steps` of rows with these `seeds`, int64 (rows,).

    The largest of logits / temperature + noise is a token drawn with the probabilities softmax(logits / temperature).
    """
    keys = _mixed(seeds + (torch.zeros_like(seeds) + steps) * _STEP, _MIX_64, 31)[:, None]
    low, high = ((keys << 32) >> 32).to(torch.int32), (keys >> 32).to(torch.int32)
    bits = torch.arange(tokens, device=seeds.device, dtype=torch.int32) * _TOKEN + low
    bits = _mixed(_mixed(bits, _MIX_32, 16) + high, _MIX_32, 16)
    # log1p keeps float32's precision near 0, where the largest noise, and so the drawn token, comes from
    uniform = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def drawn(logits: Tensor, temperature: Tensor | float, seeds: Tensor, steps: Tensor | int) -> Tensor:
    """A token for each row, (rows,), drawn with the probabilities softmax(logits / temperature); `logits`: (rows, tokens)."""
    return (logits.float() / temperature + gumbel(seeds, steps, logits.shape[1])).argmax(dim=1)


def _mixed(integers: Tensor, rounds: Sequence[tuple[int, int]], last: int) -> Tensor:
    """Every bit of the result depends on every bit of an integer; products wrap around."""
    for shift, factor in rounds:
        integers = (integers ^ _shifted(integers, shift)) * factor
    return integers ^ _shifted(integers, last)


def _shifted(integers: Tensor, shift: int) -> Tensor:
    """Shifted to the right and filled with zeros; PyTorch fills with the sign."""
    return (integers >> shift) & ((1 << (8 * integers.element_size() - shift)) - 1)
