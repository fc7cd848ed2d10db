"""A client's sound → 16-bit samples at 16 kHz, and the sound that waits to be transcribed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import soxr

from whispercore.types import SAMPLE_RATE

Pcm = npt.NDArray[np.int16]
"""Samples at 16 kHz, mono, shape (n,)."""
BYTES_PER_SECOND = 2 * SAMPLE_RATE


def _mu_law() -> Pcm:
    """The samples of the 256 codes of μ-law (ITU-T G.711): sign, three bits of exponent, four of mantissa, inverted."""
    codes = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (codes >> 4 & 7).astype(np.int32), (codes & 15).astype(np.int32)
    magnitude = ((mantissa << 3) + 0x84 << exponent) - 0x84
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law() -> Pcm:
    """The samples of the 256 codes of A-law (ITU-T G.711), whose even bits are inverted."""
    codes = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (codes >> 4 & 7).astype(np.int32), (codes & 15).astype(np.int32)
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, (mantissa << 4) + 0x108 << np.maximum(exponent - 1, 0))
    return np.where(codes & 0x80, magnitude, -magnitude).astype(np.int16)


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """`rate`: samples a second. `table`: the sample of each code; None for 16-bit samples, low byte first."""

    rate: int
    table: Pcm | None = None


FORMATS: Mapping[str, Format] = MappingProxyType(
    {"audio/pcm": Format(24_000), "audio/pcmu": Format(8_000, _mu_law()), "audio/pcma": Format(8_000, _a_law())}
)


class Decoder:
    """Bytes of one format, in pieces of any length → samples at 16 kHz. The pieces join without clicks."""

    def __init__(self, name: str) -> None:
        """`name`: one of `FORMATS`."""
        self._format = FORMATS[name]
        self._half = b""
        self._resampler = self._new_resampler()

    def decode(self, data: bytes) -> Pcm:
        """The samples that are complete. Some milliseconds stay in the resampler until `flush`."""
        return self._resampled(self._samples(data), last=False)

    def flush(self) -> Pcm:
        """The samples that are left in the resampler. Half a sample is dropped."""
        rest = self._resampled(np.zeros(0, np.int16), last=True)
        self._half, self._resampler = b"", self._new_resampler()
        return rest

    def _samples(self, data: bytes) -> Pcm:
        if self._format.table is not None:
            return self._format.table[np.frombuffer(data, np.uint8)]
        data = self._half + data
        whole = len(data) // 2 * 2
        self._half = data[whole:]
        return np.frombuffer(data[:whole], "<i2").astype(np.int16, copy=False)

    def _resampled(self, samples: Pcm, *, last: bool) -> Pcm:
        resampled = self._resampler.resample_chunk(samples.astype(np.float32), last=last)
        rounded: Pcm = np.rint(resampled).clip(-32_768, 32_767).astype(np.int16)
        return rounded

    def _new_resampler(self) -> soxr.ResampleStream:
        return soxr.ResampleStream(self._format.rate, SAMPLE_RATE, 1, dtype="float32")


class AudioBuffer:
    """The latest sound of a session. Positions count samples from the first one of the session."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.start = 0

    @property
    def end(self) -> int:
        """The position after the last sample."""
        return self.start + len(self._bytes) // 2

    def append(self, samples: Pcm) -> None:
        """More sound."""
        self._bytes += samples.tobytes()

    def between(self, begin: int, end: int) -> bytes:
        """The 16-bit samples between two positions, as far as they are there."""
        return bytes(self._bytes[2 * max(0, begin - self.start) : 2 * max(0, end - self.start)])

    def forget(self, until: int) -> None:
        """Forget the sound before a position."""
        until = min(max(until, self.start), self.end)
        del self._bytes[: 2 * (until - self.start)]
        self.start = until
