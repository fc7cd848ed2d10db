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
    with turn:  # both have windows before one of them begins
        for scheduler in schedulers:
            for window in windows(count):
                scheduler.submit(QueuedRequest(), window, lambda outcome: done.release())
        wait_until(lambda: turn._next_ticket == 1 + len(engines))
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
        with turn:
            order.append(number)

    def has_tickets(count: int) -> bool:
        return turn._next_ticket == count

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with turn:
        assert not turn.is_wanted
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(partial(has_tickets, number + 2))
        assert turn.is_wanted
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [0, 1, 2, 3, 4] and not turn.is_wanted
