"""A long recording as parts, each of which can be transcribed on another machine, without any change in the windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..options import Options
from ..types import AudioTrack
from .cutting import cut_incrementally
from .packing import PackedWindow, pack_chunks
from .recording import Recording
from .threads import AudioThreads


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Consecutive windows of a recording, which a job takes in place of the recording.

    `number`: from 0. `is_last`: no part follows. `duration`: seconds of the recording read so far. `warnings`, `tracks`:
    of the recording, in its last part.
    """

    windows: tuple[PackedWindow, ...]
    number: int
    duration: float
    is_last: bool = False
    warnings: tuple[str, ...] = ()
    tracks: tuple[AudioTrack, ...] = ()

    def close(self) -> None:
        """Nothing is open."""


def split(recording: Recording, options: Options, seconds: float, threads: AudioThreads | None = None) -> Iterator[Part]:
    """The parts of a recording in order, each of at most `seconds`, as soon as its windows are known.

    The windows are those of the whole recording for the strategy `chunked`: cut by the voice detector at silences, and
    packed. So no word is cut, lost or doubled at a border of two parts. Raises as `Recording.blocks`.
    """
    windows: list[PackedWindow] = []
    number = 0
    for window in pack_chunks(cut_incrementally(recording.blocks(), options, threads), alone=options.multilingual):
        if window is None:
            continue
        if windows and window.end - windows[0].start > seconds:
            yield Part(tuple(windows), number, windows[-1].end)
            windows, number = [], number + 1
        windows.append(window)
    warnings, tracks = tuple(dict.fromkeys(recording.warnings)), recording.tracks
    yield Part(tuple(windows), number, recording.duration, is_last=True, warnings=warnings, tracks=tracks)
