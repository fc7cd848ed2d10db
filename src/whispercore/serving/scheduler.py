"""Continuous batching: the windows of all open requests share the engines, fairly by client and by request.

Knows nothing of HTTP or TorchServe.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue

from ..engines import Engine, ParallelEngine, RefillingEngine, Result
from ..errors import EngineError, OutOfMemory, Overloaded, WhisperError
from ..types import Decoded, Window
from .backlog import Backlog, OnOutcome, Outcome, QueuedRequest, QueuedWindow
from .lanes import Lanes, LastBatch
from .turns import Turn

logger = logging.getLogger(__name__)

WAIT_FOR_READING = 0.1
"""Share of the last batch's time. The engine waits this long at most for more windows of a file that is being read: its
first window alone takes a CPU as long as a batch of three. It also waits for requests whose first window is being read."""
SECOND_LOOK = 0.01
"""Share of the last batch's time. An idle engine waits this long after its first window until it looks for requests that
arrived with it: of 32 clips that are sent at once the first would be decoded alone."""
WAIT_FOR_OUTCOMES = 0.1
"""Seconds. When less than a full batch is queued, the engine waits this long at most until the last outcomes are
processed. Processing takes about 1 ms a window and may lead to another window of the same request, such as a retry."""
CLIPS_SHARE = 4
"""The share, one in so many, of a full batch that is decoded when a clip waits beside a longer recording. The windows of the longer one
take a fifth more time in it."""
CLIPS_SECONDS = 10.0
"""For this long after a clip the lanes' batches of longer recordings are half of full ones, because another clip is likely to come: a lane
is free sooner. With base a window takes six percent more time in a batch of two than in one of four."""
SMOOTHING = 0.2
"""The weight of the last batch in the mean speed."""
FORGETTING = 0.98
"""What a batch leaves of the longest batch's time: compiling makes the first one long, and limits grow with the longest."""


@dataclass(slots=True)
class Counters:
    """What the schedulers of a process have done since it began. Change them while holding `lock`."""

    windows: int = 0
    batches: int = 0
    retries_at_higher_temperature: int = 0
    out_of_memory: int = 0
    failed_batches: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)


