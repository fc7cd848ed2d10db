"""The end of a server: what it waits for, with a TorchServe whose counts the test sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from server import draining
from server.draining import PendingRequests, drain
from whispercore.torchserve.handshake import OpenRequests


@dataclass
class FakeServer:
    """`look`: changes what the server shows at each look, which is given the seconds since the start."""

    grace: float
    look: Callable[[FakeServer, float], None]
    pending: PendingRequests = field(default_factory=lambda: PendingRequests(0, 0, 0))
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    unchanged_seconds: float = 60.0
    alive: bool = True
    refusing_at: float | None = None
    woken: int = 0

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.configuration: Any = SimpleNamespace(grace_seconds=self.grace, inference=None)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def refuse_new_requests(self) -> None:
        self.refusing_at = self.refusing_at or self.seconds


def drained(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> PendingRequests | None:
    def pending(_: Any) -> PendingRequests:
        server.look(server, server.seconds)
        return server.pending

    def wake(_: Any, timeout: float) -> None:
        server.woken += 1

    monkeypatch.setattr(draining, "pending_requests", pending)
    monkeypatch.setattr(draining, "wake_worker", wake)
    monkeypatch.setattr(draining, "WAKE_SECONDS", 0.3)
    monkeypatch.setattr(draining, "REFUSING_SECONDS", 1.0)
    stop: Any = SimpleNamespace(immediate=False, wait=lambda seconds: time.sleep(seconds))
    untyped: Any = server
    return drain(untyped, None, stop)


def test_an_idle_server_stops_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(60, lambda server, seconds: None)
    assert drained(server, monkeypatch) is None
    assert server.seconds < 10 and server.refusing_at is None


def test_counts_that_are_taken_between_two_batches_do_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look sees no request, but the worker's count has just changed."""

    def look(server: FakeServer, seconds: float) -> None:
        server.unchanged_seconds = 0.01 if seconds < 1.5 else seconds - 1.5

    server = FakeServer(60, look)
    assert drained(server, monkeypatch) is None
    assert server.seconds >= 1.5


def test_the_worker_must_know_that_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of requests that wait in TorchServe's queue: the worker has none, and is woken until it says that it refuses."""

    def look(server: FakeServer, seconds: float) -> None:
        server.pending = PendingRequests(0, 3, 0)
        server.open_requests = OpenRequests(0, refuses=server.woken >= 2)

    server = FakeServer(6, look)
    assert drained(server, monkeypatch) is None
    assert server.woken >= 2 and server.open_requests.refuses


def test_requests_on_their_way_are_refused_before_the_end_and_a_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(server: FakeServer, seconds: float) -> None:
        server.pending = PendingRequests(0 if server.refusing_at else 1, 0, 4)
        server.open_requests = OpenRequests(server.pending.in_worker, refuses=server.refusing_at is not None)

    server = FakeServer(10, look)
    assert drained(server, monkeypatch) is None
    assert server.refusing_at is not None and server.refusing_at >= 5
    assert 1.0 <= server.seconds - server.refusing_at < 4.5, "for REFUSING_SECONDS, and not to the end of the grace period"


def test_what_is_open_when_the_grace_period_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(server: FakeServer, seconds: float) -> None:
        server.pending = PendingRequests(2, 1, 0)

    assert drained(FakeServer(0.3, look), monkeypatch) == PendingRequests(2, 1, 0)


def test_a_short_grace_period_with_nothing_open_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drained(FakeServer(0.1, lambda server, seconds: None), monkeypatch) is None
