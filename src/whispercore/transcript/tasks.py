"""The tasks that a decoding strategy makes of a recording.

A task is a generator. It yields each `Window` that it needs decoded, receives the `Decoded`, and returns a
`PartialTranscript`. A retry at a higher temperature is therefore another window in the common queue and delays no other
window of its batch. A strategy is an iterator of tasks. It yields None when it has read some audio but has no task yet;
the caller then asks again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ..types import Decoded, Dropped, Segment, Window


@dataclass(frozen=True, slots=True)
class PartialTranscript:
    """The final transcript of one part of the recording, which ends at `until` seconds."""

    until: float
    segments: tuple[Segment, ...] = ()
    dropped: tuple[Dropped, ...] = ()


PartTask = Generator[Window, Decoded, PartialTranscript]
PartTasks = Iterator[PartTask | None]


@dataclass(slots=True)
class RecordingLanguage:
    """The language of a recording, shared by all its tasks: the requested one, else that of the first window with words."""

    language: str | None = None
    probability: float | None = None

    def settle(self, decoded: Decoded) -> None:
        """Take the language of a window with words, unless it is set already."""
        if self.language is None:
            self.language, self.probability = decoded.language, decoded.language_probability
