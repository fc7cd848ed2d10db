"""Readings: what is read from an open recording, item by item, on a thread of this process or in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from ..options import Options
from ..types import AudioTrack, Samples
from .cutting import cut_incrementally
from .packing import PackedWindow, pack_chunks
from .recording import Recording
from .survey import Survey, surveyed
from .threads import AudioThreads

Item = TypeVar("Item")
Reading = Callable[[Recording, AudioThreads | None], Iterator[Item]]
"""Reads a recording once, a step for each item. It can be pickled, and gives the same items whenever it begins anew."""


class OpenRecording(Protocol):
    """A recording that is open here or in another process: the facts about it, as `Recording` has them."""

    @property
    def tracks(self) -> tuple[AudioTrack, ...]:
        """All audio tracks of the file."""

    @property
    def channels(self) -> int:
        """The number of channels."""

    @property
    def declared_duration(self) -> float | None:
        """Seconds by the header."""

    @property
    def expected_duration(self) -> float | None:
        """Seconds by the header, else by the bit rate."""

    @property
    def duration(self) -> float:
        """Seconds read so far."""

    @property
    def warnings(self) -> Sequence[str]:
        """Problems found so far."""

    def read(self, reading: Reading[Item]) -> Iterator[Item]:
        """The items of a reading. Raises as `Recording.blocks`."""

    def close(self) -> None:
        """Free the decoder. Closing twice is harmless."""


def windows(options: Options) -> Reading[PackedWindow | None]:
    """The windows of the strategy `chunked`, and None after every 30 s without one."""
    return partial(_windows, options)


def survey(options: Options, n_mels: int) -> Reading[Survey | None]:
    """The first pass of the strategy `sequential`: None after every 30 s or less, the survey at last."""
    return partial(_survey, options, n_mels)


def blocks(recording: Recording, threads: AudioThreads | None) -> Iterator[Samples]:
    """All samples, as `Recording.blocks`: the second pass of the strategy `sequential`."""
    return recording.blocks()


def _windows(options: Options, recording: Recording, threads: AudioThreads | None) -> Iterator[PackedWindow | None]:
    return pack_chunks(cut_incrementally(recording.blocks(), options, threads), alone=options.multilingual)


def _survey(options: Options, n_mels: int, recording: Recording, threads: AudioThreads | None) -> Iterator[Survey | None]:
    return surveyed(recording.blocks(), options, n_mels, threads)
