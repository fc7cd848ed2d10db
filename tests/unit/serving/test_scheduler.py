"""The scheduler alone, on an engine whose batches the test opens one at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np
import pytest

from whispercore.engines import Feed
from whispercore.errors import EngineError, OutOfMemory, Overloaded, WhisperError
from whispercore.serving.backlog import QueuedRequest
from whispercore.serving.scheduler import Scheduler, _Feed
from whispercore.types import Decoded, Decoding, Window

PATIENCE = 10.0


def decoded(start: float) -> Decoded:
    return Decoded((), str(start), "en", 0.0, 0.0, 0.0, 0.0)


class SteppedEngine:
    """Records each batch as the starts of its windows. Each batch waits for one release of `gate`."""

    name = "stepped"

    def __init__(self, max_batch: int = 4, *, room: int | None = None, poison: float | None = None) -> None:
        self.max_batch = max_batch
        self.room = room or max_batch
        self.poison = poison
        self.batches: list[list[float]] = []
        self.begun: queue.Queue[list[float]] = queue.Queue()
        self.gate = threading.Semaphore(0)
        self.freed = 0

    def batch_key(self, decoding: Decoding) -> Hashable:
        return decoding.temperature

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        starts = [window.start for window in windows]
        self.batches.append(starts)
        self.begun.put(starts)
        assert self.gate.acquire(timeout=PATIENCE)
        if len(windows) > self.room:
            raise OutOfMemory("no room")
        if self.poison in starts:
            raise ZeroDivisionError("a window that breaks the engine")
        return [decoded(start) for start in starts]

    def free_memory(self) -> None:
        self.freed += 1

    def open_gate(self) -> None:
        self.gate.release(1000)


class Outcomes:
    """Collects the outcomes by the start of the window."""

    def __init__(self) -> None:
        self.by_start: dict[float, Decoded | WhisperError] = {}
        self.changed = threading.Condition()

    def submit(self, scheduler: Scheduler, request: QueuedRequest, start: float, temperature: float = 0.0) -> None:
        window = Window(np.zeros(16, np.float32), start, Decoding(temperature=temperature))
        scheduler.submit(request, window, lambda outcome: self._receive(start, outcome))

    def _receive(self, start: float, outcome: Decoded | WhisperError) -> None:
        with self.changed:
            self.by_start[start] = outcome
            self.changed.notify_all()

    def wait(self, count: int) -> dict[float, Decoded | WhisperError]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.by_start) >= count, PATIENCE), self.by_start
        return self.by_start


def busy(engine: SteppedEngine, outcomes: Outcomes) -> Scheduler:
    """A scheduler whose engine is busy with a first batch: the window at -1."""
    scheduler = Scheduler(engine)
    outcomes.submit(scheduler, QueuedRequest(), -1.0)
    assert engine.begun.get(timeout=PATIENCE) == [-1.0]
    return scheduler


def test_a_clip_goes_into_the_next_batch_before_a_long_file() -> None:
    engine, outcomes = SteppedEngine(max_batch=2), Outcomes()
    scheduler = busy(engine, outcomes)
    file = QueuedRequest()
    for start in range(20):
        outcomes.submit(scheduler, file, float(start))
    engine.gate.release()
    assert engine.begun.get(timeout=PATIENCE) == [0.0, 1.0]
    outcomes.submit(scheduler, QueuedRequest(), 1000.0)
    engine.open_gate()
    outcomes.wait(22)
    assert 1000.0 in engine.batches[2]
    scheduler.close()


@pytest.mark.parametrize(("clips", "windows"), [(0, 8), (1, 2), (3, 6), (8, 8)])
def test_the_batch_of_a_clip_has_few_windows_of_a_long_file(clips: int, windows: int) -> None:
    engine, outcomes = SteppedEngine(max_batch=8), Outcomes()
    scheduler = busy(engine, outcomes)
    file = QueuedRequest()
    for start in range(20):
        outcomes.submit(scheduler, file, float(start))
    for clip in range(clips):
        outcomes.submit(scheduler, QueuedRequest(), 1000.0 + clip)
    engine.open_gate()
    outcomes.wait(21 + clips)
    batch = engine.batches[1]
    assert len(batch) == windows and sum(start >= 1000 for start in batch) == clips - (clips == 8)
    assert sum(len(each) == 8 for each in engine.batches) >= 2, "the file alone has full batches"
    scheduler.close()


def test_a_stream_of_clips_does_not_starve_a_file() -> None:
    engine, outcomes = SteppedEngine(max_batch=1), Outcomes()
    scheduler = busy(engine, outcomes)
    file = QueuedRequest()
    for start in range(5):
        outcomes.submit(scheduler, file, float(start))
    for clip in range(20):
        outcomes.submit(scheduler, QueuedRequest(), 1000.0 + clip)
        engine.gate.release()
        engine.begun.get(timeout=PATIENCE)
    engine.open_gate()
    outcomes.wait(26)
    positions = [engine.batches.index([float(start)]) for start in range(5)]
    assert positions == sorted(positions) and positions[2] <= 12, "with a new clip for each window decoded, the file still gets its share"
    scheduler.close()


def test_windows_with_different_batch_keys_share_no_batch() -> None:
    engine, outcomes = SteppedEngine(max_batch=8), Outcomes()
    scheduler = busy(engine, outcomes)
    for start in range(6):
        outcomes.submit(scheduler, QueuedRequest(), float(start), temperature=0.2 * (start % 2))
    engine.open_gate()
    outcomes.wait(7)
    assert sorted(engine.batches[1:]) == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    assert scheduler.counters.retries_at_higher_temperature == 3
    scheduler.close()


def test_out_of_memory_halves_the_batch_and_later_batches() -> None:
    engine, outcomes = SteppedEngine(max_batch=8, room=2), Outcomes()
    scheduler = busy(engine, outcomes)
    for start in range(8):
        outcomes.submit(scheduler, QueuedRequest(), float(start))
    engine.open_gate()
    by_start = outcomes.wait(9)
    assert all(isinstance(outcome, Decoded) and outcome.text == str(start) for start, outcome in by_start.items())
    assert scheduler.batch_limit == 2 and engine.freed == scheduler.counters.out_of_memory > 0
    for start in range(8, 16):
        outcomes.submit(scheduler, QueuedRequest(), float(start))
    outcomes.wait(17)
    assert scheduler.counters.out_of_memory == engine.freed == 3
    scheduler.close()


def test_a_window_that_breaks_the_engine_fails_alone() -> None:
    engine, outcomes = SteppedEngine(max_batch=4, poison=2.0), Outcomes()
    scheduler = busy(engine, outcomes)
    for start in range(4):
        outcomes.submit(scheduler, QueuedRequest(), float(start))
    engine.open_gate()
    by_start = outcomes.wait(5)
    assert isinstance(by_start[2.0], EngineError)
    assert all(isinstance(by_start[start], Decoded) for start in (0.0, 1.0, 3.0))
    scheduler.close()


def test_a_window_too_large_for_memory_fails_alone() -> None:
    engine, outcomes = SteppedEngine(max_batch=1), Outcomes()
    engine.room = 0
    engine.open_gate()
    scheduler = Scheduler(engine)
    outcomes.submit(scheduler, QueuedRequest(), 0.0)
    assert isinstance(outcomes.wait(1)[0.0], OutOfMemory)
    scheduler.close()


def test_cancelled_windows_are_dropped() -> None:
    engine, outcomes = SteppedEngine(max_batch=1), Outcomes()
    scheduler = busy(engine, outcomes)
    gone = QueuedRequest()
    outcomes.submit(scheduler, gone, 0.0)
    outcomes.submit(scheduler, QueuedRequest(), 1.0)
    scheduler.cancel(gone)
    engine.open_gate()
    outcomes.wait(2)
    assert engine.batches == [[-1.0], [1.0]]
    scheduler.close()


def test_close_decodes_what_is_queued_and_refuses_more() -> None:
    engine, outcomes = SteppedEngine(max_batch=2), Outcomes()
    scheduler = busy(engine, outcomes)
    for start in range(5):
        outcomes.submit(scheduler, QueuedRequest(), float(start))
    engine.open_gate()
    scheduler.close()
    assert len(outcomes.by_start) == 6
    with pytest.raises(Overloaded):
        outcomes.submit(scheduler, QueuedRequest(), 9.0)


def test_the_engine_waits_for_the_requests_of_its_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.lanes.WAIT_FOR_REQUESTS", 1e9)
    engine, outcomes = SteppedEngine(max_batch=8), Outcomes()
    scheduler = busy(engine, outcomes)
    for start in range(3):
        outcomes.submit(scheduler, QueuedRequest(), float(start))
    engine.open_gate()
    outcomes.wait(4)
    for start in range(10, 13):
        outcomes.submit(scheduler, QueuedRequest(), float(start))
    outcomes.wait(7)
    assert sorted(engine.batches[2]) == [10.0, 11.0, 12.0]
    outcomes.submit(scheduler, QueuedRequest(), 20.0)
    scheduler.close()
    assert engine.batches[3] == [20.0], "a closing scheduler does not wait for other requests"


def test_the_engine_waits_for_more_windows_of_a_file_that_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.scheduler.WAIT_FOR_READING", 1e9)
    engine, outcomes = SteppedEngine(max_batch=4), Outcomes()
    scheduler = busy(engine, outcomes)
    engine.open_gate()
    outcomes.wait(1)
    file = QueuedRequest(more_coming=True)
    for start in (1.0, 2.0, 3.0):
        outcomes.submit(scheduler, file, start)
    scheduler.set_more_coming(file, False)
    outcomes.wait(4)
    assert engine.batches[1] == [1.0, 2.0, 3.0]
    file = QueuedRequest(more_coming=True)
    for start in (4.0, 5.0, 6.0, 7.0):
        outcomes.submit(scheduler, file, start)
    outcomes.wait(8)
    assert engine.batches[2] == [4.0, 5.0, 6.0, 7.0], "a full batch does not wait"
    outcomes.submit(scheduler, QueuedRequest(more_coming=True), 8.0)
    scheduler.close()
    assert engine.batches[3] == [8.0]


def after_a_batch(engine: SteppedEngine, outcomes: Outcomes) -> Scheduler:
    """An idle scheduler that has decoded one batch, the window at -1, so that it knows how long one takes."""
    scheduler = busy(engine, outcomes)
    engine.open_gate()
    outcomes.wait(1)
    return scheduler


def test_the_engine_waits_for_requests_whose_first_window_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.scheduler.WAIT_FOR_READING", 1e9)
    engine, outcomes = SteppedEngine(max_batch=4), Outcomes()
    scheduler = after_a_batch(engine, outcomes)
    clips = [QueuedRequest() for _ in range(3)]
    for clip in clips:
        scheduler.expect(clip)
    outcomes.submit(scheduler, clips[0], 1.0)
    outcomes.submit(scheduler, clips[1], 2.0)
    scheduler.cancel(clips[2])
    outcomes.wait(3)
    assert engine.batches[1] == [1.0, 2.0], "the second was waited for, and a request that has ended is not"
    unread = QueuedRequest()
    scheduler.expect(unread)
    for start in (3.0, 4.0, 5.0, 6.0):
        outcomes.submit(scheduler, QueuedRequest(), start)
    outcomes.wait(7)
    assert engine.batches[2] == [3.0, 4.0, 5.0, 6.0], "a full batch does not wait"
    outcomes.submit(scheduler, QueuedRequest(), 7.0)
    outcomes.wait(8)
    assert engine.batches[3] == [7.0], "a request that has been read during a whole batch is not waited for again"
    scheduler.close()


def test_an_idle_engine_looks_twice_before_it_decodes_a_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.scheduler.SECOND_LOOK", 1e9)
    engine, outcomes = SteppedEngine(max_batch=3), Outcomes()
    scheduler = after_a_batch(engine, outcomes)
    for start in (1.0, 2.0, 3.0):
        outcomes.submit(scheduler, QueuedRequest(), start)
    outcomes.wait(4)
    assert engine.batches[1] == [1.0, 2.0, 3.0]
    outcomes.submit(scheduler, QueuedRequest(), 4.0)
    scheduler.close()
    assert engine.batches[2] == [4.0]


def test_several_engines_share_the_queue() -> None:
    engines, outcomes = [SteppedEngine(max_batch=4), SteppedEngine(max_batch=4)], Outcomes()
    scheduler = Scheduler(*engines)
    file = QueuedRequest()
    for start in range(8):
        outcomes.submit(scheduler, file, float(start))
    for engine in engines:
        engine.begun.get(timeout=PATIENCE)
    for engine in engines:
        engine.open_gate()
    outcomes.wait(8)
    scheduler.close()
    assert sorted(start for engine in engines for batch in engine.batches for start in batch) == [float(start) for start in range(8)]
    assert scheduler.counters.windows == 8


class Refilling(SteppedEngine):
    """Two slots. Each release of `gate` finishes the oldest window. `breaks`: a window's start and its error."""

    n_mels, tokenizer = 80, None

    def __init__(self, *, breaks: tuple[float, Exception] | None = None) -> None:
        super().__init__(max_batch=2)
        self.breaks = breaks
        self.taken: list[float] = []

    def decode_feed(self, feed: Feed) -> None:
        slots: list[Window] = []
        while True:
            fresh = feed.take(2 - len(slots))
            slots += fresh
            self.taken += [window.start for window in fresh]
            if not slots:
                return
            self.begun.put([window.start for window in slots])
            assert self.gate.acquire(timeout=PATIENCE)
            if self.breaks and self.breaks[0] in {window.start for window in slots}:
                error, self.breaks = self.breaks[1], None
                raise error
            window = slots.pop(0)
            feed.done(window, partial(decoded, window.start))

    def describe(self) -> dict[str, str | int | float | bool]:
        return {}

    def close(self) -> None:
        pass


