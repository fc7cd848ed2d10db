"""Engines that decode several batches at a time: which lane gets which windows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import pytest

from tests.unit.serving.test_scheduler import PATIENCE, Outcomes, SteppedEngine, decoded
from tests.unit.serving.test_turns import wait_until
from whispercore.engines import ParallelEngine
from whispercore.errors import EngineError, OutOfMemory
from whispercore.serving.backlog import QueuedRequest
from whispercore.serving.scheduler import Scheduler
from whispercore.serving.turns import Turn
from whispercore.types import Decoded, Window


class Laned(SteppedEngine):
    """Each batch waits until the test lets it end. `begun`: the width and the starts of the windows of each batch."""

    n_mels, tokenizer, any_width = 80, None, True

    def __init__(self, lanes: int, *, max_batch: int, room: int = 100) -> None:
        super().__init__(max_batch)
        self.lanes, self.room = lanes, room
        self.started: queue.Queue[tuple[int, list[float]]] = queue.Queue()
        self.ends: dict[float, threading.Event] = {}
        self.lock = threading.Lock()
        self.occupied = self.most_occupied = 0
        self.open = False

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        return self.decode_on(self.lanes, windows)

    def decode_on(self, width: int, windows: Sequence[Window]) -> list[Decoded]:
        starts = [window.start for window in windows]
        end = threading.Event()
        with self.lock:
            self.ends[starts[0]] = end
            self.occupied += width
            self.most_occupied = max(self.occupied, self.most_occupied)
        self.started.put((width, starts))
        assert self.open or end.wait(PATIENCE)
        with self.lock:
            self.occupied -= width
        if len(windows) > self.room:
            raise OutOfMemory("no room")
        return [decoded(start) for start in starts]

    def describe(self) -> dict[str, str | int | float | bool]:
        return {}

    def close(self) -> None:
        pass

    def next(self) -> tuple[int, list[float]]:
        return self.started.get(timeout=PATIENCE)

    def open_gate(self) -> None:
        self.open = True
        with self.lock:
            for end in self.ends.values():
                end.set()


def submitted(scheduler: Scheduler, outcomes: Outcomes, starts: Sequence[float], request: QueuedRequest | None = None) -> None:
    """Submit windows at once: of one request, or of a request each."""
    with scheduler._changed:  # the lanes see all of them or none
        for start in starts:
            outcomes.submit(scheduler, request or QueuedRequest(), start)


def test_it_is_a_parallel_engine() -> None:
    assert isinstance(Laned(2, max_batch=8), ParallelEngine) and not isinstance(SteppedEngine(), ParallelEngine)


def test_a_lone_window_gets_all_lanes_and_the_next_one_waits_for_it() -> None:
    engine, outcomes = Laned(4, max_batch=16), Outcomes()
    scheduler = Scheduler(engine)
    submitted(scheduler, outcomes, [1.0])
    assert engine.next() == (4, [1.0])
    submitted(scheduler, outcomes, [2.0])
    engine.ends[1.0].set()
    assert engine.next() == (4, [2.0])
    engine.open_gate()
    outcomes.wait(2)
    scheduler.close()
    assert engine.most_occupied == 4


@pytest.mark.parametrize(
    ("clips", "batches"),
    [
        (2, [(2, 1), (2, 1)]),
        (3, [(1, 1), (1, 1), (2, 1)]),
        (4, [(1, 1)] * 4),
        (6, [(1, 1), (1, 1), (1, 2), (1, 2)]),
        (16, [(1, 4)] * 4),
    ],
)
def test_windows_that_wait_are_divided_among_the_free_lanes(clips: int, batches: list[tuple[int, int]]) -> None:
    engine, outcomes = Laned(4, max_batch=16), Outcomes()
    scheduler = Scheduler(engine)
    submitted(scheduler, outcomes, [float(clip) for clip in range(clips)])
    assert sorted((width, len(starts)) for width, starts in (engine.next() for _ in batches)) == sorted(batches)
    engine.open_gate()
    outcomes.wait(clips)
    scheduler.close()
    assert engine.most_occupied <= 4 and scheduler.counters.batches == len(batches)


def test_a_lane_that_is_done_answers_and_begins_again_while_another_still_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.lanes.WAIT_FOR_REQUESTS", 1e9)
    engine, outcomes = Laned(2, max_batch=8), Outcomes()
    scheduler = Scheduler(engine)
    submitted(scheduler, outcomes, [float(clip) for clip in range(8)])
    first, second = engine.next()[1], engine.next()[1]
    assert len(first) == len(second) == 4
    engine.ends[first[0]].set()
    outcomes.wait(4)  # their clients have their replies, and ask again one after the other
    assert set(outcomes.by_start) == set(first)
    for start in (10.0, 11.0, 12.0, 13.0):
        outcomes.submit(scheduler, QueuedRequest(), start)
    assert engine.next() == (1, [10.0, 11.0, 12.0, 13.0]), "it has waited for as many requests as it answered"
    assert len(outcomes.by_start) == 4, "the other lane still decodes"
    engine.open_gate()
    outcomes.wait(12)
    scheduler.close()


def test_the_last_windows_of_a_recording_are_divided_among_all_lanes() -> None:
    engine, outcomes = Laned(2, max_batch=8), Outcomes()
    scheduler, file = Scheduler(engine), QueuedRequest()
    submitted(scheduler, outcomes, [float(start) for start in range(12)], file)
    first, second = engine.next()[1], engine.next()[1]
    assert len(first) == len(second) == 4
    engine.ends[first[0]].set()
    width, starts = engine.next()
    assert (width, len(starts)) == (1, 2), "two of the last four are left to the lane that is busy"
    engine.open_gate()
    outcomes.wait(12)
    scheduler.close()


def test_while_a_recording_is_read_a_free_lane_takes_a_full_batch() -> None:
    engine, outcomes = Laned(2, max_batch=8), Outcomes()
    scheduler, file = Scheduler(engine), QueuedRequest(more_coming=True)
    submitted(scheduler, outcomes, [float(start) for start in range(12)], file)
    first = engine.next()[1]
    engine.next()
    engine.ends[first[0]].set()
    assert len(engine.next()[1]) == 4
    engine.open_gate()
    outcomes.wait(12)
    scheduler.close()


def test_for_a_while_after_a_clip_the_batches_of_a_file_are_halved() -> None:
    engine, outcomes = Laned(2, max_batch=8), Outcomes()
    scheduler, file = Scheduler(engine), QueuedRequest()
    submitted(scheduler, outcomes, [float(start) for start in range(24)], file)
    first = engine.next()[1]
    assert len(first) == len(engine.next()[1]) == 4
    outcomes.submit(scheduler, QueuedRequest(), 1000.0)
    engine.ends[first[0]].set()
    with_clip = engine.next()[1]
    assert len(with_clip) == 2 and 1000.0 in with_clip
    engine.open_gate()
    outcomes.wait(25)
    scheduler.close()
    assert max(len(starts) for starts in (engine.next()[1] for _ in range(engine.started.qsize()))) == 2


def test_an_engine_that_cannot_use_some_lanes_takes_one_or_all() -> None:
    engine, outcomes = Laned(4, max_batch=16), Outcomes()
    engine.any_width = False
    scheduler = Scheduler(engine)
    submitted(scheduler, outcomes, [1.0, 2.0])
    assert [engine.next()[0] for _ in range(2)] == [1, 1]
    submitted(scheduler, outcomes, [3.0])
    assert engine.next() == (1, [3.0])
    engine.open_gate()
    outcomes.wait(3)
    submitted(scheduler, outcomes, [4.0])
    assert engine.next() == (4, [4.0])
    outcomes.wait(4)
    scheduler.close()


def test_a_request_whose_windows_were_in_two_batches_is_expected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.lanes.WAIT_FOR_REQUESTS", 1e9)
    engine, outcomes = Laned(2, max_batch=8), Outcomes()
    engine.open_gate()
    scheduler, file = Scheduler(engine), QueuedRequest()
    submitted(scheduler, outcomes, [1.0, 2.0], file)
    outcomes.wait(2)
    submitted(scheduler, outcomes, [3.0], file)
    outcomes.wait(3)  # it would wait for a second request for ever
    scheduler.close()


def test_an_error_outside_of_the_engine_fails_the_batch_and_frees_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, outcomes = Laned(2, max_batch=8), Outcomes()
    engine.open_gate()
    scheduler = Scheduler(engine)
    (lanes,) = scheduler._lanes
    monkeypatch.setattr(scheduler, "_decode", lambda *_: 1 / 0)
    submitted(scheduler, outcomes, [1.0])
    assert isinstance(outcomes.wait(1)[1.0], EngineError)
    monkeypatch.undo()
    wait_until(lambda: lanes.free == lanes.count)
    submitted(scheduler, outcomes, [2.0])
    assert isinstance(outcomes.wait(2)[2.0], Decoded)
    scheduler.close()


def test_short_memory_halves_the_batches_of_every_lane() -> None:
    engine, outcomes = Laned(2, max_batch=8, room=2), Outcomes()
    engine.open_gate()
    scheduler = Scheduler(engine)
    submitted(scheduler, outcomes, [float(clip) for clip in range(16)])
    by_start = outcomes.wait(16)
    assert all(isinstance(outcome, Decoded) for outcome in by_start.values())
    assert scheduler.batch_limit == 2 and scheduler.windows_at_once == 4
    scheduler.close()


def test_the_lanes_of_a_model_share_its_turn_and_those_of_two_models_alternate() -> None:
    engines, turn, outcomes = [Laned(2, max_batch=4), Laned(2, max_batch=4)], Turn(), Outcomes()
    schedulers = [Scheduler(engine, turns=[turn]) for engine in engines]
    with turn.held_by(None):
        for number, scheduler in enumerate(schedulers):
            submitted(scheduler, outcomes, [100.0 * number + start for start in range(4)])
        wait_until(lambda: len(turn._waiting) == 4)
    # Whichever comes first: its two lanes decode together, the other model's begin when both have ended.
    wait_until(lambda: not all(engine.started.empty() for engine in engines))
    first = next(engine for engine in engines if not engine.started.empty())
    other = engines[1 - engines.index(first)]
    assert {len(first.next()[1]) for _ in range(2)} == {2} and other.started.empty()
    first.open_gate()
    assert {len(other.next()[1]) for _ in range(2)} == {2}
    other.open_gate()
    outcomes.wait(8)
    for scheduler in schedulers:
        scheduler.close()


def test_a_closing_scheduler_finishes_what_its_lanes_hold() -> None:
    engine, outcomes = Laned(2, max_batch=4), Outcomes()
    scheduler = Scheduler(engine)
    submitted(scheduler, outcomes, [float(start) for start in range(10)])
    engine.next()
    engine.open_gate()
    scheduler.close()
    assert len(outcomes.by_start) == 10 and scheduler.stalled_seconds == 0.0
