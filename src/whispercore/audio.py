"""Any container and codec, streamed into mono float32 at 16 kHz, five seconds at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import SEEK_CUR, SEEK_END, SEEK_SET, TextIOBase
from itertools import chain, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
import av.logging
import numpy as np
import soxr

from .errors import InvalidRequest, TooLarge, UnreadableAudio, UnsupportedAudio
from .types import SAMPLE_RATE, Samples

BLOCK_SECONDS = 5
MIN_RATE, MAX_RATE = 1_000, 768_000

# Demuxers that read one self-contained file. Playlists (hls, concat, dash, sdp …) would open other files or addresses.
CONTAINERS = (
    "wav,w64,rf64,flac,mp3,ogg,matroska,webm,mov,mp4,m4a,3gp,aac,loas,amr,amrnb,amrwb,aiff,asf,avi,flv,mpeg,mpegts,caf,au,"
    "ac3,eac3,dts,wv,ape,tta,tak,voc,nut,mxf,oma,rm,gsm,qcp,spx"
)
# These have no duration in their header: FFmpeg guesses it from the bit rate and the file's size.
_GUESSED_DURATION = {"mp3", "aac", "loas", "amr", "amrnb", "amrwb", "mpeg", "mpegts", "ac3", "eac3", "dts"}
_SIGNATURES = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"#!AMR", b"caff", b"\x1aE\xdf\xa3", b"0&\xb2u")
# Full scale and zero point of FFmpeg's sample formats; the others (s64) go through its resampler.
_SCALES = {"u8": (128.0, -1.0), "s16": (32768.0, 0.0), "s32": (2147483648.0, 0.0), "flt": (1.0, 0.0), "dbl": (1.0, 0.0)}
_OGG_PAGE = 65_307  # bytes at most
_DECODERS = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decoder")
_ABSURD = 1e10  # louder than any signal: filters must not overflow to infinity

av.logging.set_level(None)

Source = bytes | bytearray | memoryview | str | Path | BinaryIO


def open_recording(source: Source, *, max_seconds: float = math.inf, channel: int | None = None) -> Recording:
    """Open a recording: the bytes of a file (never copied), its path, or a seekable binary file; `channel`, from 0: that one alone.

    Bytes and a path may be opened any number of times at once. Raises UnsupportedAudio when it is empty, in no known container or
    without an audio stream, UnreadableAudio when its container is broken from the start, TooLarge when its header declares more
    than `max_seconds`, InvalidRequest when it has no such channel.
    """
    file = _Reader(source)
    try:
        return Recording(_open_container(file), file, max_seconds=max_seconds, channel=channel)
    except BaseException:
        file.close()
        raise


def read_samples(source: Source, *, max_seconds: float = math.inf) -> Samples:
    """A whole recording at once, float32, shape (n,), mono at 16 kHz: for tests and benchmarks."""
    with open_recording(source, max_seconds=max_seconds) as recording:
        return np.concatenate(list(recording.blocks()))


class Recording:
    """An open recording, read once through `blocks`.

    `declared_duration`: seconds by the header, None when it has none. `warnings` grows while blocks are read: cut off,
    corrupt packets skipped, samples that are no numbers.
    """

    def __init__(self, container: Any, file: _Reader, *, max_seconds: float = math.inf, channel: int | None = None) -> None:
        self._container = container
        self._file = file
        self._stream = _audio_stream(container)
        self._max_seconds = max_seconds
        self._channel = channel
        self._corrupt_packets = 0
        self._cut_off = _unfinished_ogg(file)
        self._share = _share(file)
        context = self._stream.codec_context
        self.channels: int = context.channels
        self.sample_rate: int = context.sample_rate
        self.codec: str = context.codec.canonical_name
        self.container: str = container.format.name
        self.declared_duration = _declared_duration(container, self._stream)
        self._coming: Future[list[Any] | None] | None = None
        self._decoded = 0
        self.warnings: list[str] = []
        if channel is not None and not 0 <= channel < self.channels:
            raise InvalidRequest(f"the recording has no channel {channel}: it has {self.channels}, counted from 0", param="channels")
        if self.declared_duration is not None:
            self._check_length(self.declared_duration)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def duration(self) -> float:
        """Seconds decoded so far."""
        return self._decoded / SAMPLE_RATE

    def close(self) -> None:
        """Free the decoder, when it is not at work any more; a second time does nothing."""
        if self._coming and not self._coming.cancel():
            wait([self._coming])
        self._container.close()
        self._file.close()

    def blocks(self) -> Iterator[Samples]:
        """About five seconds at a time: float32, shape (n,), mono at 16 kHz.

        Raises TooLarge as soon as more than the maximum has come, UnreadableAudio when nothing came.
        """
        for block in self._resampled():
            self._decoded += len(block)
            self._check_length(self.duration)
            yield block
        if not self._decoded:
            raise UnreadableAudio("no sample can be decoded from the recording: it holds zero seconds, or it is broken from the start")
        self._check_complete()

    def _resampled(self) -> Iterator[Samples]:
        for rate, frames in groupby(self._frames(), key=lambda frame: frame.sample_rate):
            if not MIN_RATE <= rate <= MAX_RATE:
                raise UnsupportedAudio(f"a sample rate of {rate} Hz is not audio: send {MIN_RATE} to {MAX_RATE} Hz")
            length = rate * BLOCK_SECONDS
            lots = self._ahead(_lots(_enlarged(frames, length), length))
            mono = (_mono(frame, self._channel) for frame in chain.from_iterable(lots))
            blocks = map(self._finite, _joined(mono, length))
            if rate == SAMPLE_RATE:
                yield from blocks
                continue
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            yield from filter(len, map(resampler.resample_chunk, blocks))
            yield from filter(len, [resampler.resample_chunk(np.zeros(0, np.float32), last=True)])

    def _ahead(self, lots: Iterator[list[Any]]) -> Iterator[list[Any]]:
        """The same, each decoded on another thread while the one before is mixed and resampled, which takes as long for music."""
        self._coming = _DECODERS.submit(next, lots, None)
        while (lot := self._coming.result()) is not None:
            self._coming = _DECODERS.submit(next, lots, None)
            yield lot

    def _frames(self) -> Iterator[Any]:
        """Decoded frames; a packet that cannot be decoded is skipped."""
        for packet in self._packets():
            try:
                frames = self._stream.codec_context.decode(packet)
            except EOFError:
                return
            except (av.FFmpegError, ValueError):
                self._corrupt_packets += 1
                continue
            yield from (frame for frame in frames if frame.samples)

    def _packets(self) -> Iterator[Any]:
        """The stream's packets and, last, the one that flushes the decoder, also when the container breaks in the middle."""
        try:
            yield from self._container.demux(self._stream)
        except (av.FFmpegError, OSError, ValueError):
            self._cut_off = True
            yield None

    def _finite(self, block: Samples) -> Samples:
        absurd = ~(np.abs(block) < _ABSURD)
        if absurd.any():
            block[absurd] = 0.0
            self._warn("some samples are not finite numbers: taken as silence")
        return block

    def _check_length(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            raise TooLarge(f"the recording is longer than {self._max_seconds:g} s, the most this server takes: split it", code="too_long")

    def _check_complete(self) -> None:
        declared = max(self.declared_duration or 0.0, self.duration * self._share)
        if self.duration < declared - max(1.0, declared / 100):
            self._warn(f"the file is truncated: {self.duration:.1f} s of {declared:.1f} s")
        elif self._cut_off:
            self._warn(f"the file is cut off or broken after {self.duration:.1f} s")
        if self._corrupt_packets:
            self._warn(f"corrupt packets skipped: {self._corrupt_packets}")

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


class _Reader:
    """A source as FFmpeg reads it: without a name, so that its content alone decides what it is; bytes are not copied."""

    def __init__(self, source: Source) -> None:
        file: Any = source
        if isinstance(source, str | Path):
            file = _opened(Path(source))
        elif isinstance(source, bytes | bytearray | memoryview):
            file = _Bytes(source)
        elif isinstance(source, TextIOBase) or not hasattr(source, "read"):
            raise InvalidRequest(f"a recording is bytes, a path or a binary file; got {type(source).__name__}", param="file")
        self._owned = file is not source
        self.read, self.seek, self.tell, self._close = file.read, file.seek, file.tell, file.close
        self.size: int = self.seek(0, SEEK_END)
        self.seek(max(0, self.size - _OGG_PAGE))
        self.tail: bytes = self.read(_OGG_PAGE)
        self.seek(0)
        self.head: bytes = self.read(12)
        self.seek(0)  # FFmpeg reads from here; nobody else may from now on

    def close(self) -> None:
        """Close the file that was opened here; a caller's own file stays open."""
        if self._owned:
            self._close()


def _opened(path: Path) -> BinaryIO:
    """The file at `path`. Raises InvalidRequest when it cannot be opened."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be opened: {error.strerror}", param="file") from error


class _Bytes:
    """Bytes in memory as a file; io.BytesIO would copy a bytearray."""

    def __init__(self, source: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(source).cast("B")
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        chunk = bytes(self._view[self._position : self._position + size if size >= 0 else None])
        self._position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        origin = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: len(self._view)}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._view.release()


def _open_container(file: _Reader) -> Any:
    if not file.size:
        raise UnsupportedAudio("the upload is empty: send the bytes of an audio file", code="empty_audio")
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        return av.open(file, mode="r", metadata_errors="replace", container_options=options, io_open=_refuse)
    except (av.FFmpegError, OSError, ValueError) as error:
        if file.head.startswith(_SIGNATURES) or file.head[4:8] == b"ftyp":
            raise UnreadableAudio("the file is audio, but broken from the start, or cut off before its index: send it whole") from error
        raise UnsupportedAudio("the upload is not audio in a known container: send wav, flac, mp3, ogg, webm, m4a, mp4, …") from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    """No container may open another file or address."""
    raise PermissionError(url)


def _audio_stream(container: Any) -> Any:
    """The stream that FFmpeg takes for the best, never a cover picture."""
    stream = container.streams.best("audio")
    if stream is None:
        raise UnsupportedAudio("the file has no audio stream: send one with sound", code="no_audio_stream")
    if stream.codec_context is None:
        raise UnsupportedAudio("the file's audio codec is unknown: send wav, flac, mp3, aac, opus or vorbis")
    return stream


def _declared_duration(container: Any, stream: Any) -> float | None:
    """Seconds by the header; None when it has none, or another stream's."""
    guessed = container.format.name in _GUESSED_DURATION and not stream.start_time  # an mp3 with a LAME header starts after its delay
    if guessed or (stream.duration is None and container.streams.video):
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _share(file: _Reader) -> float:
    """How many times longer a RIFF file says it is than it is; FFmpeg believes the bytes. Sizes near 4 GiB mean a live stream."""
    riff_size = int.from_bytes(file.head[4:8], "little") + 8
    return riff_size / file.size if file.head[:4] == b"RIFF" and file.size < riff_size < 0xF000_0000 else 1.0


def _unfinished_ogg(file: _Reader) -> bool:
    """Whether an ogg file lacks the page that ends it; FFmpeg does not tell."""
    last = file.tail.rfind(b"OggS")
    return file.head[:4] == b"OggS" and (last < 0 or last + 5 >= len(file.tail) or not file.tail[last + 5] & 4)


@np.errstate(over="ignore", invalid="ignore")  # `_finite` finds them
def _mono(frame: Any, channel: int | None) -> Samples:
    """The mean of the frame's channels, or one of them, float32, full scale 1.0."""
    channels = frame.layout.nb_channels
    # PyAV counts planes past the end of FFmpeg's array from eight planar channels on, and its arrays then read wild memory.
    if frame.format.packed.name not in _SCALES or (frame.format.is_planar and channels >= 8):
        (frame,) = av.AudioResampler("flt", frame.layout, frame.sample_rate).resample(frame)
    scale, zero = _SCALES[frame.format.packed.name]
    samples = frame.to_ndarray()
    planes = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    if channel is not None:
        planes = planes[min(channel, channels - 1)][None]  # a stream that turns mono has all channels in one
    mono: Samples = planes[0].astype(np.float32)
    for plane in planes[1:]:
        mono += plane
    mono *= np.float32(1.0 / (scale * len(planes)))
    return mono + np.float32(zero) if zero else mono


def _enlarged(frames: Iterable[Any], at_least: int) -> Iterator[Any]:
    """Mono and stereo frames joined into frames of `at_least` samples: numpy's cost per frame is half of all decoding.

    Others go as they are: of a custom channel order PyAV's FIFO, too, frees the layout twice (PyAV pull request 2284).
    """
    for (_, layout), alike in groupby(frames, key=lambda frame: (frame.format.name, frame.layout.name)):
        if layout not in ("mono", "stereo", "1 channels", "2 channels"):  # a WAV file's header names no order
            yield from alike
            continue
        fifo = av.AudioFifo()
        for frame in alike:
            frame.pts = None  # else it must follow on the one before
            fifo.write(frame)
            if fifo.samples >= at_least:
                yield fifo.read()
        if fifo.samples:
            yield fifo.read()


def _lots(frames: Iterable[Any], values: int) -> Iterator[list[Any]]:
    """The frames in lots of so many values, channels counted: each costs two threads' attention once."""
    lot: list[Any] = []
    held = 0
    for frame in frames:
        lot.append(frame)
        held += frame.samples * frame.layout.nb_channels
        if held >= values:
            yield lot
            lot, held = [], 0
    if lot:
        yield lot


def _joined(pieces: Iterable[Samples], at_least: int) -> Iterator[Samples]:
    """Pieces joined into blocks of `at_least` samples; the last may be shorter."""
    held: list[Samples] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= at_least:
            yield held[0] if len(held) == 1 else np.concatenate(held)
            held, length = [], 0
    if held:
        yield np.concatenate(held)
