"""A recording that is open in a reader process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..audio.reading import Item, Reading
from ..audio.transport import Facts, Next, Open, Reply
from ..errors import EngineError, UnreadableAudio
from ..types import AudioTrack
from .processes import CRASH, ProcessEnded, ReaderProcess

_ATTEMPTS = 3
"""To read an item, when another recording or the kernel ends the process."""
_numbers = itertools.count(1)


class RemoteRecording:
    """An `OpenRecording` in a reader process.

    When that process ends because of another recording, or is killed, this one is opened in the next process and read
    again up to where it was: a reading gives the same items each time.
    """

    def __init__(
        self,
        process: Callable[[], ReaderProcess | None],
        descriptor: Callable[[], int],
        is_cancelled: Callable[[], bool],
        *,
        seconds: float = 0.0,
        max_seconds: float,
        channel: int | None = None,
        track: str | None = None,
        processes: int = 1,
    ) -> None:
        """`process`: the one to read with, now. `descriptor`: a new file descriptor of the upload. `seconds`: for each step; 0: any.

        `processes`: as of `open_recording`.

        Raises as `open_recording`.
        """
        self.duration = 0.0
        self.warnings: Sequence[str] = ()
        self._number = next(_numbers)
        self._current, self._descriptor, self._is_cancelled = process, descriptor, is_cancelled
        self._request = Open(self._number, seconds, max_seconds, channel, track, processes)
        self._process: ReaderProcess | None = None
        self._reading: Reading[Any] | None = None
        self._items = 0
        self._facts: Facts = self._reliably(lambda process: self._opened).item

    @property
    def tracks(self) -> tuple[AudioTrack, ...]:
        """All audio tracks of the file."""
        return self._facts.tracks

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self._facts.channels

    @property
    def declared_duration(self) -> float | None:
        """Seconds by the header."""
        return self._facts.declared_duration

    @property
    def expected_duration(self) -> float | None:
        """Seconds by the header, else by the bit rate."""
        return self._facts.expected_duration

    def read(self, reading: Reading[Item]) -> Iterator[Item]:
        """The items of a reading. Raises as `Recording.blocks`, and UnreadableAudio when the recording ends its process."""
        self._reading = reading
        while not (reply := self._reliably(self._next)).is_last:
            self._items += 1
            self.duration, self.warnings = reply.duration, reply.warnings
            yield reply.item
        self.duration, self.warnings = reply.duration, reply.warnings

    def close(self) -> None:
        """Have it closed. Never waits."""
        if self._process:
            self._process.close_recording(self._number)
            self._process = None

    def _reliably(self, ask: Callable[[ReaderProcess], Reply]) -> Reply:
        """A reply, from another process when the one that is asked ends because of another recording, or is killed."""
        for _ in range(_ATTEMPTS):
            if (process := self._current()) is None:
                raise EngineError("the process that read the recording has ended, and no other can be started")
            try:
                if process is not self._process:
                    self._move_to(process)
                return ask(process)
            except ProcessEnded:
                if error := process.error_of(self._number):
                    raise error from None
        raise UnreadableAudio(CRASH)

    def _move_to(self, process: ReaderProcess) -> None:
        """Open the recording in a process, and read it up to where it was."""
        if self._process and (error := self._process.error_of(self._number)):
            raise error  # it ended that process while it was decoded ahead
        self._process = process
        descriptor = self._descriptor()
        try:
            self._opened = process.ask(self._request, self._is_cancelled, descriptor)
        finally:
            os.close(descriptor)
        self._begun = False
        for _ in range(self._items):
            self._next(process, skip=True)

    def _next(self, process: ReaderProcess, skip: bool = False) -> Reply:
        reading = None if self._begun else self._reading
        self._begun = True
        return process.ask(Next(self._number, self._request.seconds, reading, skip), self._is_cancelled)
