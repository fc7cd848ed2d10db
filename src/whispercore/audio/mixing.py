"""Decoded frames of any sample format and number of channels, mixed into one: their mean, or one channel alone.

The mean of channels that are out of phase cancels: a recording with one side wired the wrong way round is loud on both channels
and silent in the mix. Where that happens the loudest channel is taken instead.
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
_LOOKS_PER_SECOND = 480  # so many of the samples are looked at: all of them would cost a tenth of decoding
_LAG_SECONDS = 0.00037
"""Compared are differences over so long: without direct current and mains hum, which say nothing of the speech."""
_CANCELS, _ADDS_UP = 0.15, 0.4
"""Power of the mix over that of channels that have nothing in common: below the first they cancel, above the second no more."""
_CLEARLY = 2.0
_SILENCE = 1e-12  # mean power, full scale 1.0

Planes = npt.NDArray[Any]


class Mixer:
    """Mixes the frames of one stream, in order. `cancelled`: whether its channels have cancelled each other somewhere."""

    def __init__(self, channel: int | None = None, gain: float = 1.0) -> None:
        """`channel`: that one alone, from 0; `gain`: all samples are multiplied by it."""
        self.cancelled = False
        self._channel = channel
        self._gain = gain
        self._cancels = False
        self._power = np.zeros(0)  # of each channel, where they cancel
        self._taken = 0

    @np.errstate(over="ignore", invalid="ignore")  # the caller replaces what is not finite
    def mono(self, planes: Planes, scale: float, rate: int) -> Samples:
        """`planes`, shape (channels, n), full scale `scale`, at `rate` Hz, as float32, shape (n,), full scale 1.0."""
        if self._channel is not None:
            planes = planes[min(self._channel, len(planes) - 1)][None]  # a stream that turns mono has all channels in one
        mono: Samples = planes[0].astype(np.float32)
        for plane in planes[1:]:
            mono += plane
        if len(planes) > 1:
            self._mend(mono, planes, scale, rate)
        mono *= np.float32(self._gain / (scale * len(planes)))
        return mono

    def _mend(self, mix: Samples, planes: Planes, scale: float, rate: int) -> None:
        """Replace the parts of `mix`, the sum of the channels, in which they cancel, by their loudest channel."""
        lag = max(1, int(_LAG_SECONDS * rate))
        stride = rate // _LOOKS_PER_SECOND | 1  # odd, unlike the periods of test tones
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
        """The channel that has been the loudest so far where channels cancel; it changes only for one that is clearly louder."""
        if len(self._power) != len(power):
            self._power, self._taken = np.zeros(len(power)), int(power.argmax())
        self._power = self._power + power
        loudest = int(self._power.argmax())
        if self._power[loudest] > _CLEARLY * self._power[self._taken]:
            self._taken = loudest
        self.cancelled = True
        return self._taken


def _powers(samples: npt.NDArray[Any], lag: int, stride: int, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The power of every `stride`th difference over `lag` samples: its sum from each start, in such differences, to the next."""
    differences = np.subtract(samples[lag::stride], samples[:-lag:stride], dtype=np.float32)
    return np.add.reduceat(np.square(differences, out=differences), starts).astype(np.float64)


def planes_of(frame: Any) -> tuple[Planes, float]:
    """A frame's samples, shape (channels, n), around zero, and their full scale."""
    channels = frame.layout.nb_channels
    # PyAV counts planes past the end of FFmpeg's array from eight planar channels on, and its arrays then read wild memory.
    if frame.format.packed.name not in _SCALES or (frame.format.is_planar and channels >= 8):
        (frame,) = av.AudioResampler("flt", frame.layout, frame.sample_rate).resample(frame)
    scale, zero = _SCALES[frame.format.packed.name]
    samples = frame.to_ndarray()
    planes = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    return (planes - np.float32(zero) if zero else planes), scale
