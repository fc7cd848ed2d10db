"""Decoded frames of any sample format and number of channels → mono: the mean of the channels, or one channel.

Channels that are out of phase cancel in the mean: a recording with one side wired with reversed polarity is loud on
both channels and silent in the mix. There the loudest channel replaces the mean.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import numpy.typing as npt

from ..types import Samples

# Full scale and zero point of FFmpeg's sample formats; the others (s64) go through its resampler.
_SCALES = {"u8": (128.0, 128.0), "s16": (32768.0, 0.0), "s32": (2147483648.0, 0.0), "flt": (1.0, 0.0), "dbl": (1.0, 0.0)}
_PART_SECONDS = 0.5
_COMPARISONS_PER_SECOND = 480  # comparing all samples would take a tenth of the decoding time
_LAG_SECONDS = 0.00037
"""The lag of the differences that are compared.

Differences remove DC offset and mains hum, which say nothing about speech.
"""
_CANCELS, _ADDS_UP = 0.15, 0.4
"""Power of the mix relative to uncorrelated channels: below the first channels cancel, above the second no longer."""
_LOUDER_RATIO = 2.0
_SILENCE = 1e-12  # mean power, full scale 1.0

Planes = npt.NDArray[Any]


class Mixer:
    """Mixes the frames of one stream, in order. `cancelled`: whether channels cancelled each other anywhere so far."""

    def __init__(self, channel: int | None = None, gain: float = 1.0) -> None:
        """`channel`: the only channel to take, from 0; None: mix all. `gain`: a factor for all samples."""
        self.cancelled = False
        self._channel = channel
        self._gain = gain
        self._cancels = False
        self._power = np.zeros(0)  # of each channel, summed over the parts that cancel
        self._chosen = 0

    @np.errstate(over="ignore", invalid="ignore")  # the caller replaces non-finite samples
    def mono(self, planes: Planes, scale: float, rate: int) -> Samples:
        """`planes`, shape (channels, n), full scale `scale`, at `rate` Hz → float32, shape (n,), full scale 1.0."""
        if self._channel is not None:
            planes = planes[min(self._channel, len(planes) - 1)][None]  # a stream may turn mono midway
        mono: Samples = planes[0].astype(np.float32)
        for plane in planes[1:]:
            mono += plane
        if len(planes) > 1:
            self._replace_cancelled(mono, planes, scale, rate)
        mono *= np.float32(self._gain / (scale * len(planes)))
        return mono

    def _replace_cancelled(self, mix: Samples, planes: Planes, scale: float, rate: int) -> None:
        """In the parts of `mix`, the sum of the channels, where channels cancel, put the loudest channel instead."""
        lag = max(1, int(_LAG_SECONDS * rate))
        stride = rate // _COMPARISONS_PER_SECOND | 1  # odd, so that it does not divide the periods of test tones
        part = max(1, int(_PART_SECONDS * rate) // stride)
        differences = -(-(mix.size - lag) // stride)
        if differences <= 0:
            return
        starts = np.arange(0, max(1, differences - part // 2), part)
        power = np.stack([_powers(plane, lag, stride, starts) for plane in planes])
        total, mixed = power.sum(axis=0), _powers(mix, lag, stride, starts)
        floor = _SILENCE * part * (scale / self._gain) ** 2
        if not self._cancels and not np.any((mixed < _CANCELS * total) & (total > floor)):
            return
        ends = [*(starts[1:] * stride), mix.size]
        for index, (start, end) in enumerate(zip(starts * stride, ends, strict=True)):
            if total[index] > floor:
                self._cancels = bool(mixed[index] < (_ADDS_UP if self._cancels else _CANCELS) * total[index])
            if self._cancels:
                mix[start:end] = planes[self._loudest(power[:, index])][start:end]
                mix[start:end] *= len(planes)

    def _loudest(self, power: npt.NDArray[np.float64]) -> int:
        """The loudest channel so far in the parts that cancel; another one must have more than twice its power."""
        if len(self._power) != len(power):
            self._power, self._chosen = np.zeros(len(power)), int(power.argmax())
        self._power = self._power + power
        loudest = int(self._power.argmax())
        if self._power[loudest] > _LOUDER_RATIO * self._power[self._chosen]:
            self._chosen = loudest
        self.cancelled = True
        return self._chosen


def _powers(samples: npt.NDArray[Any], lag: int, stride: int, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The power of every `stride`th difference over `lag` samples, summed between starts, which count differences."""
    differences = np.subtract(samples[lag::stride], samples[:-lag:stride], dtype=np.float32)
    return np.add.reduceat(np.square(differences, out=differences), starts).astype(np.float64)


def planes_of(frame: Any) -> tuple[Planes, float]:
    """A frame's samples, shape (channels, n), centred on zero, and their full scale."""
    channels = frame.layout.nb_channels
    # With eight or more planar channels PyAV counts planes beyond the end of FFmpeg's array and reads invalid memory.
    if frame.format.packed.name not in _SCALES or (frame.format.is_planar and channels >= 8):
        (frame,) = av.AudioResampler("flt", frame.layout, frame.sample_rate).resample(frame)
    scale, zero = _SCALES[frame.format.packed.name]
    samples = frame.to_ndarray()
    planes = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    return (planes - np.float32(zero) if zero else planes), scale
