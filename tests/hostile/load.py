"""Requests that are under way while something is done to the server."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, words
from tests.serve.server import Gateway, Server

Front = Server | Gateway
TIMER, HOME = (SAMPLES / "timer.flac").read_bytes(), (SAMPLES / "home.flac").read_bytes()
OTHER_ADDRESS = "127.0.0.2"
GONE_SECONDS = 200.0
"""For a request to a server that may not answer."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended. `status`: 0 when the connection broke. `at`: time.monotonic() then."""

    status: int
    text: str
    at: float

    @property
    def is_good(self) -> bool:
        """Whether it has a transcript."""
        return self.status == 200


@dataclass(slots=True)
class Load:
    """Requests that have been sent and may have no answer yet."""

    server: Front
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64))

    def send(self, count: int, recording: bytes = HOME) -> list[Future[Ending]]:
        """So many requests at once, none of which shares the work of another."""
        return [self._pool.submit(ended, self.server, recording) for _ in range(count)]


@contextlib.contextmanager
def under_load(server: Front) -> Iterator[Load]:
    """A block that may send requests and look at their ends later. Waits for the last end."""
    load = Load(server)
    with load._pool:
        yield load


def ended(server: Front, recording: bytes = TIMER, address: str = "127.0.0.1") -> Ending:
    """Send a recording from an address of this machine and wait for the end of the request, whatever it is."""
    try:
        with requests.Session() as session:
            session.mount("http://", From(address))
            reply = session.post(server.url, data=recording, headers={"Cache-Control": "no-cache"}, timeout=GONE_SECONDS)
        return Ending(reply.status_code, reply.text, time.monotonic())
    except requests.RequestException as error:
        return Ending(0, f"{type(error).__name__}: {error}", time.monotonic())


class From(HTTPAdapter):
    """Connections from an address: the gateway tells clients apart by it."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """As in requests."""
        super().init_poolmanager(*arguments, **options, source_address=(self._address, 0))


def good_after(server: Front, began: float, seconds: float = GONE_SECONDS) -> float:
    """Seconds from `began`, of time.monotonic(), until another client has its transcript. It asks again and again."""
    while time.monotonic() - began < seconds:
        ending = ended(server, address=OTHER_ADDRESS)
        if ending.is_good:
            assert words(TRANSCRIPTS["timer.flac"]) == words(json.loads(ending.text)["text"])
            return ending.at - began
        time.sleep(0.05)
    raise AssertionError(f"no good reply within {seconds:g} s")


def seconds_until(condition: Callable[[], bool], began: float, seconds: float = GONE_SECONDS) -> float:
    """Seconds from `began` until the condition holds. Fails after `seconds`."""
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s"
        time.sleep(0.02)
    return time.monotonic() - began
