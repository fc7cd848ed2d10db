"""The threads that read recordings, one step of one job at a time, fair by client.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): the client that has used the least reading time goes next. How
long a step takes is known only when it is over, so a client's time is charged then.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from ..audio.threads import GivenUp, ReplaceableThreads
from ..errors import WhisperError
from .backlog import FIRST, WATCHDOG

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step of reading. `give_up` is called when `read` takes too long; `read` may go on meanwhile."""

    client: str
    read: Callable[[], None]
    give_up: Callable[[WhisperError], None]


@dataclass(slots=True, eq=False)
class _Client:
    """`start`: the virtual time of its next step, in seconds of reading. `running`: its steps that are being read."""

    start: float
    number: int
    running: int = 0
    steps: deque[Step] = field(default_factory=deque)

    @property
    def order(self) -> tuple[float, int, int]:
        return self.start, self.running, self.number


@dataclass(slots=True, eq=False)
class _Turn:
    """One use of a thread. It takes its step when it begins."""

    began: float = 0.0
    step: Step | None = None


class Readers:
    """Reader threads. Thread-safe. A step takes milliseconds, so the next client is found by looking at each."""

    def __init__(self, count: int) -> None:
        self.threads = ReplaceableThreads(count, "reader")
        self._lock = threading.Lock()
        self._clients: dict[str, _Client] = {}
        self._numbers = itertools.count()
        self._virtual_time = 0.0

    def submit(self, step: Step) -> None:
        """Queue a step behind those of its client."""
        with self._lock:
            client = self._clients.get(step.client)
            if client is None:
                client = self._clients[step.client] = _Client(FIRST if step.client == WATCHDOG else 0.0, next(self._numbers))
            if not client.steps and client.start > FIRST:
                client.start = max(client.start, self._virtual_time)
            client.steps.append(step)
        turn = _Turn()
        self.threads.submit(self._read, turn).add_done_callback(partial(self._end, turn))

    def give_up(self, seconds: float) -> None:
        """Give up the steps that have taken longer than `seconds`, and replace their threads."""
        if count := self.threads.give_up(seconds):
            logger.error("steps of reading that took more than %g s and were given up: %d", seconds, count)

    def close(self) -> None:
        """Drop the queued steps, and wait for those that are being read."""
        self.threads.shutdown(cancel_futures=True)

    def _read(self, turn: _Turn) -> None:
        with self._lock:
            client = min((client for client in self._clients.values() if client.steps), key=lambda client: client.order)
            self._virtual_time = max(self._virtual_time, client.start)
            client.running += 1
            turn.step, turn.began = client.steps.popleft(), time.monotonic()
        turn.step.read()

    def _end(self, turn: _Turn, future: Future[None]) -> None:
        """Charge the time of a step that is over or has been given up."""
        if turn.step is None:  # dropped by `close`
            return
        with self._lock:
            client = self._clients[turn.step.client]
            client.running -= 1
            client.start += time.monotonic() - turn.began
            if not any(client.running or client.steps for client in self._clients.values()):
                # No client waits, so none can be preferred: what each has used is forgotten.
                self._clients.clear()
                self._virtual_time = 0.0
        if isinstance(error := future.exception(), GivenUp):
            turn.step.give_up(error)
        elif error is not None:
            logger.error("a step of reading failed", exc_info=error)