def test_a_free_slot_is_filled_while_others_still_decode() -> None:
    engine, outcomes = Refilling(), Outcomes()
    scheduler = Scheduler(engine)
    outcomes.submit(scheduler, QueuedRequest(), 0.0)
    assert engine.begun.get(timeout=PATIENCE) == [0.0]
    outcomes.submit(scheduler, QueuedRequest(), 1.0)
    outcomes.submit(scheduler, QueuedRequest(), 2.0, temperature=0.4)
    outcomes.submit(scheduler, QueuedRequest(), 3.0)
    engine.gate.release()
    assert engine.begun.get(timeout=PATIENCE) == [1.0, 3.0]
    outcomes.submit(scheduler, QueuedRequest(), 4.0)
    engine.open_gate()
    assert all(isinstance(outcome, Decoded) for outcome in outcomes.wait(5).values())
    assert engine.taken == [0.0, 1.0, 3.0, 2.0, 4.0], "2.0 has another key: it cannot join, and later windows must not overtake it"
    scheduler.close()


@pytest.mark.parametrize("error", [OutOfMemory("no room"), EngineError("broken"), ZeroDivisionError("a surprise")])
def test_windows_that_a_refilling_engine_did_not_finish_are_decoded_again(error: Exception) -> None:
    engine, outcomes = Refilling(breaks=(2.0, error)), Outcomes()
    engine.open_gate()
    scheduler = Scheduler(engine)
    for start in range(6):
        outcomes.submit(scheduler, QueuedRequest(), float(start))
    assert all(isinstance(outcome, Decoded) for outcome in outcomes.wait(6).values())
    assert scheduler.counters.out_of_memory + scheduler.counters.failed_batches == 1
    scheduler.close()


