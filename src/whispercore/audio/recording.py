"""Any container and codec → mono float32 at 16 kHz by the recording's own clock, streamed five seconds at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from itertools import chain, groupby
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import av
import av.logging
import numpy as np
import soxr

from ..errors import InvalidRequest, TooLarge, UnreadableAudio, UnsupportedAudio
from ..types import SAMPLE_RATE, AudioTrack, Samples
from .clock import Clock, is_fragmented, start_of
from .levels import full_scale, is_float
from .mixing import Mixer, Planes, planes_of
from .source import Reader, Source
from .threads import AudioThreads, GivenUp
from .tracks import audio_tracks, choose, described

BLOCK_SECONDS = 5
MIN_RATE, MAX_RATE = 1_000, 768_000

# Demuxers of self-contained files. Playlists (hls, concat, dash, sdp …) would open other files or addresses.
CONTAINERS = (
    "wav,w64,rf64,flac,mp3,ogg,matroska,webm,mov,mp4,m4a,3gp,aac,loas,amr,amrnb,amrwb,aiff,asf,avi,flv,mpeg,mpegts,caf,au,"
    "ac3,eac3,dts,wv,ape,tta,tak,voc,nut,mxf,oma,rm,gsm,qcp,spx"
)
# These formats have no duration in their header. FFmpeg guesses it from the bit rate and the file's size.
_GUESSED_DURATION = {"mp3", "aac", "loas", "amr", "amrnb", "amrwb", "mpeg", "mpegts", "ac3", "eac3", "dts"}
_SIGNATURES = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"#!AMR", b"caff", b"\x1aE\xdf\xa3", b"0&\xb2u")
_T = TypeVar("_T")
_ABSURD = 1e4
"""Louder than any signal (full scale is 1.0). Such a sample would mask all others or make a filter overflow."""

av.logging.set_level(None)


def open_recording(
    source: Source,
    *,
    max_seconds: float = math.inf,
    channel: int | None = None,
    track: str | None = None,
    threads: AudioThreads | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Recording:
    """Open a recording: the bytes of a file (never copied), its path, or a seekable binary file.

    `channel`, from 0: read only this channel. `track`: the number, from 0, or the language of the audio track to read;
    None: FFmpeg's best. `threads`: decode ahead on these; None: on the caller's thread. `is_cancelled`: whether reading
    may stop because the transcript is not needed any more; then Cancelled is raised. Bytes and paths may be opened
    several times at once. Raises UnsupportedAudio when the source is empty, in no known container or without an audio
    stream, UnreadableAudio when its container is broken from the start or reading takes far more time than its sound
    is worth (see `ReadingBudget`), TooLarge when its header declares more than
    `max_seconds`, InvalidRequest when it has no such channel or track.
    """
    file = Reader(source, is_cancelled)
    try:
        return Recording(file, max_seconds=max_seconds, channel=channel, track=track, threads=threads)
    except BaseException:
        file.close()
        raise


def read_samples(source: Source, *, max_seconds: float = math.inf) -> Samples:
    """A whole recording, float32, shape (n,), mono at 16 kHz: for tests and benchmarks."""
    with open_recording(source, max_seconds=max_seconds) as recording:
        return np.concatenate(list(recording.blocks()))


class Recording:
    """An open recording, read once through `blocks`.

    `declared_duration`: seconds by the header, None if it declares none. `expected_duration`: else by FFmpeg's guess from
    the bit rate, None if there is no guess either. `tracks`: all audio tracks of the file.
    `track`: the index of the track being read. `warnings` grows while blocks are read: truncated file, corrupt packets,
    non-finite samples.
    """

    def __init__(
        self,
        file: Reader,
        *,
        max_seconds: float = math.inf,
        channel: int | None = None,
        track: str | None = None,
        threads: AudioThreads | None = None,
    ) -> None:
        self._file = file
        self._container = _open_container(file)
        self.tracks: tuple[AudioTrack, ...] = audio_tracks(self._container)
        self.track, self._stream = choose(self._container, track)
        self._max_seconds = max_seconds
        self._corrupt_packets = 0
        self._cut_off = file.is_unfinished_ogg
        context = self._stream.codec_context
        self.channels: int = context.channels
        self.sample_rate: int = context.sample_rate
        self.codec: str = context.codec.canonical_name
        self.container: str = self._container.format.name
        self.declared_duration = _declared_duration(self._container, self._stream)
        self.expected_duration = self.declared_duration
        if self.expected_duration is None and self._container.duration:
            self.expected_duration = min(float(self._container.duration / av.time_base), max_seconds)
        self._clock = Clock(self._container, self._stream, self.declared_duration, self._check_length)
        self._channel = channel
        self._mixer = Mixer(channel)
        self._threads = threads
        self._decoding: Future[list[_Piece] | None] | None = None
        self._decoded = 0
        self.warnings: list[str] = []
        if channel is not None and not 0 <= channel < self.channels:
            raise InvalidRequest(f"the recording has no channel {channel}: it has {self.channels}, counted from 0", param="channels")
        if self.declared_duration is not None:
            self._check_length(self.declared_duration)
        if track is None and len(self.tracks) > 1:
            tracks = f"the recording has {len(self.tracks)} sound tracks: {described(self.tracks)}"
            self._warn(f"{tracks}; number {self.track} was taken; choose one with audio_track, by its number or its language")

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def duration(self) -> float:
        """Seconds decoded so far."""
        return self._decoded / SAMPLE_RATE

    def read(self, reading: Callable[[Recording, AudioThreads | None], Iterator[_T]]) -> Iterator[_T]:
        """The items of a reading (`audio.reading`) on the recording's threads."""
        return reading(self, self._threads)

    def settle(self) -> None:
        """Wait until nothing is decoded ahead any more."""
        if self._decoding:
            wait([self._decoding])

    def close(self) -> None:
        """Wait for running decoding, then free the decoder. Closing twice is harmless."""
        if self._decoding and not self._decoding.cancel():
            self.settle()
            if isinstance(self._decoding.exception(), GivenUp):
                return  # the thread that was given up may still use the decoder and the file
        self._container.close()
        self._file.close()

    def blocks(self) -> Iterator[Samples]:
        """About five seconds at a time: float32, shape (n,), mono at 16 kHz.

        Raises TooLarge as soon as the decoded audio exceeds the maximum, UnreadableAudio when nothing can be decoded.
        """
        if is_float(self.codec):
            with self._file.budget.measured():
                self._find_full_scale()
        blocks = self._resampled()
        while (block := self._next(blocks)) is not None:
            self._decoded += len(block)
            self._check_length(self.duration)
            yield block
        if not self._decoded:
            raise UnreadableAudio("no sample can be decoded from the recording: it holds zero seconds, or it is broken from the start")
        self._check_complete()

    def _find_full_scale(self) -> None:
        """Read the whole stream once, without decoding, for its full scale, so that every pass scales alike."""
        scale = full_scale(self._packets(), self.codec)
        self._container.close()
        self._file.seek(0)
        self._container = _open_container(self._file)
        self._stream = self._container.streams.audio[self.track]
        if scale != 1.0:
            self._mixer = Mixer(self._channel, 1 / scale)
            self._warn(f"the samples are floating point numbers in the range of {math.log2(scale) + 1:.0f}-bit integers: scaled to 1.0")

    def _resampled(self) -> Iterator[Samples]:
        for rate, frames in groupby(self._frames(), key=lambda frame: frame.sample_rate):
            if not MIN_RATE <= rate <= MAX_RATE:
                raise UnsupportedAudio(f"a sample rate of {rate} Hz is not audio: send {MIN_RATE} to {MAX_RATE} Hz")
            length = rate * BLOCK_SECONDS
            batches = self._decoded_ahead(_batched(_enlarged(self._clock.aligned(frames, rate), self._clock, length), length))
            blocks = map(self._finite, _joined(self._mono(chain.from_iterable(batches), rate), length))
            if rate == SAMPLE_RATE:
                yield from blocks
                continue
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            yield from filter(len, map(resampler.resample_chunk, blocks))
            yield from filter(len, [resampler.resample_chunk(np.zeros(0, np.float32), last=True)])

    def _decoded_ahead(self, batches: Iterator[list[_Piece]]) -> Iterator[list[_Piece]]:
        """The same batches.

        With threads each is decoded while the one before is mixed and resampled, which takes as long for music.
        """
        if self._threads is None:
            yield from batches
            return
        self._decoding = self._threads.decoding.submit(self._next, batches)
        while (batch := self._decoding.result()) is not None:
            self._decoding = self._threads.decoding.submit(self._next, batches)
            yield batch

    def _next(self, work: Iterator[_T]) -> _T | None:
        """The iterator's next item, None after the last. Its processor time is counted."""
        with self._file.budget.measured():
            return next(work, None)

    def _frames(self) -> Iterator[Any]:
        """Decoded frames. Packets that cannot be decoded are skipped and counted."""
        for packet in self._packets():
            try:
                frames = self._stream.codec_context.decode(packet)
            except EOFError:
                return
            except (av.FFmpegError, ValueError):
                self._corrupt_packets += 1
                continue
            for frame in frames:
                if frame.samples:
                    self._file.budget.sound_seconds += frame.samples / max(frame.sample_rate, 1)
                    yield frame

    def _packets(self) -> Iterator[Any]:
        """The stream's packets, then the one that flushes the decoder, even if the container breaks midway."""
        try:
            for packet in self._container.demux(self._stream):
                self._file.budget.check()
                yield packet
        except IndexError:  # PyAV's, at the end of a file in which further streams began on the way (PyAV issue 692)
            yield None
        except (av.FFmpegError, OSError, ValueError):
            self._cut_off = True
            yield None

    def _mono(self, pieces: Iterable[_Piece], rate: int) -> Iterator[Samples]:
        """The pieces mixed to mono, and the silence between them."""
        for silence, planes, scale in _gathered(pieces, rate):
            for begin in range(0, silence, rate):
                yield np.zeros(min(rate, silence - begin), np.float32)
            yield self._mixer.mono(planes, scale, rate)

    def _finite(self, block: Samples) -> Samples:
        absurd = ~(np.abs(block) < _ABSURD)  # True for NaN as well
        if absurd.any():
            block[absurd] = 0.0
            self._warn("some samples are not finite numbers: taken as silence")
        return block

    def _check_length(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            raise TooLarge(f"the recording is longer than {self._max_seconds:g} s, the most this server takes: split it", code="too_long")

    def _check_complete(self) -> None:
        by_header = 0.0 if self._clock.jumps else self.declared_duration or 0.0
        declared = max(by_header, self.duration * self._file.declared_share)
        if self.duration < declared - max(1.0, declared / 100):
            self._warn(f"the file is truncated: {self.duration:.1f} s of {declared:.1f} s")
        elif self._cut_off:
            self._warn(f"the file is cut off or broken after {self.duration:.1f} s")
        if self._corrupt_packets:
            self._warn(f"corrupt packets skipped: {self._corrupt_packets}")
        if self._clock.jumps:
            self._warn("the recording's clock jumps: its times go on as if it did not")
        if self._mixer.cancelled:
            self._warn("the channels are out of phase and cancel each other when they are mixed: the louder one was taken there")

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


def _open_container(file: Reader) -> Any:
    if not file.size:
        raise UnsupportedAudio("the upload is empty: send the bytes of an audio file", code="empty_audio")
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        with file.budget.measured():
            return av.open(file, mode="r", metadata_errors="replace", container_options=options, io_open=_refuse)
    except (av.FFmpegError, OSError, ValueError) as error:
        if file.head.startswith(_SIGNATURES) or file.head[4:8] == b"ftyp":
            raise UnreadableAudio("the file is audio, but broken from the start, or cut off before its index: send it whole") from error
        raise UnsupportedAudio("the upload is not audio in a known container: send wav, flac, mp3, ogg, webm, m4a, mp4, …") from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    """Refuse to open another file or address for a container."""
    raise PermissionError(url)


def _declared_duration(container: Any, stream: Any) -> float | None:
    """Seconds by the header; None if it declares none, or only another stream's."""
    name = container.format.name
    guessed = name in _GUESSED_DURATION and not (
        name == "mp3" and stream.start_time
    )  # an mp3 with a LAME header declares its duration and starts after the encoder delay
    if guessed or (stream.duration is None and container.streams.video):
        return None
    if stream.duration is None:
        seconds = None if container.duration is None else float(container.duration / av.time_base)
        return _without_start(seconds, container, stream)
    seconds = float(stream.duration * stream.time_base)
    start = float((stream.start_time or 0) * stream.time_base)
    if name == "ogg" and start > 1:  # cut from a broadcast: with some codecs FFmpeg includes the time before the cut
        return None
    if is_fragmented(container, stream):
        return _without_start(seconds, container, stream)
    return (
        seconds + max(0.0, start) if name.startswith("mov,") else seconds
    )  # mov declares the track's own duration, without the time before it


def _without_start(seconds: float | None, container: Any, stream: Any) -> float | None:
    """A duration counted from the clock's zero, minus the time before the recording's start."""
    start = start_of(container, stream, seconds)
    return seconds - start if seconds is not None and 0 < start < seconds else seconds


class _Piece(NamedTuple):
    """A decoded frame. `shift`: samples of silence before it, or, if negative, samples to cut from its start."""

    frame: Any
    shift: int


def _enlarged(frames: Iterable[Any], clock: Clock, at_least: int) -> Iterator[_Piece]:
    """Mono and stereo frames joined into frames of `at_least` samples: numpy's cost per frame is half of the decoding
    time.

    Other layouts are passed on unchanged: PyAV's FIFO frees a custom channel layout twice (PyAV pull request 2284).
    """
    for (_, layout, _), run in groupby(frames, key=lambda frame: (frame.format.name, frame.layout.name, clock.breaks)):
        shift = clock.take_shift()
        if layout not in ("mono", "stereo", "1 channels", "2 channels"):  # a WAV header names no channel order
            for frame in run:
                yield _Piece(frame, shift)
                shift = 0
            continue
        fifo = av.AudioFifo()
        for frame in run:
            frame.pts = None  # the FIFO would demand contiguous times
            fifo.write(frame)
            if fifo.samples >= at_least:
                yield _Piece(fifo.read(), shift)
                shift = 0
        if fifo.samples:
            yield _Piece(fifo.read(), shift)


def _batched(pieces: Iterable[_Piece], at_least: int) -> Iterator[list[_Piece]]:
    """The pieces in batches of `at_least` values over all channels, so that threads hand over rarely."""
    batch: list[_Piece] = []
    values = 0
    for piece in pieces:
        batch.append(piece)
        values += piece.frame.samples * piece.frame.layout.nb_channels
        if values >= at_least:
            yield batch
            batch, values = [], 0
    if batch:
        yield batch


def _gathered(pieces: Iterable[_Piece], at_least: int) -> Iterator[tuple[int, Planes, float]]:
    """Samples of silence, the samples after it, shape (channels, n), and their full scale. Short pieces are joined."""
    group: list[Planes] = []
    silence, length, scale = 0, 0, 1.0
    for frame, shift in pieces:
        planes, frame_scale = planes_of(frame)
        planes = planes[:, max(0, -shift) :]
        if group and (shift > 0 or frame_scale != scale or len(planes) != len(group[0])):
            yield silence, np.concatenate(group, axis=1), scale
            group, length = [], 0
        if not group:
            silence, scale = max(0, shift), frame_scale
        group.append(planes)
        length += planes.shape[1]
        if length >= at_least:
            yield silence, group[0] if len(group) == 1 else np.concatenate(group, axis=1), scale
            group, length = [], 0
    if group:
        yield silence, np.concatenate(group, axis=1), scale


def _joined(pieces: Iterable[Samples], at_least: int) -> Iterator[Samples]:
    """Blocks of `at_least` samples; the last may be shorter."""
    group: list[Samples] = []
    length = 0
    for piece in pieces:
        group.append(piece)
        length += len(piece)
        if length >= at_least:
            yield group[0] if len(group) == 1 else np.concatenate(group)
            group, length = [], 0
    if group:
        yield np.concatenate(group)
