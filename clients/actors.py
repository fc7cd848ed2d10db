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
from pieces import Joining, Piece, Result, Task, grouped, read
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.exceptions import RayError
from storage import Recording, fetched
from weights import prepared_settings

import whispercore
from whispercore.audio.parts import Part
from whispercore.audio.source import Source
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import ENVIRONMENT_PREFIX

CPUS = 4
"""Cores of an actor without a GPU, where a node has so many."""
CALLS = 2
"""Groups that an actor works on at once, so that its engine does not wait at the end of a group."""
RETRIES = 2
"""How often Ray repeats a call whose actor has ended, before its recordings count as lost."""
BLOCK_BYTES = 64 << 20
"""A block of Ray Data, so that each part of a long recording is one."""
Load = Callable[[], Transcriber]
"""Makes the transcriber of an actor."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machines, and what an actor takes of them. Unset numbers follow from what there is.

    `load`: makes the transcriber of an actor; None: from the settings.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int | None = None
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
        # Without an address Ray would look for the last cluster of this machine, also when it is gone.
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            ray.init(address=address, runtime_env=runtime, logging_level=logging.WARNING, log_to_driver=False)
        except ConnectionError as error:
            raise RequestFailed("no_cluster", f"no Ray cluster at {address}: {error}") from None

    def close(self) -> None:
        """Leave the cluster, and end one that was started here."""
        ray.shutdown()

    def pool(self) -> tuple[int, dict[str, float]]:
        """How many actors, and the resources of each. Raises RequestFailed when no node has room for one."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus if self.gpus is not None else float(any(node.get("GPU") for node in nodes))
        name = "GPU" if gpus else "CPU"
        there = [node.get(name, 0.0) for node in nodes]
        each = gpus or float(self.cpus or min(CPUS, max(there)))
        if not gpus and self.actors and self.actors * each > sum(there):
            each = _share(sum(there) / self.actors)
        room = sum(math.floor(cores / each + 1e-6) for cores in there)
        if not room:
            advice = "see --cpus-per-actor and --gpus-per-actor"
            raise RequestFailed("no_room", f"an actor needs {each:g} {name}, the largest node has {max(there):g}: {advice}")
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
    actors, resources = cluster.pool()
    threads = max(1, int(resources["num_cpus"])) if "num_cpus" in resources else 0
    load = cluster.load or functools.partial(load_transcriber, dict(settings), threads)
    pipeline = Pipeline(load, options, part_seconds, actors, resources, calls=1 if alone else CALLS)
    joining = Joining(options)
    tasks = [Task(recording) for recording in recordings]
    while tasks:
        for result in pipeline.results([[task] for task in tasks] if alone else grouped(tasks, pipeline.actors)):
            if outcome := joining.add(result):
                yield outcome
        tasks = joining.take_again()


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
        pieces = rows.flat_map(reading, compute=TaskPoolStrategy(size=min(max(2, self.actors), len(groups))), num_cpus=0)
        working: dict[str, Any] = {"batch_size": None, "compute": pool, "max_task_retries": RETRIES, **self.resources}
        try:
            for row in pieces.map_batches(Worker, fn_constructor_args=(self.load, self.options), **working).iter_rows():
                yield pickle.loads(row["result"])
        except RayError as error:  # no actor can be made
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise RequestFailed("no_actor", f"Ray ends the run: {lines[-1].strip()}") from error


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
    """The transcriber of an actor, with the weights of its machine, fetched if they are missing.

    `threads`: unless the setting is given; 0: those that the core chooses.
    """
    own = {} if "threads" in settings or os.environ.get(f"{ENVIRONMENT_PREFIX}THREADS") else {"threads": str(threads)}
    return Transcriber(prepared_settings(own | settings))