def test_a_refilling_engine_takes_no_fewer_windows_than_it_asks_for() -> None:
    engine, scheduler = Refilling(), Scheduler(SteppedEngine())
    request = QueuedRequest()
    scheduler.close()
    key = engine.batch_key(Decoding())
    for start in (0.0, 1.0):
        scheduler._backlog.push(key, request, Window(np.zeros(16, np.float32), start, Decoding()), lambda outcome: None)
    feed = _Feed(scheduler, key, None)
    assert feed.take(4, at_least=3) == []
    assert [window.start for window in feed.take(4, at_least=2)] == [0.0, 1.0]


class Lazy(Refilling):
    """Leaves its results to be made later, on a thread that the test notes; the window at 1 cannot be made."""

    def __init__(self) -> None:
        super().__init__()
        self.made_by: list[int] = []

    def decode_feed(self, feed: Feed) -> None:
        while taken := feed.take(2):
            for window in taken:
                feed.done(window, partial(self._make, window.start))

    def _make(self, start: float) -> Decoded:
        self.made_by.append(threading.get_ident())
        if start == 1.0:
            raise ZeroDivisionError("no text")
        return decoded(start)


def test_results_are_made_on_the_outcome_thread_and_fail_alone() -> None:
    engine, outcomes = Lazy(), Outcomes()
    scheduler = Scheduler(engine)
    for start in (0.0, 1.0, 2.0):
        outcomes.submit(scheduler, QueuedRequest(), start)
    by_start = outcomes.wait(3)
    assert isinstance(by_start[1.0], EngineError) and scheduler.counters.failed_batches == 1
    assert isinstance(by_start[0.0], Decoded) and isinstance(by_start[2.0], Decoded)
    assert set(engine.made_by) == {scheduler._outcome_thread.ident} and scheduler.last_success is not None
    scheduler.close()


