"""Any container and codec → mono float32 at 16 kHz by the recording's own clock, streamed five seconds at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from itertools import chain, groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, TypeVar

import av
import av.logging
import numpy as np
import soxr

from ..errors import InvalidRequest, TooLarge, UnreadableAudio, UnsupportedAudio
from ..types import SAMPLE_RATE, AudioTrack, Samples
from .clock import Clock, is_fragmented, start_of
from .decoder import Decoder
from .levels import full_scale, is_float
from .mixing import Mixer
from .pieces import BLOCK_SECONDS, batched, enlarged, joined, mono
from .side_by_side import LONG_SECONDS, Forks, begin_forks
from .source import Reader, Source
from .threads import AudioThreads, GivenUp
from .tracks import audio_tracks, choose, described

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
    processes: int = 1,
    is_cancelled: Callable[[], bool] | None = None,
) -> Recording:
    """Open a recording: the bytes of a file (never copied), its path, or a seekable binary file.

    `channel`, from 0: read only this channel. `track`: the number, from 0, or the language of the audio track to read;
    None: FFmpeg's best. `threads`: decode ahead on these; None: on the caller's thread. `processes`: decode a long
    recording in so many copies of this process; no other thread may be at work in FFmpeg then. `is_cancelled`: whether
    reading may stop because the transcript is not needed any more; then Cancelled is raised. Bytes and paths may be
    opened several times at once. Raises UnsupportedAudio when the source is empty, in no known container or without an audio
    stream, UnreadableAudio when its container is broken from the start or reading takes far more time than its sound
    is worth (see `ReadingBudget`), TooLarge when its header declares more than
    `max_seconds`, InvalidRequest when it has no such channel or track.
    """
    file = Reader(source, is_cancelled)
    try:
        return Recording(file, max_seconds=max_seconds, channel=channel, track=track, threads=threads, processes=processes)
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
        processes: int = 1,
    ) -> None:
        self._file = file
        self._container = _open_container(file)
        self.tracks: tuple[AudioTrack, ...] = audio_tracks(self._container)
        self.track, self._stream = choose(self._container, track)
        self._max_seconds = max_seconds
        self._decoder = Decoder(self._container, self._stream, file.budget)
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
        self._processes = processes
        self._forks: Forks | None = None
        self._decoding: Future[Any] | None = None
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
        if self._forks:
            self._forks.close()
        if self._decoding and not self._decoding.cancel():
            self.settle()
            if isinstance(self._decoding.exception(), GivenUp):
                return  # the thread that was given up may still use the decoder and the file
        self._forks = None
        self._container.close()
        self._file.close()

    def blocks(self) -> Iterator[Samples]:
        """Some seconds at a time: float32, shape (n,), mono at 16 kHz.

        Raises TooLarge as soon as the decoded audio exceeds the maximum, UnreadableAudio when nothing can be decoded.
        """
        if is_float(self.codec):
            with self._file.budget.measured():
                self._find_full_scale()
        if (self.expected_duration or 0.0) >= LONG_SECONDS:
            self._forks = begin_forks(self._decoder, self._clock, self._mixer, self._file, self._processes)
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
        scale = full_scale(self._decoder.packets(), self.codec)
        self._container.close()
        self._file.seek(0)
        self._container = _open_container(self._file)
        self._stream = self._container.streams.audio[self.track]
        self._decoder = Decoder(self._container, self._stream, self._file.budget)
        if scale != 1.0:
            self._mixer = Mixer(self._channel, 1 / scale)
            self._warn(f"the samples are floating point numbers in the range of {math.log2(scale) + 1:.0f}-bit integers: scaled to 1.0")

    def _resampled(self) -> Iterator[Samples]:
        for rate, pieces in groupby(self._mixed(), key=itemgetter(0)):
            blocks = map(self._finite, joined((samples for _, samples in pieces), rate * BLOCK_SECONDS))
            if rate == SAMPLE_RATE:
                yield from blocks
                continue
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            yield from filter(len, map(resampler.resample_chunk, blocks))
            yield from filter(len, [resampler.resample_chunk(np.zeros(0, np.float32), last=True)])

    def _mixed(self) -> Iterator[tuple[int, Samples]]:
        """Mono samples in order, each with its sample rate."""
        first = (yield from self._mixed_by_forks(self._forks)) if self._forks else 0
        if first is not None:
            yield from self._mixed_here(self._decoder.frames(first))

    def _mixed_by_forks(self, forks: Forks) -> Generator[tuple[int, Samples], None, int | None]:
        """The same, from other processes. Returns the first packet that they leave to this one, None for no packet."""
        first = 0
        try:
            for part in self._ahead(forks.parts()):
                self._file.budget.charge(part.processor_seconds)
                self._file.budget.check()
                if MIN_RATE <= part.rate <= MAX_RATE and self._clock.passes(part.span, part.seconds):
                    self._decoder.corrupt_packets += part.corrupt_packets
                    self._file.budget.sound_seconds += part.seconds
                    yield part.rate, part.samples
                elif part.is_settled:  # a gap in the recording's times, for example
                    yield from self._mixed_here(list(self._decoder.frames(part.first, forks.length)))
                else:
                    return first
                if part.is_last:
                    return None
                first = part.first + forks.length
            return first
        finally:
            forks.close()

    def _mixed_here(self, frames: Iterable[Any]) -> Iterator[tuple[int, Samples]]:
        for rate, consecutive in groupby(frames, key=lambda frame: frame.sample_rate):
            if not MIN_RATE <= rate <= MAX_RATE:
                raise UnsupportedAudio(f"a sample rate of {rate} Hz is not audio: send {MIN_RATE} to {MAX_RATE} Hz")
            length = rate * BLOCK_SECONDS
            batches = self._ahead(batched(enlarged(self._clock.aligned(consecutive, rate), self._clock, length), length))
            for samples in mono(chain.from_iterable(batches), self._mixer, rate):
                yield rate, samples

    def _ahead(self, items: Iterator[_T]) -> Iterator[_T]:
        """The same items.

        With threads each is decoded while the one before is mixed and resampled, which takes as long for music.
        """
        if self._threads is None:
            yield from items
            return
        ahead = self._decoding = self._threads.decoding.submit(self._next, items)
        while (item := ahead.result()) is not None:
            ahead = self._decoding = self._threads.decoding.submit(self._next, items)
            yield item

    def _next(self, work: Iterator[_T]) -> _T | None:
        """The iterator's next item, None after the last. Its processor time is counted."""
        with self._file.budget.measured():
            return next(work, None)

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
        elif self._decoder.is_cut_off or self._file.is_unfinished_ogg:
            self._warn(f"the file is cut off or broken after {self.duration:.1f} s")
        if self._decoder.corrupt_packets:
            self._warn(f"corrupt packets skipped: {self._decoder.corrupt_packets}")
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
