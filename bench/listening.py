"""A runner hears a set of recordings: what it heard, what failed, and the wall and processor time it took."""

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
from .peers import Hear, Heard
from .work import ROOT

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Pass:
    """What a runner heard in each recording, nothing where it failed; wall and processor seconds it took."""

    heard: list[Heard]
    failures: list[str]
    seconds: float
    cpu_seconds: float


def listen(hear: Hear, heard_set: Set, *, together: int, tick: Tick) -> Pass:
    """All recordings of the set, `together` of them open at any time."""
    failures: list[str] = []

    def attempt(recording: Recording) -> Heard:
        try:
            return hear(recording.path, heard_set.timed, recording.language if heard_set.told else None)
        except Exception as error:  # a peer may raise anything: it is the row's result, and no reason to stop
            failures.append(f"{recording.path.name}: {reason(error)}")
            return Heard("")
        finally:
            tick()

    began, cpu = time.perf_counter(), processor_seconds()
    with ThreadPoolExecutor(together) as pool:
        heard = list(pool.map(attempt, heard_set.recordings))
    return Pass(heard, failures, time.perf_counter() - began, processor_seconds() - cpu)


def reason(error: Exception) -> str:
    """The first line of an error, without this checkout's path in it."""
    line = (str(error) or "no message").splitlines()[0].replace(f"{ROOT}/", "")
    return line if isinstance(error, WhisperError) else f"{type(error).__name__}: {line}"


def processor_seconds() -> float:
    """Processor time of this process and of its children, those that still run and those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            spent += times.user + times.system
    return spent
