"""The runner `ray`: reading tasks and transcribing actors on the machines of a Ray cluster, by Ray Data.

The pipeline: groups of recordings → reading tasks, which fetch, and split what is long → actors, each with a
`Transcriber` → outcomes. Ray restarts an actor that has ended, and repeats its tasks on it or on another one.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.data
from failures import RequestFailed
from feeding import transcribed
from outcomes import Failure, Model, Outcome
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from storage import Recording, fetched
from weights import prepared_settings

import whispercore
from whispercore.audio.parts import Part, split
from whispercore.audio.recording import open_recording
from whispercore.audio.source import Source
from whispercore.options import Options
from whispercore.serving.assembly import in_another_language, joined
from whispercore.serving.passes import is_divisible
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import ENVIRONMENT_PREFIX

CALLS = 2
"""Groups that an actor works on at once, so that its engine does not wait at the end of a group."""
GROUP_BYTES = 20_000_000
"""Recordings of a group: about twenty minutes of sound as mp3."""
MAX_GROUP = 64
"""The most recordings of a group."""
SLOWEST_BYTES = 4_000
"""Bytes per second of sound, at least: a file without a duration that may be long by this is read."""
RETRIES = 2
"""How often Ray repeats a call whose actor has ended, before its recordings count as lost."""
BLOCK_BYTES = 64 << 20
"""A block of Ray Data, so that each part of a long recording is one."""
Load = Callable[[], Transcriber]
"""Makes the transcriber of an actor."""


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


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machines, and what an actor takes of them. Unset numbers follow from what there is.

    `load`: makes the transcriber of an actor; None: from the settings.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int = 4
    gpus: float | None = None
    load: Load | None = None

    def connect(self) -> None:
        """Connect to the cluster, or start one on this machine. Code goes to the machines, weights and packages do not."""
        if ray.is_initialized():
            return
        core, clients = Path(whispercore.__file__).parent, Path(__file__).parent
        variables = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
        runtime = {"py_modules": [str(core)], "working_dir": str(clients), "excludes": ["__pycache__"], "env_vars": variables}
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # max_task_retries has no other way in
        try:
            ray.init(address=self.address, runtime_env=runtime, logging_level=logging.WARNING, log_to_driver=False)
        except ConnectionError as error:
            raise RequestFailed("no_cluster", f"no Ray cluster at {self.address}: {error}") from None

    def pool(self) -> tuple[int, dict[str, float]]:
        """How many actors, and the resources of each. Raises RequestFailed when there is no room for one."""
        there = ray.cluster_resources()
        gpus = self.gpus if self.gpus is not None else float(there.get("GPU", 0) > 0)
        name, total = ("GPU", there.get("GPU", 0.0)) if gpus else ("CPU", there.get("CPU", 0.0))
        each = gpus or float(self.cpus)
        if not gpus and self.actors and self.actors * each > total:
            each = _share(total / self.actors)
        room = math.floor(total / each + 1e-6)
        if not room:
            advice = "see --cpus-per-actor and --gpus-per-actor"
            raise RequestFailed("no_room", f"an actor needs {each:g} {name}, the cluster has {total:g}: {advice}")
        return min(self.actors or room, room), {"num_gpus": gpus} if gpus else {"num_cpus": each}


def _share(cores: float) -> float:
    """The cores of an actor. Ray takes fractions of a single core only."""
    return math.floor(cores) if cores >= 1 else math.floor(cores * 1000) / 1000


# The pipeline


def run_by_ray(
    cluster: Cluster, settings: Mapping[str, str], options: Options, part_seconds: float, recordings: Sequence[Recording], alone: bool
) -> Iterator[Outcome]:
    """The runner `ray`. Recordings whose process ended again and again get no outcome. Raises RequestFailed."""
    cluster.connect()
    load = cluster.load or functools.partial(load_transcriber, dict(settings), cluster.cpus)
    pipeline = Pipeline(load, options, part_seconds, *cluster.pool(), calls=1 if alone else CALLS)
    joining = Joining(options)
    tasks = [Task(recording) for recording in recordings]
    while tasks:
        for result in pipeline.results([[task] for task in tasks] if alone else grouped(tasks, pipeline.actors)):
            if outcome := joining.add(result):
                yield outcome
        tasks = joining.take_again()


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


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Reading tasks and actors. `resources`: of each actor. `calls`: groups that an actor works on at once."""

    load: Load
    options: Options
    part_seconds: float
    actors: int
    resources: Mapping[str, float]
    calls: int

    def results(self, groups: Sequence[Sequence[Task]]) -> Iterator[Result]:
        """The results as they arrive, in any order. Those of calls whose actor has ended again and again are missing."""
        context = ray.data.DataContext.get_current()
        context.target_max_block_size = BLOCK_BYTES
        context.max_errored_blocks = -1  # a call that is lost for good must not end the others
        context.enable_progress_bars = False
        pool = ActorPoolStrategy(
            size=self.actors,
            max_tasks_in_flight_per_actor=self.calls,
            max_concurrent_calls_per_actor=self.calls,
            enable_true_multi_threading=True,
        )
        rows = ray.data.from_items([{"tasks": pickle.dumps(group)} for group in groups], override_num_blocks=len(groups))
        reading = functools.partial(read, options=self.options, part_seconds=self.part_seconds)
        # Reading tasks reserve no core: with actors on all cores they would wait for ever.
        pieces = rows.flat_map(reading, compute=TaskPoolStrategy(size=2 * self.actors), num_cpus=0)
        working: dict[str, Any] = {"batch_size": None, "compute": pool, "max_task_retries": RETRIES, **self.resources}
        for row in pieces.map_batches(Worker, fn_constructor_args=(self.load, self.options), **working).iter_rows():
            yield pickle.loads(row["result"])


