"""Extracts the sound track of a recording into a smaller file, for uploads that are too large.

A compressed track is copied. PCM is encoded as FLAC at 16 kHz, which is lossless for the model; tracks that are still
too large are encoded as Opus. All tracks and their channels are kept. Needs PyAV, which serve.sh's environment has, or
ffmpeg.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RATE = 16_000
OPUS_BITS = 48_000
"""Bits per second: four hours are 86 MB."""
ENCODERS = {"flac": "flac", "opus": "libopus"}
ANY_START = {"ogg", "mpeg", "mpegts"}
"""Containers whose first timestamp may have any value, as in files cut from a broadcast.

In others a late start means silence.
"""
LOSSLESS = re.compile(r"pcm_|adpcm_|flac|alac|ape|wavpack|tta|truehd|mlp|dsd")

OnProgress = Callable[[float, "float | None"], None]
"""Is called with the seconds done, and the total if the file has it."""


class ExtractionFailed(Exception):
    """The sound track cannot be extracted. The message says what to do."""


@dataclass(frozen=True)
class Contents:
    """A file's streams: whether there is video, the codec of each sound track, and the names of the container's format."""

    has_video: bool
    codecs: tuple[str, ...]
    container: tuple[str, ...] = ()

    @property
    def is_lossless(self) -> bool:
        """Whether the sound is uncompressed or losslessly compressed."""
        return any(LOSSLESS.match(codec) for codec in self.codecs)

    @property
    def starts_anywhere(self) -> bool:
        """Whether the first timestamp of the file is meaningless."""
        return bool(ANY_START.intersection(self.container))


@dataclass(frozen=True)
class Soundtrack:
    """The extracted file and its codec. `is_copied`: the sound was copied without encoding."""

    path: Path
    codec: str
    is_copied: bool


class _TooLarge(Exception):
    """The file grows beyond the limit."""


@contextmanager
def extracted(recording: Path, limit: int, on_progress: OnProgress) -> Iterator[Soundtrack]:
    """The sound track of `recording` in a temporary file of at most `limit` bytes. Raises ExtractionFailed."""
    tool = _tool()
    with tempfile.TemporaryDirectory(prefix="whisper-soundtrack-") as folder:
        try:
            streams = tool.contents(recording)
            if not streams.codecs:
                raise ExtractionFailed("there is no sound track in it")
            soundtrack = _smallest_loss(tool, streams, recording, Path(folder), limit, on_progress)
        except OSError as error:
            raise ExtractionFailed(f"the sound track cannot be extracted: {error.strerror or error}") from None
        yield soundtrack


def contents(recording: Path) -> Contents:
    """The file's streams; none when it cannot be read. Raises ExtractionFailed when no tool is installed."""
    tool = _tool()
    try:
        streams: Contents = tool.contents(recording)
    except (ExtractionFailed, OSError):
        return Contents(False, ())
    return streams


def _smallest_loss(tool: Any, streams: Contents, recording: Path, folder: Path, limit: int, on_progress: OnProgress) -> Soundtrack:
    """The sound track with the least loss within `limit` bytes: FLAC for lossless sound, else a copy; Opus if that is
    too large."""
    forms = ["flac", "opus"] if streams.is_lossless else ["copy", "opus"]
    for form in forms:
        path = folder / f"{recording.stem}.{form}.mka"
        try:
            tool.write(recording, path, form, streams.starts_anywhere, limit, on_progress)
        except _TooLarge:
            path.unlink(missing_ok=True)
            continue
        return Soundtrack(path, streams.codecs[0] if form == "copy" else form, form == "copy")
    raise ExtractionFailed(f"its sound track is larger than {limit:,} bytes, even as Opus: split the recording")


def _tool() -> Any:
    """PyAV if it is installed, else ffmpeg. Raises ExtractionFailed when neither is."""
    if importlib.util.find_spec("av"):
        return _PyAV()
    if program := shutil.which("ffmpeg"):
        return _Ffmpeg(program)
    raise ExtractionFailed("its sound track cannot be extracted without PyAV or ffmpeg: run ./serve.sh --setup once, or install ffmpeg")


