"""Turns at a device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import numpy as np

from tests.unit.doubles import PATIENCE
from whispercore.engines import Feed
from whispercore.engines.fake import FakeEngine
from whispercore.serving.backlog import QueuedRequest
from whispercore.serving.scheduler import Scheduler
from whispercore.serving.turns import Turn
from whispercore.types import Decoded, Decoding, Window


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def windows(count: int) -> list[Window]:
    return [Window(np.full(1600, 0.1, np.float32), 0.0, Decoding()) for _ in range(count)]


class Noting(FakeEngine):
    """Writes its name for each batch, and checks that it has the device for itself."""

    device = threading.Lock()

    def __init__(self, name: str, order: list[str]) -> None:
        super().__init__(max_batch=1, delay=0.02)
        self._name, self._order = name, order

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        assert self.device.acquire(blocking=False), "two engines decode at once"
        try:
            self._order.append(self._name)
            return super().decode(windows)
        finally:
            self.device.release()


class Refilling(Noting):
    """Takes one window after the other, as long as it gets any."""

    def decode_feed(self, feed: Feed) -> None:
        assert self.device.acquire(blocking=False), "two engines decode at once"
        try:
            while taken := feed.take(1):
                self._order.append(self._name)
                time.sleep(0.02)
                feed.done(taken[0], partial(self._decode, taken[0]))
        finally:
            self.device.release()


def decode_all(*engines: Noting, count: int) -> None:
    """Give each engine `count` windows through a scheduler of its own, and wait for them."""
    turn, done = Turn(), threading.Semaphore(0)
    schedulers = [Scheduler(engine, turns=[turn]) for engine in engines]
    with turn.held_by(None):  # both have windows before one of them begins
        for scheduler in schedulers:
            for window in windows(count):
                scheduler.submit(QueuedRequest(), window, lambda outcome: done.release())
        wait_until(lambda: len(turn._waiting) == len(engines))
    for _ in range(len(engines) * count):
        assert done.acquire(timeout=PATIENCE)
    for scheduler in schedulers:
        scheduler.close()


def longest_run(order: list[str]) -> int:
    """The most batches of one engine in a row. It is 1, unless this machine lets the other's thread sleep for a batch."""
    return max(len(list(run)) for _, run in groupby(order))


def test_two_models_alternate_by_batch() -> None:
    order: list[str] = []
    decode_all(Noting("a", order), Noting("b", order), count=6)
    assert len(order) == 12 and longest_run(order) <= 2, order


def test_an_engine_that_refills_its_slots_gives_its_turn_away() -> None:
    order: list[str] = []
    decode_all(Refilling("a", order), Noting("b", order), count=6)
    assert len(order) == 12 and longest_run(order) <= 2, order


def test_turns_come_in_the_order_of_asking() -> None:
    turn, order = Turn(), list[int]()

    def take(number: int) -> None:
        with turn.held_by(number):
            order.append(number)

    def are_waiting(count: int) -> bool:
        return len(turn._waiting) == count

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with turn.held_by("the test"):
        assert not turn.is_wanted
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(partial(are_waiting, number + 1))
        assert turn.is_wanted
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [0, 1, 2, 3, 4] and not turn.is_wanted


def test_threads_of_one_owner_hold_the_turn_together() -> None:
    turn, entered, leave = Turn(), list[str](), {name: threading.Event() for name in ("a1", "a2", "b1", "b2", "a3")}

    def hold(name: str) -> None:
        with turn.held_by(name[0]):
            entered.append(name)
            assert leave[name].wait(PATIENCE)

    threads = {name: threading.Thread(target=hold, args=(name,)) for name in leave}

    def start(name: str) -> None:
        asked = len(entered) + len(turn._waiting)
        threads[name].start()
        wait_until(lambda: len(entered) + len(turn._waiting) == asked + 1)

    start("a1")
    start("a2")
    wait_until(lambda: len(entered) == 2)  # both hold it
    for name in ("b1", "b2", "a3"):
        start(name)
    assert entered == ["a1", "a2"] and turn.is_wanted
    leave["a1"].set()
    threads["a1"].join(PATIENCE)
    assert entered == ["a1", "a2"], "the other thread of its owner still holds it"
    leave["a2"].set()
    wait_until(lambda: len(entered) == 4)
    assert sorted(entered[2:]) == ["b1", "b2"], "a3 came after another owner, so it does not join a1 and a2"
    leave["b1"].set()
    leave["b2"].set()
    wait_until(lambda: entered[4:] == ["a3"])
    leave["a3"].set()
    for thread in threads.values():
        thread.join(PATIENCE)
