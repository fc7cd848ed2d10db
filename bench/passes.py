"""One pass of a runner over a set of recordings: hypotheses, failures, wall time and processor time."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import psutil

from whispercore.errors import WhisperError

from .datasets import Recording, Set
from .peers import Hypothesis, Transcribe
from .work import ROOT


@dataclass(frozen=True, slots=True)
class Pass:
    """The result: a hypothesis for every recording, empty where the runner failed; messages of the failures;
    seconds."""

    hypotheses: list[Hypothesis]
    failures: list[str]
    seconds: float
    cpu_seconds: float


def run_pass(transcribe: Transcribe, dataset: Set, *, together: int, tick: Callable[[], None]) -> Pass:
    """Transcribe all recordings of the set, `together` of them open at any time.

    `tick` is called after each recording.
    """
    failures: list[str] = []

    def attempt(recording: Recording) -> Hypothesis:
        try:
            return transcribe(recording.path, dataset.timed, recording.language if dataset.language_given else None)
        except Exception as error:  # a peer may raise anything; a failure belongs to the row's result
            failures.append(f"{recording.path.name}: {reason(error)}")
            return Hypothesis("")
        finally:
            tick()

    began, cpu = time.perf_counter(), processor_seconds()
    with ThreadPoolExecutor(together) as pool:
        hypotheses = list(pool.map(attempt, dataset.recordings))
    return Pass(hypotheses, failures, time.perf_counter() - began, processor_seconds() - cpu)


def reason(error: Exception) -> str:
    """The first line of an error, without this checkout's path in it."""
    line = (str(error) or "no message").splitlines()[0].replace(f"{ROOT}/", "")
    return line if isinstance(error, WhisperError) else f"{type(error).__name__}: {line}"


def processor_seconds() -> float:
    """Processor time of this process and of all its children, running or ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            seconds += times.user + times.system
    return seconds