def test_outcomes_are_processed_while_the_engine_decodes_the_next_batch() -> None:
    engine, outcomes, processing, go_on = SteppedEngine(max_batch=1), Outcomes(), threading.Event(), threading.Event()
    scheduler = busy(engine, outcomes)
    engine_threads = {thread.ident for thread in scheduler._threads}
    processed_by: list[int] = []

    def process(outcome: Decoded | WhisperError) -> None:
        processed_by.append(threading.get_ident())
        processing.set()
        assert go_on.wait(PATIENCE)

    scheduler.submit(QueuedRequest(), Window(np.zeros(16, np.float32), 0.0, Decoding()), process)
    outcomes.submit(scheduler, QueuedRequest(), 1.0)
    engine.open_gate()
    assert engine.begun.get(timeout=PATIENCE) == [0.0]
    assert processing.wait(PATIENCE)
    assert engine.begun.get(timeout=PATIENCE) == [1.0], "decoded while the outcome before it is being processed"
    assert processed_by and not engine_threads & set(processed_by)
    go_on.set()
    outcomes.wait(2)
    scheduler.close()


def test_a_retry_that_an_outcome_leads_to_shares_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.scheduler.WAIT_FOR_OUTCOMES", PATIENCE)
    engine, outcomes = SteppedEngine(max_batch=8), Outcomes()
    scheduler = busy(engine, outcomes)

    def retry_later(request: QueuedRequest, start: float) -> None:
        time.sleep(0.02)
        outcomes.submit(scheduler, request, start, temperature=0.2)

    for start in range(4):
        request, window = QueuedRequest(), Window(np.zeros(16, np.float32), float(start), Decoding())
        scheduler.submit(request, window, lambda outcome, request=request, start=start: retry_later(request, start + 10.0))  # type: ignore[misc]
    engine.open_gate()
    outcomes.wait(5)
    scheduler.close()
    assert sorted(engine.batches[2]) == [10.0, 11.0, 12.0, 13.0] and len(engine.batches) == 3