def grouped(tasks: Sequence[Task], actors: int) -> list[list[Task]]:
    """The tasks in order, in groups of about the same size that are small enough to keep all actors busy to the end."""
    total = sum(max(0, task.recording.size) for task in tasks)
    limit = min(GROUP_BYTES, total / (4 * CALLS * actors))
    most = max(1, min(MAX_GROUP, len(tasks) // (4 * CALLS * actors)))
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
    """The pieces of a group's recordings: a reading task."""
    for task in pickle.loads(row["tasks"]):
        for piece in _pieces(task, options, part_seconds):
            yield {"piece": pickle.dumps(piece)}


def _pieces(task: Task, options: Options, part_seconds: float) -> Iterator[Piece]:
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


class Worker:
    """An actor: a transcriber, whose batches several groups share."""

    def __init__(self, load: Load, options: Options) -> None:
        self._transcriber, self._options = load(), options
        engine = self._transcriber.engine
        name = self._transcriber.settings.model_id
        self._model = Model(name, self._transcriber.is_demonstration, engine.tokenizer.vocabulary)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """The results of a block of pieces. All of them or, when the process ends, none: so nothing is lost or doubled."""
        results = []
        by_language: dict[str | None, list[Piece]] = {}
        for piece in map(pickle.loads, batch["piece"]):
            if piece.failure:
                results.append(Result(piece.task, Outcome(piece.task.recording, 0.0, failure=piece.failure)))
            else:
                by_language.setdefault(piece.task.language, []).append(piece)
        for language, pieces in by_language.items():
            options = replace(self._options, language=language) if language else self._options
            for ended in transcribed(self._transcriber, pieces, _source, options, size=lambda piece: piece.task.recording.size):
                failure = None if ended.transcript else Failure.of(ended.error)
                outcome = Outcome(ended.item.task.recording, ended.seconds, ended.transcript, self._model, failure)
                part = ended.item.source
                place = (part.number, part.is_last) if isinstance(part, Part) else (0, True)
                results.append(Result(ended.item.task, outcome, *place))
        return {"result": [pickle.dumps(result) for result in results]}


def _source(piece: Piece) -> AbstractContextManager[Source | Part]:
    return fetched(piece.task.recording) if piece.source is None else nullcontext(piece.source)


def load_transcriber(settings: dict[str, str], threads: int) -> Transcriber:
    """The transcriber of an actor, with the weights of its machine, fetched if they are missing."""
    own = {} if "threads" in settings or os.environ.get(f"{ENVIRONMENT_PREFIX}THREADS") else {"threads": str(threads)}
    return Transcriber(prepared_settings(own | settings))
