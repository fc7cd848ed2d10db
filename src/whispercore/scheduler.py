"""Continuous batching: windows of every open request share the engine, fair by request.

Knows nothing of HTTP or TorchServe. Which window comes next is weighted fair queueing (Demers, Keshav and Shenker, 1989) with one
window as the unit: the virtual time advances by one over the number of requests that wait, and a new request starts at it. So a
clip's only window goes into the next batch however many windows a long file has waiting, and a stream of clips cannot starve the file.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from .engines import Engine
from .errors import EngineError, OutOfMemory, Overloaded, WhisperError
from .types import Decoded, Window

logger = logging.getLogger(__name__)

Done = Callable[["Decoded | WhisperError"], None]
COMPANY = 0.02
"""Of a batch's time, at most so much is waited for as many requests to come back: clients that ask again as soon as they are answered
come a moment apart, and the first one's window would go alone while all the others wait for it."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place in the queue: its next window's virtual start, the windows asked for and waiting, whether it still wants them."""

    next_start: float = 0.0
    asked: int = 0
    waiting: int = 0
    cancelled: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A window in the queue, ordered by its virtual start; of equals, the request's that has asked for least, then the first to come."""

    virtual_start: float
    nth: int
    arrival: int
    window: Window = field(compare=False)
    ticket: Ticket = field(compare=False)
    done: Done = field(compare=False)


@dataclass(slots=True)
class Counters:
    """What the scheduler has done since it began."""

    windows: int = 0
    batches: int = 0
    retries_at_higher_temperature: int = 0
    out_of_memory: int = 0
    failed_batches: int = 0


class Scheduler:
    """One engine, one thread. `submit` returns at once; `done` is called from the scheduler's thread and must be quick."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.counters = Counters()
        self.batch_limit = engine.max_batch
        self._queues: dict[Hashable, list[Entry]] = {}
        self._arrivals = itertools.count()
        self._virtual_time = 0.0
        self._tickets_waiting = 0
        self._changed = threading.Condition()
        self._closing = False
        self._company, self._company_until = 0, 0.0
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket, window: Window, done: Done) -> None:
        """Queue a window. `done` gets the `Decoded`, or the error; nothing is called for a cancelled ticket."""
        with self._changed:
            if self._closing:
                raise Overloaded("the server is shutting down")
            start = max(self._virtual_time, ticket.next_start)
            ticket.next_start = start + 1.0
            self._push(Entry(start, ticket.asked, next(self._arrivals), window, ticket, done))
            self._changed.notify()

    def waiting(self) -> int:
        """Windows in the queue."""
        with self._changed:
            return sum(len(queue) for queue in self._queues.values())

    def close(self) -> None:
        """Decode what is queued, then stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _push(self, entry: Entry) -> None:
        heapq.heappush(self._queues.setdefault(self.engine.batch_key(entry.window.decoding), []), entry)
        entry.ticket.asked += 1
        entry.ticket.waiting += 1
        self._tickets_waiting += entry.ticket.waiting == 1

    def _pop(self, queue: list[Entry]) -> Entry:
        entry = heapq.heappop(queue)
        self._virtual_time = max(self._virtual_time, entry.virtual_start) + 1.0 / self._tickets_waiting
        entry.ticket.waiting -= 1
        self._tickets_waiting -= entry.ticket.waiting == 0
        return entry

    def _run(self) -> None:
        while batch := self._next_batch():
            began = time.monotonic()
            outcomes = self._decode(batch)
            ended = time.monotonic()
            self._company, self._company_until = len({entry.ticket for entry in batch}), ended + COMPANY * (ended - began)
            for entry, outcome in zip(batch, outcomes, strict=True):
                self._deliver(entry, outcome)

    def _next_batch(self) -> list[Entry]:
        """The next entries to decode together, waiting for the first; empty when closing and nothing is left."""
        with self._changed:
            while True:
                self._await_company()
                while self._queues:
                    if batch := self._take(min(self._queues, key=lambda key: self._queues[key][0])):
                        return batch
                if self._closing:
                    return []
                self._changed.wait()

    def _await_company(self) -> None:
        """While fewer requests wait than the last batch answered, wait for the others, for a moment."""
        while 0 < self._tickets_waiting < self._company and not self._closing and (left := self._company_until - time.monotonic()) > 0:
            self._changed.wait(left)

    def _take(self, key: Hashable) -> list[Entry]:
        """Up to `batch_limit` entries of one queue, the cancelled ones dropped; an empty queue is removed."""
        queue = self._queues[key]
        batch: list[Entry] = []
        while queue and len(batch) < self.batch_limit:
            entry = self._pop(queue)
            if not entry.ticket.cancelled:
                batch.append(entry)
        if not queue:
            del self._queues[key]
        return batch

    def _decode(self, batch: list[Entry]) -> list[Decoded | WhisperError]:
        """Decode a batch; halved when the memory is short, one by one when a window breaks it, so that none harms another."""
        try:
            decoded = self._attempt(batch)
        except OutOfMemory as error:
            self.counters.out_of_memory += 1
            self.engine.free_memory()
            if len(batch) == 1:
                return [error]
            self.batch_limit = min(self.batch_limit, len(batch) // 2)
            logger.warning("out of memory with %d windows; batches are at most %d from now on", len(batch), self.batch_limit)
            half = len(batch) // 2
            return self._decode(batch[:half]) + self._decode(batch[half:])
        except WhisperError as error:
            self.counters.failed_batches += 1
            logger.error("a batch of %d windows failed: %s", len(batch), error.message)
            if len(batch) == 1:
                return [error]
            return [outcome for entry in batch for outcome in self._decode([entry])]
        return list(decoded)

    def _attempt(self, batch: list[Entry]) -> list[Decoded]:
        windows = [entry.window for entry in batch]
        try:
            decoded = self.engine.decode(windows)
        except WhisperError:
            raise
        except MemoryError as error:
            raise OutOfMemory("the machine is out of memory") from error
        except Exception as error:  # an engine's own exceptions must not end the thread that everybody waits for
            logger.exception("the engine failed")
            raise EngineError(f"the engine failed: {error}") from error
        if len(decoded) != len(windows):
            raise EngineError(f"the engine answered {len(decoded)} of {len(windows)} windows")
        self.counters.batches += 1
        self.counters.windows += len(windows)
        self.counters.retries_at_higher_temperature += sum(window.decoding.temperature > 0 for window in windows)
        return decoded

    @staticmethod
    def _deliver(entry: Entry, outcome: Decoded | WhisperError) -> None:
        if entry.ticket.cancelled:
            return
        try:
            entry.done(outcome)
        except Exception:
            logger.exception("a request could not take its window")
