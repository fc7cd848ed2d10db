"""Continuous batching: windows of every open request share the engines, fair by request. Knows nothing of HTTP or TorchServe."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..engines import Engine, RefillingEngine
from ..errors import EngineError, OutOfMemory, Overloaded, WhisperError
from ..types import Decoded, Window
from .backlog import Backlog, Done, Entry, Ticket

logger = logging.getLogger(__name__)

COMPANY = 0.05
"""Of a batch's time, at most so much is waited for as many requests to come back: clients that ask again as soon as they are answered
come a moment apart, and the first one's window would go alone while all the others wait for it. At 0.02 eight clips at once made batches of
4.0 to 5.7 windows on a busy machine, at 0.05 of 5.7, the most that 40 clips can make."""
READING = 0.1
"""Of the last batch's time, at most so much is waited for the windows of a file that is being read: its first one would go alone, which
takes a CPU as long as three in company."""


@dataclass(slots=True)
class Counters:
    """What the scheduler has done since it began."""

    windows: int = 0
    batches: int = 0
    retries_at_higher_temperature: int = 0
    out_of_memory: int = 0
    failed_batches: int = 0


@dataclass(slots=True)
class Company:
    """How many requests a batch has answered, until when as many are waited for, and how many seconds the batch took."""

    requests: int = 0
    until: float = 0.0
    seconds: float = 0.0


class Scheduler:
    """One queue, and a thread for each engine: several are the same model on several devices.

    `submit` returns at once; `done` is called from an engine's thread and must be quick.
    """

    def __init__(self, *engines: Engine) -> None:
        self.engines = engines
        self.counters = Counters()
        self.batch_limit = min(engine.max_batch for engine in engines)
        self._backlog = Backlog()
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, args=(engine,), name=f"scheduler-{number}", daemon=True)
            for number, engine in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ticket: Ticket, window: Window, done: Done) -> None:
        """Queue a window. `done` gets the `Decoded`, or the error; nothing is called for a cancelled ticket."""
        with self._changed:
            if self._closing:
                raise Overloaded("the server is shutting down")
            self._backlog.push(self.engines[0].batch_key(window.decoding), ticket, window, done)
            self._changed.notify_all()

    def being_read(self, ticket: Ticket, more: bool) -> None:
        """Whether the request will ask for more windows within a moment."""
        if ticket.being_read == more:  # as after most windows: no reason to wake the engines' threads
            return
        with self._changed:
            ticket.being_read = more
            self._changed.notify_all()

    def waiting(self) -> int:
        """Windows in the queue."""
        with self._changed:
            return len(self._backlog)

    def close(self) -> None:
        """Decode what is queued, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, engine: Engine) -> None:
        company = Company()
        while (key := self._next_key(company)) is not None:
            company = self._refill(engine, key) if isinstance(engine, RefillingEngine) else self._batch(engine, key)

    def _next_key(self, company: Company) -> Hashable | None:
        """The key of the windows whose turn it is, waited for; None when closing and nothing is left."""
        with self._changed:
            while True:
                self._await_company(company)
                if (key := self._backlog.first()) is not None:
                    return key
                if self._closing:
                    return None
                self._changed.wait()

    def _await_company(self, company: Company) -> None:
        """Wait, for a moment, while fewer requests wait than the last batch answered, or while more of their windows are being read."""
        read_until = time.monotonic() + READING * company.seconds
        while len(self._backlog) and not self._closing:
            fewer = self._backlog.requests < company.requests
            reading = len(self._backlog) < self.batch_limit and self._backlog.being_read
            left = max(company.until if fewer else 0.0, read_until if reading else 0.0) - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _take(self, key: Hashable, most: int) -> list[Entry]:
        """Up to `most` entries, and no more than this engine's share; the others are told when there is more."""
        share = -(-len(self._backlog) // len(self.engines))
        taken = self._backlog.take(key, min(most, share))
        if len(self._backlog):
            self._changed.notify_all()
        return taken

    def _batch(self, engine: Engine, key: Hashable) -> Company:
        """Decode one batch and deliver what came of it."""
        with self._changed:
            batch = self._take(key, self.batch_limit)
        if not batch:
            return Company()
        began = time.monotonic()
        outcomes = self._decode(engine, batch)
        ended = time.monotonic()
        for entry, outcome in zip(batch, outcomes, strict=True):
            _deliver(entry, outcome)
        return Company(len({entry.ticket for entry in batch}), ended + COMPANY * (ended - began), ended - began)

    def _refill(self, engine: RefillingEngine, key: Hashable) -> Company:
        """Let the engine take windows as it has room; what it could not finish is decoded in batches."""
        feed = _Feed(self, key)
        try:
            engine.decode_feed(feed)
        except OutOfMemory as error:
            self._shrink(engine, len(feed.taken), error)
        except WhisperError as error:
            self._note_failure(len(feed.taken), error)
        except Exception as error:  # an engine's own exceptions must not end the thread that everybody waits for
            logger.exception("the engine failed")
            self._note_failure(len(feed.taken), EngineError(str(error)))
        left = list(feed.taken.values())
        for first in range(0, len(left), self.batch_limit):
            batch = left[first : first + self.batch_limit]
            for entry, outcome in zip(batch, self._decode(engine, batch), strict=True):
                _deliver(entry, outcome)
        return Company()

    def feed(self, key: Hashable, most: int) -> list[Entry]:
        """Entries for an engine that has room for `most`: none when it is the turn of windows that cannot join those."""
        with self._changed:
            taken = self._take(key, most) if self._backlog.first() == key else []
        if taken:
            self.count([entry.window for entry in taken])
        return taken

    def count(self, windows: Sequence[Window]) -> None:
        """Count a batch."""
        with self._changed:
            self.counters.batches += 1
            self.counters.windows += len(windows)
            self.counters.retries_at_higher_temperature += sum(window.decoding.temperature > 0 for window in windows)

    def _decode(self, engine: Engine, batch: list[Entry]) -> list[Decoded | WhisperError]:
        """Decode a batch; halved when the memory is short, one by one when a window breaks it, so that none harms another."""
        try:
            decoded = self._attempt(engine, [entry.window for entry in batch])
        except OutOfMemory as error:
            self._shrink(engine, len(batch), error)
            if len(batch) == 1:
                return [error]
            half = len(batch) // 2
            return self._decode(engine, batch[:half]) + self._decode(engine, batch[half:])
        except WhisperError as error:
            self._note_failure(len(batch), error)
            if len(batch) == 1:
                return [error]
            return [outcome for entry in batch for outcome in self._decode(engine, [entry])]
        return list(decoded)

    def _attempt(self, engine: Engine, windows: list[Window]) -> list[Decoded]:
        try:
            decoded = engine.decode(windows)
        except WhisperError:
            raise
        except MemoryError as error:
            raise OutOfMemory("the machine is out of memory") from error
        except Exception as error:  # an engine's own exceptions must not end the thread that everybody waits for
            logger.exception("the engine failed")
            raise EngineError(f"the engine failed: {error}") from error
        if len(decoded) != len(windows):
            raise EngineError(f"the engine answered {len(decoded)} of {len(windows)} windows")
        self.count(windows)
        return decoded

    def _shrink(self, engine: Engine, count: int, error: OutOfMemory) -> None:
        """Smaller batches from now on."""
        engine.free_memory()
        with self._changed:
            self.counters.out_of_memory += 1
            if count > 1:
                self.batch_limit = min(self.batch_limit, count // 2)
        logger.warning("%s with %d windows; batches are at most %d from now on", error.message, count, self.batch_limit)

    def _note_failure(self, count: int, error: WhisperError) -> None:
        with self._changed:
            self.counters.failed_batches += 1
        logger.error("a batch of %d windows failed: %s", count, error.message)


class _Feed:
    """Windows of one key for an engine that refills its places; `taken` are those that are not done."""

    def __init__(self, scheduler: Scheduler, key: Hashable) -> None:
        self._scheduler, self._key = scheduler, key
        self.taken: dict[int, Entry] = {}

    def take(self, most: int) -> list[Window]:
        """Up to `most` windows that wait now."""
        room = min(most, self._scheduler.batch_limit - len(self.taken))
        entries = self._scheduler.feed(self._key, room) if room > 0 else []
        self.taken.update((id(entry.window), entry) for entry in entries)
        return [entry.window for entry in entries]

    def done(self, window: Window, result: Decoded) -> None:
        """Deliver one."""
        _deliver(self.taken.pop(id(window)), result)


def _deliver(entry: Entry, outcome: Decoded | WhisperError) -> None:
    if entry.ticket.cancelled:
        return
    try:
        entry.done(outcome)
    except Exception:
        logger.exception("a request could not take its window")
