"""The lanes on which recordings are read, one step of one job at a time on each, fair by client.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): the client that has used the least reading time goes next. How
long a step takes is known only when it is over, so a client's time is charged then.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from ..audio.threads import GivenUp, ReplaceableThreads
from ..devices import logical_cores
from ..errors import WhisperError
from .backlog import FIRST, WATCHDOG
from .processes import Processes, ReaderProcess

logger = logging.getLogger(__name__)

_MOST_DECODING_PROCESSES = 4
"""For one recording. With more the process that joins their samples and detects voices is the slowest (bench/profile.md)."""


class Lane:
    """Reads one step at a time, on a thread; with `processes` the thread waits for a process.

    `jobs`: those that read here. `seconds`: the most that a process may take for a step; 0: any.
    """

    def __init__(self, processes: Processes | None) -> None:
        self.jobs = 0
        self.is_busy = False
        self.seconds = processes.seconds if processes else 0.0
        self._processes = processes
        self._process: ReaderProcess | None = None
        self._lock = threading.Lock()

    @property
    def order(self) -> tuple[bool, int]:
        """The lane that takes the next job is the least one."""
        return self._processes is not None and not (self._process and self._process.is_ready), self.jobs

    def begin(self) -> None:
        """Begin to start the process."""
        with self._lock:
            if self._processes and not self._process:
                self._process = self._processes.start()

    def process(self) -> ReaderProcess | None:
        """The process that reads here; None when none can be started. Waits until it is ready."""
        with self._lock:
            self._process = self._processes.ready(self._process) if self._processes else None
            return self._process


@dataclass(slots=True, eq=False)
class Binding:
    """The lane on which a job reads, from its first step to its end, and the processes that may decode its recording side by side."""

    lane: Lane | None = None
    decoding_processes: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step of reading. `give_up` is called when `read` takes too long; `read` may go on meanwhile. `binding`: the job's."""

    client: str
    read: Callable[[], None]
    give_up: Callable[[WhisperError], None]
    binding: Binding | None = None


@dataclass(slots=True, eq=False)
class _Client:
    """`start`: the virtual time of its next step, in seconds of reading. `running`: its steps that are being read.

    `steps`: with their numbers, in order, by the lane on which they must be read; None: on any.
    """

    start: float
    number: int
    running: int = 0
    steps: defaultdict[Lane | None, deque[tuple[int, Step]]] = field(default_factory=lambda: defaultdict(deque))

    @property
    def order(self) -> tuple[float, int, int]:
        return self.start, self.running, self.number

    @property
    def waits(self) -> bool:
        """Whether it has queued steps."""
        return any(self.steps.values())

    def queue(self, lane: Lane) -> deque[tuple[int, Step]] | None:
        """The queue of its next step that may be read on a lane."""
        queues = (queue for place in (lane, None) if (queue := self.steps.get(place)))
        return min(queues, key=lambda queue: queue[0][0], default=None)


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A step on its lane."""

    client: _Client
    step: Step
    lane: Lane
    began: float


class Readers:
    """The lanes. Thread-safe. A step takes milliseconds, so the next client is found by looking at each."""

    def __init__(self, count: int, processes: Processes | None = None) -> None:
        """`processes`: read in these, one for each lane; None: on threads of this process."""
        self.threads = ReplaceableThreads(count, "reader")
        self._lanes = [Lane(processes) for _ in range(count)]
        self._spare_cores = logical_cores() // 2
        self._processes = processes
        self._lock = threading.Lock()
        self._clients: dict[str, _Client] = {}
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        self._closed = False
        self._lanes[0].begin()

    def begin(self) -> None:
        """Begin to start all processes. Until then there is only the first, so that they leave the cores to what else starts."""
        for lane in self._lanes:
            lane.begin()

    def wait_until_ready(self) -> None:
        """Wait until the first lane can read."""
        self._lanes[0].process()

    def submit(self, step: Step) -> None:
        """Queue a step behind those of its client. Raises RuntimeError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the readers have been closed")
            client = self._clients.get(step.client)
            if client is None:
                client = self._clients[step.client] = _Client(FIRST if step.client == WATCHDOG else 0.0, next(self._numbers))
            if not client.waits and client.start > FIRST:
                client.start = max(client.start, self._virtual_time)
            client.steps[step.binding.lane if step.binding else None].append((next(self._numbers), step))
            turns = self._turns()
        self._begin(turns)

    def leave(self, binding: Binding) -> None:
        """Note that a job has ended. Ending twice is harmless."""
        with self._lock:
            if binding.lane:
                binding.lane.jobs -= 1
                binding.lane = None
                if binding.decoding_processes > 1:
                    self._spare_cores += binding.decoding_processes
                    binding.decoding_processes = 1

    def give_up(self, seconds: float) -> None:
        """Give up the steps that have taken longer than `seconds`, and replace their threads.

        A thread that waits for a process is spared: the wait has a deadline of its own.
        """
        if count := self.threads.give_up(seconds, self._processes.is_asked_by if self._processes else lambda thread: False):
            logger.error("steps of reading that took more than %g s and were given up: %d", seconds, count)

    def close(self) -> None:
        """Drop the queued steps, end the processes, and wait for the steps that are being read."""
        with self._lock:
            self._closed = True
            self._clients.clear()
        if self._processes:
            self._processes.close()
        self.threads.shutdown(cancel_futures=True)
        if self._processes:
            self._processes.free()

    def _turns(self) -> list[_Turn]:
        """The steps that begin now, each on a free lane."""
        turns: list[_Turn] = []
        while turn := next(filter(None, map(self._turn, sorted(self._free_lanes(), key=lambda lane: lane.order))), None):
            turns.append(turn)
        return turns

    def _free_lanes(self) -> list[Lane]:
        return [lane for lane in self._lanes if not lane.is_busy]

    def _turn(self, lane: Lane) -> _Turn | None:
        """The next step on this lane."""
        client = min((client for client in self._clients.values() if client.queue(lane)), key=lambda client: client.order, default=None)
        if client is None or not (queue := client.queue(lane)):
            return None
        step = queue.popleft()[1]
        self._virtual_time = max(self._virtual_time, client.start)
        client.running += 1
        lane.is_busy = True
        if step.binding and step.binding.lane is None:
            step.binding.lane = lane
            lane.jobs += 1
            if (processes := min(self._spare_cores, _MOST_DECODING_PROCESSES)) > 1:
                self._spare_cores -= processes
                step.binding.decoding_processes = processes
        return _Turn(client, step, lane, time.monotonic())

    def _begin(self, turns: list[_Turn]) -> None:
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            for turn in turns:
                self.threads.submit(turn.step.read).add_done_callback(partial(self._end, turn))

    def _end(self, turn: _Turn, future: Future[None]) -> None:
        """Charge the time of a step that is over or has been given up, and begin those that waited for its lane."""
        with self._lock:
            turn.lane.is_busy = False
            turn.client.running -= 1
            turn.client.start += time.monotonic() - turn.began
            if not any(client.running or client.waits for client in self._clients.values()):
                # No client waits, so none can be preferred: what each has used is forgotten.
                self._clients.clear()
                self._virtual_time = 0.0
            turns = [] if self._closed else self._turns()
        if future.cancelled():
            return
        self._begin(turns)
        if isinstance(error := future.exception(), GivenUp):
            turn.step.give_up(error)
        elif error is not None:
            logger.error("a step of reading failed", exc_info=error)
