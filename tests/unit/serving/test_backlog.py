"""The order of the queue."""

from __future__ import annotations

import random
import weakref
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispercore.serving.backlog import WATCHDOG, Backlog, QueuedRequest
from whispercore.types import Decoding, Window


def turns(wide: Decoding, count: int = 40) -> list[str]:
    """Whose window is next, of two requests with as many windows each, the first with a wide search."""
    backlog, requests = Backlog(), {"wide": QueuedRequest(), "plain": QueuedRequest()}
    for _ in range(count):
        for name, decoding in (("wide", wide), ("plain", Decoding())):
            backlog.push(0, requests[name], Window(np.zeros(16, np.float32), 0.0, decoding), lambda outcome: None)
    names = {id(request): name for name, request in requests.items()}
    return [names[id(backlog.pop(0, 1)[0].request)] for _ in range(count)]


@pytest.mark.parametrize(
    ("decoding", "cost"),
    [
        (Decoding(), 1.0),
        (Decoding(beam_size=5), 2.0),
        (Decoding(best_of=9, temperature=0.2), 3.0),
        (Decoding(beam_size=5, patience=2.0), 3.25),
    ],
)
def test_a_wide_search_gets_fewer_turns(decoding: Decoding, cost: float) -> None:
    assert decoding.cost == cost
    order = turns(decoding)
    assert order.count("plain") / order.count("wide") == pytest.approx(cost, rel=0.1)
    assert set(order[:2]) == {"wide", "plain"}, "a request's first window never waits longer for its options"


class Queue:
    """A backlog that names its windows: "client request"."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.requests: dict[str, QueuedRequest] = {}

    def push(self, *names: str, key: int = 0) -> None:
        for name in names:
            request = self.requests.setdefault(name, QueuedRequest(name.partition(" ")[0]))
            self.backlog.push(key, request, window(), lambda outcome: None)

    def batch(self, size: int, key: int | None = None) -> list[str]:
        names = {id(request): name for name, request in self.requests.items()}
        next_key = self.backlog.next_key() if key is None else key
        return [names[id(queued.request)] for queued in self.backlog.pop(next_key, size)]


def window() -> Window:
    return Window(np.zeros(16, np.float32), 0.0, Decoding())


def flood(queue: Queue, client: str, requests: int = 1000) -> None:
    queue.push(*(f"{client} {number}" for number in range(requests)))


def test_a_flood_of_one_client_leaves_the_clip_of_another_in_the_next_batch() -> None:
    queue = Queue()
    flood(queue, "a")
    for number in range(50):
        queue.batch(8)
        queue.push(f"b {number}")
        batch = queue.batch(8)
        assert f"b {number}" in batch[:2] and len(batch) == 8


def test_the_wait_of_a_client_beside_a_flood_is_a_batch_at_most() -> None:
    """In virtual time: a batch takes one unit; an idle server answers a clip within one."""
    queue, randomness, now, latencies = Queue(), random.Random(0), 0.0, list[float]()
    flood(queue, "a", 2000)
    while len(latencies) < 200:
        asked = now + randomness.random()  # while a batch is being decoded
        now += 1
        queue.push(f"b {len(latencies)}")
        now += 1
        assert f"b {len(latencies)}" in queue.batch(8)
        latencies.append(now - asked)
    assert sorted(latencies)[round(0.95 * len(latencies))] < 2.0


def test_clients_get_equal_shares_however_many_requests_they_have() -> None:
    queue = Queue()
    flood(queue, "a", 500)
    queue.push(*["b file"] * 100, *(f"c {number % 3}" for number in range(100)))
    turns = Counter(name.partition(" ")[0] for _ in range(20) for name in queue.batch(8))
    assert all(turns[client] == pytest.approx(160 / 3, abs=2) for client in "abc")


def test_within_a_client_requests_share_as_before() -> None:
    queue = Queue()
    queue.push(*["a file"] * 100)
    queue.batch(50)
    queue.push("a clip")
    assert queue.batch(1) == ["a clip"]


def test_a_stream_of_clips_or_of_new_clients_starves_no_other() -> None:
    for name in ("b {}", "b{} clip"):
        queue = Queue()
        queue.push(*["a file"] * 100)
        served = Counter[str]()
        for number in range(100):
            queue.push(name.format(number))
            served.update(queue.batch(2))
        assert served["a file"] >= 90


def test_a_client_that_pauses_gets_no_more_than_its_share() -> None:
    queue, served = Queue(), Counter[str]()
    flood(queue, "a", 400)
    for number in range(50):
        queue.push(*(f"b {number} {copy}" for copy in range(2)))
        served.update(name[0] for name in queue.batch(4))
    assert served["b"] == 100 and served["a"] == 100


def test_a_forgotten_client_owes_nothing_and_its_request_goes_on() -> None:
    queue = Queue()
    for number in range(500):
        queue.push(f"c{number} clip", "a file")
        queue.batch(2)
    assert len(queue.backlog._clients) < 150
    queue.push("a file", "a clip")
    assert queue.batch(2) in (["a clip", "a file"], ["a file", "a clip"])


def test_keys_are_kept_apart_and_the_earliest_is_next() -> None:
    queue = Queue()
    queue.push(*["a x"] * 4, key=1)
    queue.push(*["a x"] * 2, "b y", key=2)
    assert queue.backlog.next_key() == 1 and queue.batch(2) == ["a x"] * 2
    assert queue.backlog.next_key() == 2 and queue.batch(8) == ["b y", "a x", "a x"]
    assert queue.batch(8) == ["a x"] * 2 and queue.backlog.next_key() is None


def test_the_watchdog_goes_first() -> None:
    queue = Queue()
    flood(queue, "a", 20)
    queue.batch(8)
    queue.push("b clip")
    for _ in range(3):
        queue.push(f"{WATCHDOG} test")
        assert queue.batch(2)[0] == f"{WATCHDOG} test"


def test_the_windows_of_a_cancelled_request_are_freed_and_not_counted() -> None:
    queue = Queue()
    queue.push("a left", "a left", "a stays")
    samples = [weakref.ref(queued.window.samples) for _, queued in queue.backlog._clients["a"].heaps[0]]
    queue.backlog.cancel(queue.requests["a left"])
    assert len(queue.backlog) == 1 and queue.backlog.requests == 1
    assert sum(held() is not None for held in samples) == 1
    assert queue.batch(8) == ["a stays"] and queue.backlog.next_key() is None and len(queue.backlog) == 0


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "cancel"]), st.integers(0, 5), st.integers(0, 2)), max_size=120))
def test_every_window_is_popped_once_unless_its_request_is_cancelled(steps: list[tuple[str, int, int]]) -> None:
    queue, queued, cancelled = Queue(), Counter[str](), set[str]()
    for action, number, key in steps:
        name = f"{'abc'[number % 3]} {number}"
        if action == "push" and name not in cancelled:
            queue.push(name, key=key)
            queued[name] += 1
        elif action == "cancel" and name in queue.requests:
            queue.backlog.cancel(queue.requests[name])
            cancelled.add(name)
            del queued[name]
        elif action == "pop" and (next_key := queue.backlog.next_key()) is not None:
            batch = queue.batch(3, next_key)
            assert batch
            queued -= Counter(batch)
            assert not cancelled & set(batch)
        assert len(queue.backlog) == sum(queued.values())
        assert queue.backlog.requests == len(+queued)
    while (next_key := queue.backlog.next_key()) is not None:
        queued.subtract(queue.batch(7, next_key))
    assert not any(queued.values())
