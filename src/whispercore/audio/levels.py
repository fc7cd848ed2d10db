"""The full scale of floating point files: some were written from integers without being scaled to 1.0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = {"pcm_f32le": "<f4", "pcm_f32be": ">f4", "pcm_f64le": "<f8", "pcm_f64be": ">f8"}
_STRIDE = 11  # every eleventh sample is enough; 11 is coprime to all usual numbers of channels
_FULL_SCALES = (2.0**7, 2.0**15, 2.0**23, 2.0**31)
_LOUDEST_FLOAT = 16.0
"""+24 dB. Mixes without a limiter exceed 1.0, but never by so much."""
_RARE, _VERY_RARE = 1e-3, 1e-4
"""The shares of loud samples that are ignored when deciding whether the full scale is not 1.0, and which one it is."""


def is_float(codec: str) -> bool:
    """Whether a codec stores uncompressed floating point samples."""
    return codec in _DTYPES


def full_scale(packets: Iterable[Any], codec: str) -> float:
    """The full scale of a whole stream of floating point samples: 1.0, or that of the integers it was written from.

    A few absurdly loud samples do not change the result.
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
    """A histogram of the samples' powers of two, every `_STRIDE`th sample, without zeros and non-finite samples."""
    size = np.dtype(dtype).itemsize
    samples = data[: len(data) // size * size].view(dtype)[::_STRIDE]
    _, exponents = np.frexp(samples[np.isfinite(samples) & (samples != 0)])
    return np.bincount(np.clip(exponents - 1 + _ZERO, 0, 4095), minlength=4096)