class Scheduler:
    """One queue, one thread for each lane of an engine, and one thread for outcomes.

    Several engines are the same model on several devices. The lanes of an engine decode batches of their own, so a core
    does not wait for the longest text of another core's windows, and replies are made while others decode. Several
    schedulers may serve several models on the same devices: `turns` has the turn at the device of each engine, None
    where the models run beside each other.

    `submit` returns at once. The outcome thread calls `on_outcome`, one window at a time: processing a window's text
    takes 0.8 ms of CPU, 1.8 ms with words, and the engines decode meanwhile.
    """

    def __init__(self, *engines: Engine, turns: Sequence[Turn] | None = None, counters: Counters | None = None) -> None:
        """`counters`: those of the other schedulers of the process, which count together."""
        self.engines = engines
        self.counters = counters or Counters()
        self._lanes = [Lanes(engine, turns[number % len(turns)] if turns else None) for number, engine in enumerate(engines)]
        self.batch_limit = min(lanes.batch_limit for lanes in self._lanes)
        self._backlog = Backlog()
        self._changed = threading.Condition()
        self._closing = False
        self._outcomes: SimpleQueue[tuple[QueuedWindow, Outcome | Result] | None] = SimpleQueue()
        self._expected: dict[QueuedRequest, float] = {}
        self._unprocessed = 0
        self._last_clip = -math.inf
        self._progress: dict[int, float] = {}  # by thread
        self.longest_seconds = 0.0
        self._speed = 0.0
        self.last_success: float | None = None
        self._outcome_thread = threading.Thread(target=self._process_outcomes, name="outcomes", daemon=True)
        each = [lanes for lanes in self._lanes for _ in range(lanes.count)]
        self._threads = [
            threading.Thread(target=self._run, args=(lanes,), name=f"scheduler-{number}", daemon=True) for number, lanes in enumerate(each)
        ]
        for thread in (self._outcome_thread, *self._threads):
            thread.start()

    def expect(self, request: QueuedRequest) -> None:
        """Note that a request has been accepted, and that its first window is being read. `submit` and `cancel` end that."""
        if request.submitted:  # the usual case, a further step of reading
            return
        with self._changed:
            if not request.submitted and not request.cancelled:
                self._expected.setdefault(request, time.monotonic())

    def submit(self, request: QueuedRequest, window: Window, on_outcome: OnOutcome) -> None:
        """Queue a window. `on_outcome` gets the `Decoded` or the error; it is not called for a cancelled request."""
        with self._changed:
            if self._closing:
                raise Overloaded("the server is shutting down")
            self._expected.pop(request, None)
            self._backlog.push(self.engines[0].batch_key(window.decoding), request, window, on_outcome)
            self._changed.notify_all()

    def set_more_coming(self, request: QueuedRequest, more_coming: bool) -> None:
        """Note whether the request will submit more windows within a moment."""
        if request.more_coming == more_coming:  # the usual case, for which the engines' threads need not wake up
            return
        with self._changed:
            request.more_coming = more_coming
            self._changed.notify_all()

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the lane that works longest without a result began or gave its last one; 0.0 when all are idle."""
        now = time.monotonic()
        return max((now - since for since in list(self._progress.values())), default=0.0)

    @property
    def speed(self) -> float:
        """Seconds of audio that all engines decode in a second, by their last batches; 0.0 before the first one."""
        return self._speed * len(self.engines)

    @property
    def windows_at_once(self) -> int:
        """The most windows that are decoded at the same time."""
        return self.batch_limit * sum(lanes.count for lanes in self._lanes)

    def cancel(self, request: QueuedRequest) -> None:
        """Drop the request's queued windows; those that are being decoded are ignored."""
        with self._changed:
            self._backlog.cancel(request)
            if self._expected.pop(request, None):
                self._changed.notify_all()

    def waiting(self) -> int:
        """The number of windows in the queue."""
        with self._changed:
            return len(self._backlog)

    def close(self) -> None:
        """Decode what is queued, deliver every outcome, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._outcomes.put(None)
        self._outcome_thread.join()

    def _run(self, lanes: Lanes) -> None:
        while (key := self._next_key(lanes)) is not None:
            with lanes.turn.held_by(self) if lanes.turn else nullcontext():
                self._progress[threading.get_ident()] = time.monotonic()
                if isinstance(lanes.engine, RefillingEngine):
                    self._refill(lanes, lanes.engine, key)
                else:
                    self._decode_batch(lanes, key)
                del self._progress[threading.get_ident()]

    def _next_key(self, lanes: Lanes) -> Hashable | None:
        """Wait for windows and a free lane. Returns the batch key of the windows that are next; None at the end of a closing scheduler."""
        with self._changed:
            was_idle = False
            while True:
                self._await_more_windows(lanes, was_idle)
                if lanes.free and (key := self._backlog.next_key()) is not None:
                    return key
                if self._closing and not len(self._backlog):
                    return None
                was_idle = True
                self._changed.wait()

    def _await_more_windows(self, lanes: Lanes, was_idle: bool) -> None:
        """Wait while windows are about to arrive that should share the next batch, or come before it."""
        began = time.monotonic()
        while len(self._backlog) and lanes.free and not self._closing:
            if (seconds := self._wait_until(lanes, began, was_idle) - time.monotonic()) <= 0:
                return
            self._changed.wait(seconds)

    def _wait_until(self, lanes: Lanes, began: float, was_idle: bool) -> float:
        """The time until which a free lane waits for more windows, 0.0 when there is no reason to wait. `began`: when it began to."""
        last, is_full = lanes.latest, len(self._backlog) >= self.batch_limit * lanes.free
        deadlines = [lanes.requests_expected_until(self._backlog.requests)]
        if not is_full and (self._backlog.more_coming or self._is_reading(last)):
            deadlines.append(began + WAIT_FOR_READING * last.seconds)
        if not is_full and was_idle:
            deadlines.append(began + SECOND_LOOK * last.seconds)
        if self._unprocessed and not is_full:
            deadlines.append(last.ended + WAIT_FOR_OUTCOMES)
        return max(deadlines)

    def _is_reading(self, last: LastBatch) -> bool:
        """Whether a request's first window is being read. One that was before the last batch began is not waited for again."""
        return any(accepted > last.ended - last.seconds for accepted in self._expected.values())

    def _pop(self, key: Hashable, limit: int, parts: int) -> list[QueuedWindow]:
        """Up to `limit` windows, at most one of so many equal parts of the queue. Wakes the other lanes for the rest."""
        popped = self._backlog.pop(key, min(limit, -(-len(self._backlog) // parts)))
        if len(self._backlog):
            self._changed.notify_all()
        return popped

    def _decode_batch(self, lanes: Lanes, key: Hashable) -> None:
        """Decode one batch and deliver the outcomes."""
        with self._changed:
            waiting = len(self._backlog)
            if not lanes.free or not (batch := self._pop(key, self._batch_size(lanes), self._parts())):
                return
            width = lanes.take(waiting)
        began = time.monotonic()
        try:
            outcomes = self._decode(lanes, width, batch)
        except Exception as error:  # of the recovery from an error, such as freeing memory: the thread must go on
            logger.exception("a batch failed")
            outcomes = [EngineError(f"the engine failed: {error}") for _ in batch]
        ended = time.monotonic()
        self._deliver_all(batch, outcomes)
        with self._changed:
            lanes.give_back(width, LastBatch(frozenset(queued.request for queued in batch), ended, ended - began))
            self._changed.notify_all()

    def _parts(self) -> int:
        """Among how many lanes the queue is divided: those that are free.

        The last windows of a single recording are divided among all of them. Otherwise the lane that is free first would take them all,
        and the others would be idle while it decodes.
        """
        is_end = self._backlog.requests == 1 and not self._backlog.more_coming
        return sum(lanes.count if is_end else lanes.free for lanes in self._lanes)

    def _batch_size(self, lanes: Lanes) -> int:
        """The most windows of the next batch: fewer when clips wait beside longer recordings, so that the clips' replies come sooner.

        A clip has waited for the batch before. A full batch would keep it as long again, for windows of a recording whose reply comes
        later anyway.
        """
        if not self._backlog.has_longer:
            return self.batch_limit
        if clips := self._backlog.clips:
            self._last_clip = time.monotonic()
            return min(self.batch_limit, max(2 * clips, self.batch_limit // CLIPS_SHARE))
        expects_clips = lanes.count > 1 and time.monotonic() - self._last_clip < CLIPS_SECONDS
        return max(1, self.batch_limit // 2) if expects_clips else self.batch_limit

    def _refill(self, lanes: Lanes, engine: RefillingEngine, key: Hashable) -> None:
        """Let the engine take windows whenever it has room. Windows that it could not finish are decoded in batches."""
        feed = _Feed(self, key, lanes.turn)
        try:
            engine.decode_feed(feed)
        except OutOfMemory as error:
            self._shrink(engine, len(feed.unfinished), error)
        except WhisperError as error:
            self._note_failure(len(feed.unfinished), error)
        except Exception as error:  # an exception of the engine's own must not end the thread that serves all requests
            logger.exception("the engine failed")
            self._note_failure(len(feed.unfinished), EngineError(str(error)))
        unfinished = list(feed.unfinished.values())
        for first in range(0, len(unfinished), self.batch_limit):
            batch = unfinished[first : first + self.batch_limit]
            self._deliver_all(batch, self._decode(lanes, 1, batch))
        with self._changed:
            lanes.latest = LastBatch(ended=time.monotonic())

    def feed(self, key: Hashable, limit: int, at_least: int) -> list[QueuedWindow]:
        """Up to `limit` windows with this key, for an engine with free slots.

        None when another key is next, or when fewer than `at_least` are queued. Without windows it costs no lock, as an engine
        asks between any two rounds of steps.
        """
        if len(self._backlog) < at_least:
            return []
        with self._changed:
            popped = self._pop(key, limit, len(self.engines)) if self._backlog.next_key() == key else []
        if popped:
            self.count([queued.window for queued in popped])
        return popped

    def count(self, windows: Sequence[Window]) -> None:
        """Count a batch."""
        with self.counters.lock:
            self.counters.batches += 1
            self.counters.windows += len(windows)
            self.counters.retries_at_higher_temperature += sum(window.decoding.temperature > 0 for window in windows)

    def deliver(self, queued: QueuedWindow, outcome: Outcome | Result) -> None:
        """Hand an outcome, or what makes it, to the outcome thread, which processes it."""
        if isinstance(outcome, Decoded):
            self.last_success = time.monotonic()
        with self._changed:
            self._unprocessed += 1
        self._outcomes.put((queued, outcome))

    def note_progress(self, window: Window) -> None:
        """An engine that refills its slots, and whose thread calls this, has finished a window."""
        now, thread = time.monotonic(), threading.get_ident()
        self._note_speed(now - self._progress.get(thread, now), window.duration)
        self._progress[thread] = now

    def _note_speed(self, seconds: float, audio_seconds: float) -> None:
        self.longest_seconds = max(FORGETTING * self.longest_seconds, seconds)
        speed = audio_seconds / max(seconds, 1e-3)
        self._speed += (SMOOTHING if self._speed else 1.0) * (speed - self._speed)

    def _deliver_all(self, batch: list[QueuedWindow], outcomes: list[Outcome]) -> None:
        for queued, outcome in zip(batch, outcomes, strict=True):
            self.deliver(queued, outcome)

    def _process_outcomes(self) -> None:
        """The outcome thread: process outcomes in the order of their delivery, until None comes."""
        while (delivered := self._outcomes.get()) is not None:
            self._process(*delivered)
            del delivered  # the samples of a window must not stay in memory until the next one comes

    def _process(self, queued: QueuedWindow, outcome: Outcome | Result) -> None:
        try:
            if not queued.request.cancelled:
                queued.on_outcome(self._made(outcome) if callable(outcome) else outcome)
        except Exception:
            logger.exception("a request could not process its window")
        finally:
            with self._changed:
                self._unprocessed -= 1
                if not self._unprocessed:
                    self._changed.notify_all()

    def _made(self, result: Result) -> Outcome:
        """The result of an engine that leaves the last part of its work to the outcome thread."""
        try:
            decoded = result()
            self.last_success = time.monotonic()
            return decoded
        except WhisperError as error:
            failure = error
        except Exception as error:  # an exception of the engine's own must end no more than this window
            logger.exception("the engine failed")
            failure = EngineError(f"the engine failed: {error}")
        self._note_failure(1, failure)
        return failure

    def _decode(self, lanes: Lanes, width: int, batch: list[QueuedWindow]) -> list[Outcome]:
        """Decode a batch: in halves when memory is short, window by window when one of them breaks it."""
        try:
            decoded = self._attempt(lanes, width, [queued.window for queued in batch])
        except OutOfMemory as error:
            self._shrink(lanes.engine, len(batch), error)
            if len(batch) == 1:
                return [error]
            half = len(batch) // 2
            return self._decode(lanes, width, batch[:half]) + self._decode(lanes, width, batch[half:])
        except WhisperError as error:
            self._note_failure(len(batch), error)
            if len(batch) == 1:
                return [error]
            return [outcome for queued in batch for outcome in self._decode(lanes, width, [queued])]
        return list(decoded)

    def _attempt(self, lanes: Lanes, width: int, windows: list[Window]) -> list[Decoded]:
        """Decode once. Raises OutOfMemory or another EngineError."""
        try:
            began = time.monotonic()
            decoded = _decode_on(lanes, width, windows)
            self._note_speed(time.monotonic() - began, sum(window.duration for window in windows) * lanes.count / width)
            self._progress[threading.get_ident()] = time.monotonic()
        except WhisperError:
            raise
        except MemoryError as error:
            raise OutOfMemory("the machine is out of memory") from error
        except Exception as error:  # an exception of the engine's own must not end the thread that serves all requests
            logger.exception("the engine failed")
            raise EngineError(f"the engine failed: {error}") from error
        if len(decoded) != len(windows):
            raise EngineError(f"the engine answered {len(decoded)} of {len(windows)} windows")
        self.count(windows)
        return decoded

    def _shrink(self, engine: Engine, windows: int, error: OutOfMemory) -> None:
        """Free cached memory and make smaller batches from now on."""
        engine.free_memory()
        with self.counters.lock:
            self.counters.out_of_memory += 1
        with self._changed:
            if windows > 1:
                self.batch_limit = min(self.batch_limit, windows // 2)
        logger.warning("%s with %d windows; batches are at most %d from now on", error.message, windows, self.batch_limit)

    def _note_failure(self, windows: int, error: WhisperError) -> None:
        with self.counters.lock:
            self.counters.failed_batches += 1
        logger.error("a batch of %d windows failed: %s", windows, error.message)


def _decode_on(lanes: Lanes, width: int, windows: list[Window]) -> list[Decoded]:
    """Decode on `width` lanes."""
    if isinstance(lanes.engine, ParallelEngine) and width < lanes.count:
        return lanes.engine.decode_on(width, windows)
    return lanes.engine.decode(windows)


class _Feed:
    """The queued windows of one batch key, for an engine that refills its slots.

    `unfinished`: windows that were taken and are not done. While another model wants the turn, there are no more: the
    engine finishes those that it has, and its turn ends.
    """

    def __init__(self, scheduler: Scheduler, key: Hashable, turn: Turn | None) -> None:
        self._scheduler, self._key, self._turn = scheduler, key, turn
        self._began = False
        self.unfinished: dict[int, QueuedWindow] = {}

    def take(self, most: int, *, at_least: int = 1) -> list[Window]:
        """Up to `most` windows that are queued now; none when fewer than `at_least` are."""
        if self._began and self._turn and self._turn.is_wanted:
            return []
        self._began = True
        room = min(most, self._scheduler.batch_limit - len(self.unfinished))
        batch = self._scheduler.feed(self._key, room, at_least) if room > 0 else []
        self.unfinished.update((id(queued.window), queued) for queued in batch)
        return [queued.window for queued in batch]

    def done(self, window: Window, result: Result) -> None:
        """Deliver one window's result."""
        self._scheduler.note_progress(window)
        self._scheduler.deliver(self.unfinished.pop(id(window)), result)
