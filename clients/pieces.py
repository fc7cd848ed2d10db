"""The pieces of a batch that are done apart: recordings, and parts of long ones. Grouped, read, and put together again."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from outcomes import Failure, Outcome
from storage import Recording, fetched

from whispercore.audio.parts import Part, split
from whispercore.audio.recording import open_recording
from whispercore.options import Options
from whispercore.serving.assembly import in_another_language, joined
from whispercore.serving.passes import is_divisible

GROUP_BYTES = 20_000_000
"""Recordings of a group: about twenty minutes of sound as mp3."""
GROUPS_PER_ACTOR = 8
"""Groups for each actor, at least: the more there are, the more evenly the actors end."""
MAX_GROUP = 64
"""The most recordings of a group."""
SLOWEST_BYTES = 4_000
"""Bytes per second of sound, at least: a file without a duration that may be long by this is read."""


@dataclass(frozen=True, slots=True)
class Task:
    """A recording to read. `numbers`: the parts that are wanted of a recording that has been split before; None: all.

    `language`: decode in it.
    """

    recording: Recording
    numbers: frozenset[int] | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What a reading task hands to an actor: a recording, or a part of one.

    `source`: None when the actor reads the file itself. `failure`: the recording could not be read.
    """

    task: Task
    source: bytes | Part | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What an actor makes of a piece. `number`: of the part, `is_last`: no part follows."""

    task: Task
    outcome: Outcome
    number: int = 0
    is_last: bool = True


def grouped(tasks: Sequence[Task], actors: int) -> list[list[Task]]:
    """The tasks in order, in groups of about the same size that are small enough to keep all actors busy to the end."""
    total = sum(max(0, task.recording.size) for task in tasks)
    limit = min(GROUP_BYTES, total / (GROUPS_PER_ACTOR * actors))
    most = max(1, min(MAX_GROUP, len(tasks) // (GROUPS_PER_ACTOR * actors)))
    groups: list[list[Task]] = []
    size = math.inf
    for task in tasks:
        if size + task.recording.size > limit or len(groups[-1]) >= most:
            groups.append([])
            size = 0
        groups[-1].append(task)
        size += max(0, task.recording.size)
    return groups


def read(row: Mapping[str, bytes], *, options: Options, part_seconds: float) -> Iterator[dict[str, bytes]]:
    """The pieces of a group's recordings: a reading task of Ray, with rows in and out."""
    for task in pickle.loads(row["tasks"]):
        for piece in pieces_of(task, options, part_seconds):
            yield {"piece": pickle.dumps(piece)}


def pieces_of(task: Task, options: Options, part_seconds: float) -> Iterator[Piece]:
    """A recording as it is, or its parts if it is long. Nothing is kept in memory but the part that is being made."""
    recording = task.recording
    try:
        with fetched(recording) as path:
            if is_divisible(options) and (task.numbers or _is_long(path, options, part_seconds)):
                with open_recording(path, track=options.audio_track) as opened:
                    for part in split(opened, options, part_seconds):
                        if task.numbers is None or part.number in task.numbers:
                            yield Piece(task, part)
            else:
                yield Piece(task, path.read_bytes() if recording.is_remote else None)
    except Exception as error:
        yield Piece(task, failure=Failure.of(error))


def _is_long(path: Path, options: Options, part_seconds: float) -> bool:
    with open_recording(path, track=options.audio_track) as recording:
        duration = recording.declared_duration
    return (path.stat().st_size / SLOWEST_BYTES if duration is None else duration) > part_seconds


class Joining:
    """Puts the parts of recordings together."""

    def __init__(self, options: Options) -> None:
        self._detects = options.language is None and not options.multilingual
        self._parts: dict[Recording, dict[int, Result]] = {}
        self._again: dict[Recording, Task] = {}

    def add(self, result: Result) -> Outcome | None:
        """The outcome of the result's recording when it is complete, or has failed."""
        recording = result.outcome.recording
        if result.outcome.transcript is None or (result.number == 0 and result.is_last):
            return result.outcome
        parts = self._parts.setdefault(recording, {})
        parts[result.number] = result
        last = next((number for number, part in parts.items() if part.is_last), None)
        if last is None or len(parts) <= last:
            return None
        ordered = [parts[number] for number in range(last + 1)]
        transcripts = [part.outcome.transcript for part in ordered if part.outcome.transcript]
        if self._detects and result.task.language is None and (wrong := in_another_language(transcripts)):
            self._again[recording] = Task(recording, frozenset(wrong), joined(transcripts).language)
            for number in wrong:
                del parts[number]
            return None
        del self._parts[recording]
        return replace(result.outcome, transcript=joined(transcripts), seconds=sum(part.outcome.seconds for part in ordered))

    def take_again(self) -> list[Task]:
        """The parts to do again, in the language of the recording's first words."""
        tasks, self._again = list(self._again.values()), {}
        return tasks
