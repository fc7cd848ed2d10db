"""A job's upload, opened once for each pass over it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..audio.parts import Part
from ..audio.probing import Prober
from ..audio.reading import OpenRecording
from ..audio.recording import open_recording
from ..audio.source import Source, descriptor_of
from ..audio.threads import AudioThreads
from ..errors import InvalidRequest
from ..options import Options
from .readers import Binding
from .remote import RemoteRecording

MAX_CHANNELS = 8
"""Channels that can be transcribed apart, at most."""


def is_divisible(options: Options) -> bool:
    """Whether a recording can be transcribed in parts: its windows do not depend on each other, and are read once."""
    return options.strategy == "chunked" and options.channels == "mono"


class Passes:
    """The passes over one recording: one for each channel that is transcribed apart, two for the strategy `sequential`.

    `part`: a part of a recording, which has been read already, in place of passes; else None. `recordings`: every pass
    that has been opened, or the part. `duration`: seconds by the header; `expected_duration`: else by the bit rate; None
    when there is neither, and before `open_first`.
    """

    def __init__(
        self,
        source: Source | Part,
        options: Options,
        max_seconds: float,
        threads: AudioThreads,
        binding: Binding,
        *,
        prober: Prober | None = None,
        is_cancelled: Callable[[], bool],
    ) -> None:
        """`binding`: where to read; without a process there, on `threads`.

        `prober`: opens the upload in another process first; for uploads of strangers. `is_cancelled`: stop reading.
        """
        self.part = source if isinstance(source, Part) else None
        self.recordings: list[OpenRecording | Part] = []
        self.duration: float | None = None
        self.expected_duration: float | None = None
        self._source: Source | None = None if isinstance(source, Part) else source
        self._options = options
        self._max_seconds = max_seconds
        self._threads = threads
        self._binding = binding
        self._prober = prober
        self._is_cancelled = is_cancelled
        self._first: OpenRecording | None = None
        self._descriptor: int | None = None

    def open_first(self) -> Sequence[int | None]:
        """Open the recording. Returns the channels to transcribe, None for all of them mixed into one.

        Raises WhisperError as `open_recording` does, InvalidRequest for too many channels, and for a part with options that
        need the whole recording.
        """
        options = self._options
        if self.part is not None:
            if not is_divisible(options):
                raise InvalidRequest("a part of a recording has no channels, and only the strategy chunked takes it", param="file")
            self.recordings.append(self.part)
            self.duration = self.expected_duration = self.part.duration
            return (None,)
        if not is_divisible(options) and not isinstance(self._source, bytes | bytearray | memoryview | str | Path | None):
            self._source = self._source.read()  # an open file has one position, so passes cannot share it
        if self._prober and self._source is not None:
            self._prober.check(self._source)
        self._first = self._open(None)
        self.duration, channels = self._first.declared_duration, self._first.channels
        self.expected_duration = self._first.expected_duration
        if options.channels != "separate" or channels == 1:
            return (None,)
        if channels > MAX_CHANNELS:
            raise InvalidRequest(f"{channels} channels cannot be transcribed apart, at most {MAX_CHANNELS}", param="channels")
        return range(channels)

    def open(self, channel: int | None) -> OpenRecording:
        """The next pass: over one channel, or over all of them mixed into one."""
        if channel is None and self._first is not None:
            first, self._first = self._first, None
            return first
        return self._open(channel)

    def close(self) -> None:
        """Close every pass and let go of the upload."""
        for recording in self.recordings:
            recording.close()
        self._source = self.part = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self, channel: int | None) -> OpenRecording:
        recording = self._open_remotely(channel) or self._open_here(channel)
        self.recordings.append(recording)
        return recording

    def _open_remotely(self, channel: int | None) -> RemoteRecording | None:
        """None for an open file, whose position only this process has, and where there is no process or no memory for it."""
        lane = self._binding.lane
        if lane is None or lane.process() is None or not isinstance(self._source, bytes | bytearray | memoryview | str | Path):
            return None
        with contextlib.suppress(OSError):
            return RemoteRecording(
                lane.process,
                self._new_descriptor,
                self._is_cancelled,
                seconds=lane.seconds,
                max_seconds=self._max_seconds,
                channel=channel,
                track=self._options.audio_track,
                processes=self._binding.decoding_processes if channel is None else 1,
            )
        return None

    def _open_here(self, channel: int | None) -> OpenRecording:
        assert self._source is not None
        return open_recording(
            self._source,
            max_seconds=self._max_seconds,
            channel=channel,
            track=self._options.audio_track,
            threads=self._threads,
            is_cancelled=self._is_cancelled,
        )

    def _new_descriptor(self) -> int:
        """A descriptor of the upload for one pass. All passes share one file in memory."""
        if self._descriptor is None:
            assert self._source is not None
            descriptor = descriptor_of(self._source)
            assert descriptor is not None
            if is_divisible(self._options):
                return descriptor
            self._descriptor = descriptor
        return os.dup(self._descriptor)
