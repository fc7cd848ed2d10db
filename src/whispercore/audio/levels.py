"""Files of floating point samples whose full scale is not 1.0: written from integers without being scaled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = {"pcm_f32le": "<f4", "pcm_f32be": ">f4", "pcm_f64le": "<f8", "pcm_f64be": ">f8"}
_STRIDE = 11  # one sample of eleven tells the level; no common number of channels divides it
_FULL_SCALES = (2.0**7, 2.0**15, 2.0**23, 2.0**31)
_LOUDEST_FLOAT = 16.0
"""Mixes without a limiter exceed 1.0 a little; +24 dB is more than any."""
_RARE, _VERY_RARE = 1e-3, 1e-4
"""The share of samples whose level does not say that there is another full scale, and of those that do not say which one."""


def is_float(codec: str) -> bool:
    """Whether a codec stores floating point samples as they are."""
    return codec in _DTYPES


def full_scale(packets: Iterable[Any], codec: str) -> float:
    """The full scale of a whole stream of floating point samples: 1.0, or that of the integers that they are.

    Samples above it are rare: a few that are absurd scale nothing down.
    """
    counts = np.zeros(4096, np.int64)
    for packet in packets:
        if packet.size:
            counts += _magnitudes(np.frombuffer(bytes(packet), np.uint8), _DTYPES[codec])
    if _level(counts, _RARE) <= _LOUDEST_FLOAT:
        return 1.0
    level = _level(counts, _VERY_RARE)
    return next((scale for scale in _FULL_SCALES if level <= scale), _FULL_SCALES[-1])


def _level(counts: npt.NDArray[np.int64], share: float) -> float:
    """The power of two that at most `share` of the samples reach."""
    reached = np.cumsum(counts[::-1])[::-1]
    usual = np.flatnonzero(reached > share * reached[0])
    return 2.0 ** float(usual[-1] + 1 - _ZERO) if len(usual) else 0.0


_ZERO = 2048  # the index of magnitudes from 1.0 to 2.0


def _magnitudes(data: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.int64]:
    """How many of the samples looked at have each power of two, of those that are not zero and are finite."""
    size = np.dtype(dtype).itemsize
    samples = data[: len(data) // size * size].view(dtype)[::_STRIDE]
    _, exponents = np.frexp(samples[np.isfinite(samples) & (samples != 0)])
    return np.bincount(np.clip(exponents - 1 + _ZERO, 0, 4095), minlength=4096)
