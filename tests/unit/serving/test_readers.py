"""Reading in steps: fair by client, and threads that hang are replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.unit.doubles import PATIENCE
from whispercore.errors import WhisperError
from whispercore.serving import readers as readers_module
from whispercore.serving.backlog import WATCHDOG
from whispercore.serving.readers import Binding, Readers, Step


class Reading:
    """Steps that note their order. The first reader is held until `begin`."""

    def __init__(self, count: int = 1) -> None:
        self.readers = Readers(count)
        self.read: list[str] = []
        self.given_up: list[WhisperError] = []
        self._gate, self._done = threading.Event(), threading.Semaphore(0)
        self._expected = 0
        for _ in range(count):
            self.submit("first", lambda: self._gate.wait(PATIENCE))
        while sum(client.running for client in self.readers._clients.values()) < count:
            time.sleep(0.001)

    def submit(self, client: str, work: object = None) -> None:
        def read() -> None:
            self.read.append(client)
            if callable(work):
                work()
            self._done.release()

        self._expected += 1
        self.readers.submit(Step(client, read, self.given_up.append))

    def begin(self) -> list[str]:
        """The order of all steps but the first, when they are done."""
        self._gate.set()
        for _ in range(self._expected):
            assert self._done.acquire(timeout=PATIENCE)
        return [client for client in self.read if client != "first"]


@pytest.fixture
def reading() -> Iterator[Reading]:
    opened = Reading()
    yield opened
    opened.readers.close()


def test_a_flood_of_one_client_does_not_keep_another_from_being_read(reading: Reading) -> None:
    for client in "a" * 100 + "b":
        reading.submit(client)
    assert "b" in reading.begin()[:2]


def test_a_client_whose_steps_take_long_gets_fewer_of_them(reading: Reading) -> None:
    for _ in range(10):
        reading.submit("slow", lambda: time.sleep(0.05))
        for _ in range(10):
            reading.submit("quick")
    order = reading.begin()
    assert order.index("slow", order.index("slow") + 1) > 50, "most of the quick steps come before the second slow one"


def test_steps_of_one_client_keep_their_order_and_the_watchdog_goes_first(reading: Reading) -> None:
    order = list[int]()
    for number in range(5):
        reading.submit("a", lambda number=number: order.append(number))
    reading.submit(WATCHDOG)
    assert reading.begin()[0] == WATCHDOG and order == list(range(5))


def test_what_a_client_used_is_forgotten_when_nothing_waits(reading: Reading) -> None:
    reading.submit("a", lambda: time.sleep(0.05))
    reading.begin()
    deadline = time.monotonic() + PATIENCE
    while reading.readers._clients and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not reading.readers._clients


def test_steps_that_hang_end_with_an_error_and_no_reader_is_lost() -> None:
    reading, hang = Reading(count=2), threading.Event()
    reading.begin()
    for _ in range(6):  # three times as many as there are readers
        reading.readers.submit(Step("poison", lambda: bool(hang.wait(PATIENCE)) and None, reading.given_up.append))
    deadline = time.monotonic() + PATIENCE
    while len(reading.given_up) < 6 and time.monotonic() < deadline:
        reading.readers.give_up(0.05)
        time.sleep(0.01)
    assert [error.status for error in reading.given_up] == [422] * 6
    together = threading.Barrier(2)
    for client in "ab":
        reading.submit(client, lambda: together.wait(PATIENCE))  # passes when two readers work
    reading._expected = 2
    assert sorted(client for client in reading.begin() if client != "first") == ["a", "b"]
    reading.readers.close()
    hang.set()


@pytest.mark.parametrize(("cores", "expected"), [(2, [1, 1]), (4, [2, 1]), (8, [4, 1]), (12, [4, 2, 1]), (16, [4, 4, 1, 1])])
def test_recordings_that_are_decoded_side_by_side_share_half_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, expected: list[int]
) -> None:
    monkeypatch.setattr(readers_module, "logical_cores", lambda: cores)
    readers = Readers(1)

    def bound() -> Binding:
        binding, read = Binding(), threading.Event()
        readers.submit(Step("", read.set, lambda error: None, binding))
        assert read.wait(PATIENCE)
        return binding

    bindings = [bound() for _ in expected]
    assert [binding.decoding_processes for binding in bindings] == expected
    readers.leave(bindings[0])
    readers.leave(bindings[0])
    assert [bound().decoding_processes, bound().decoding_processes] == [expected[0], 1]
    readers.close()