def test_a_retry_comes_before_the_windows_of_a_long_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.lanes.WAIT_FOR_REQUESTS", 1e9)
    engine, outcomes = SteppedEngine(max_batch=2), Outcomes()
    scheduler = busy(engine, outcomes)
    clip, file = QueuedRequest(), QueuedRequest()

    def retry_later(outcome: Decoded | WhisperError) -> None:
        time.sleep(0.05)
        outcomes.submit(scheduler, clip, 1000.0, temperature=0.2)

    scheduler.submit(clip, Window(np.zeros(16, np.float32), 999.0, Decoding()), retry_later)
    for start in range(20):
        outcomes.submit(scheduler, file, float(start))
    engine.open_gate()
    outcomes.wait(22)
    scheduler.close()
    assert engine.batches[1] == [0.0, 999.0] or engine.batches[1] == [999.0, 0.0]
    assert engine.batches.index([1000.0]) <= 3, "the retry waits for its turn, not for the file"


def test_close_delivers_every_outcome_in_order() -> None:
    engine, outcomes, delivered = SteppedEngine(max_batch=4), Outcomes(), list[float]()
    scheduler = busy(engine, outcomes)
    request = QueuedRequest()

    def process(start: float) -> None:
        time.sleep(0.01)
        delivered.append(start)

    for start in range(8):
        window = Window(np.zeros(16, np.float32), float(start), Decoding())
        scheduler.submit(request, window, lambda outcome, start=float(start): process(start))  # type: ignore[misc]
    engine.open_gate()
    scheduler.close()
    assert delivered == [float(start) for start in range(8)]


def test_the_outcome_of_a_request_that_was_cancelled_is_dropped() -> None:
    engine, outcomes, go_on = SteppedEngine(max_batch=2), Outcomes(), threading.Event()
    scheduler = busy(engine, outcomes)
    gone = QueuedRequest()

    def hold(outcome: Decoded | WhisperError) -> None:
        assert go_on.wait(PATIENCE)

    scheduler.submit(QueuedRequest(), Window(np.zeros(16, np.float32), 0.0, Decoding()), hold)
    outcomes.submit(scheduler, gone, 1.0)
    engine.open_gate()
    assert engine.begun.get(timeout=PATIENCE) == [0.0, 1.0]
    scheduler.cancel(gone)
    go_on.set()
    scheduler.close()
    assert 1.0 not in outcomes.by_start


def test_an_engine_that_gives_no_result_is_seen() -> None:
    engine, outcomes = SteppedEngine(max_batch=1), Outcomes()
    scheduler = busy(engine, outcomes)
    before = scheduler.stalled_seconds
    time.sleep(0.05)
    assert scheduler.stalled_seconds >= before + 0.05 and scheduler.last_success is None
    engine.open_gate()
    outcomes.wait(1)
    scheduler.close()
    assert scheduler.stalled_seconds == 0.0 and scheduler.last_success is not None and scheduler.longest_seconds >= 0.05