class _PyAV:
    """Extraction by FFmpeg's libraries, through PyAV."""

    def __init__(self) -> None:
        self._av = importlib.import_module("av")

    def contents(self, recording: Path) -> Contents:
        with self._open(recording) as source:
            videos = [stream for stream in source.streams.video if not stream.disposition & self._av.stream.Disposition.attached_pic]
            codecs = tuple(stream.codec_context.codec.canonical_name for stream in source.streams.audio)
            return Contents(bool(videos), codecs, tuple(source.format.name.split(",")))

    def write(self, recording: Path, target: Path, form: str, from_zero: bool, limit: int, on_progress: OnProgress) -> None:
        with self._open(recording) as source, self._av.open(str(target), "w", format="matroska") as sink:
            start = (source.start_time or 0) / self._av.time_base if from_zero else 0.0
            try:
                packets = self._copied(source, sink, start) if form == "copy" else self._encoded(source, sink, ENCODERS[form], start)
                self._write(packets, source, sink, limit, on_progress)
            except self._av.error.FFmpegError as error:
                raise self._failed(error) from None

    def _write(self, packets: Iterator[Any], source: Any, sink: Any, limit: int, on_progress: OnProgress) -> None:
        duration = source.duration / self._av.time_base if source.duration else None
        size, reported = 0, 0.0
        for packet in packets:
            size += packet.size
            if size > limit:
                raise _TooLarge
            seconds = float(packet.pts * packet.time_base) if packet.pts is not None else reported
            sink.mux(packet)
            if seconds >= reported + 1:
                on_progress(seconds, duration)
                reported = seconds

    def _copied(self, source: Any, sink: Any, start: float) -> Iterator[Any]:
        copies = {stream.index: self._named(sink.add_stream_from_template(stream), stream) for stream in source.streams.audio}
        for packet in source.demux(list(source.streams.audio)):
            if packet.dts is None:
                continue
            shift = round(start / packet.time_base)
            packet.dts -= shift
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.stream = copies[packet.stream.index]
            yield packet

    def _encoded(self, source: Any, sink: Any, codec: str, start: float) -> Iterator[Any]:
        encoders = {}
        for stream in source.streams.audio:
            encoder = sink.add_stream(codec, rate=RATE, layout=stream.codec_context.layout.name)
            encoder.bit_rate = OPUS_BITS
            encoders[stream.index] = self._named(encoder, stream)
        for packet in source.demux(list(source.streams.audio)):
            for frame in self._decoded(packet):
                if frame.pts is not None:
                    frame.pts -= round(start / frame.time_base)
                yield from encoders[packet.stream.index].encode(frame)
        for encoder in encoders.values():
            yield from encoder.encode(None)

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return list(packet.decode())
        except self._av.error.InvalidDataError:  # a damaged packet is skipped
            return []

    @staticmethod
    def _named(track: Any, original: Any) -> Any:
        """The track, with the original's language and title."""
        track.metadata.update(original.metadata)
        return track

    def _open(self, recording: Path) -> Any:
        try:
            return self._av.open(str(recording), metadata_errors="replace")
        except self._av.error.FFmpegError as error:
            raise self._failed(error) from None

    @staticmethod
    def _failed(error: Any) -> ExtractionFailed:
        return ExtractionFailed(f"its sound track cannot be extracted: {error.strerror}")


class _Ffmpeg:
    """Extraction by the program ffmpeg."""

    def __init__(self, program: str) -> None:
        self._program = program

    def contents(self, recording: Path) -> Contents:
        log = self._run("-i", _url(recording)).stderr
        streams = re.findall(r"Stream #.*?: (Video|Audio): (\w+)(.*)", log)
        has_video = any(kind == "Video" and "attached pic" not in rest for kind, _, rest in streams)
        container = re.search(r"Input #0, (\S+), from", log)
        names = tuple(container[1].split(",")) if container else ()
        return Contents(has_video, tuple(codec for kind, codec, _ in streams if kind == "Audio"), names)

    def write(self, recording: Path, target: Path, form: str, from_zero: bool, limit: int, on_progress: OnProgress) -> None:
        clock = [] if from_zero else ["-copyts"]  # by default ffmpeg shifts the first timestamp to zero
        coding = ["-c", "copy"] if form == "copy" else ["-c", ENCODERS[form], "-ar", str(RATE), "-b:a", str(OPUS_BITS)]
        on_progress(0.0, None)
        # -fs stops slightly above the limit instead of filling the disk.
        output = ["-map", "0:a", *coding, "-fs", str(limit + 1), "-f", "matroska", _url(target)]
        done = self._run(*clock, "-i", _url(recording), *output)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["ffmpeg gave no reason"]
            raise ExtractionFailed(f"its sound track cannot be extracted: {lines[-1]}")
        if target.stat().st_size >= limit:
            raise _TooLarge

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._program, "-hide_banner", "-nostdin", "-y", *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _url(path: Path) -> str:
    """A path in a form that ffmpeg cannot mistake for an option or a protocol."""
    return f"file:{path}"
