"""A load generator: a closed loop with a fixed number of open requests, and an open loop with random arrival times."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType

TIMEOUT_SECONDS = 900.0


class LoadError(Exception):
    """The server refused a request or did not start. A measurement with a failed request is discarded."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request, and the seconds from the first byte sent to the last byte read."""

    seconds: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """The result of a load: wall seconds, seconds and text of each recording, number of decoded windows, processor seconds.

    `windows` 0: they were not counted. `batch_seconds`: the longest batch; 0 where it is not known.
    """

    wall: float
    seconds: tuple[float, ...]
    windows: int
    texts: tuple[str, ...] = ()
    processor: float = 0.0
    batch_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """The replies of a load. `wall`: seconds from the start of the first request to the end of the last."""

    concurrency: int
    wall: float
    replies: tuple[Reply, ...]

    @property
    def requests_per_second(self) -> float:
        """Throughput."""
        return len(self.replies) / self.wall


class Connection:
    """A client's connection to a model of a TorchServe on this machine."""

    def __init__(self, port: int, model: str) -> None:
        self._path = f"/predictions/{model}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)

    def post(self, recording: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a recording and read the answer.

        Raises LoadError unless the status is 200, OSError when there is no server.
        """
        began = time.perf_counter()
        self._connection.request("POST", self._path, recording, dict(headers))
        response = self._connection.getresponse()
        body = response.read()
        seconds = time.perf_counter() - began
        if response.status != 200:
            raise LoadError(f"status {response.status}: {body.decode(errors='replace')[:300]}")
        return Reply(seconds, body)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()


def closed_loop(port: int, model: str, recordings: Sequence[bytes], headers: Mapping[str, str], *, concurrency: int) -> Load:
    """Send each recording once, in order, with `concurrency` requests open at any time. Raises LoadError.

    The replies have the order of the recordings.
    """
    waiting, lock, start = iter(enumerate(recordings)), threading.Lock(), threading.Barrier(concurrency + 1)
    replies: dict[int, Reply] = {}

    def client() -> None:
        with Connection(port, model) as connection:
            start.wait()
            while True:
                with lock:
                    number, recording = next(waiting, (0, None))
                if recording is None:
                    return
                replies[number] = connection.post(recording, headers)

    with ThreadPoolExecutor(concurrency) as clients:
        futures = [clients.submit(client) for _ in range(concurrency)]
        start.wait()
        began = time.perf_counter()
        for future in futures:
            future.result()
        return Load(concurrency, time.perf_counter() - began, tuple(replies[number] for number in range(len(recordings))))


def open_loop(port: int, model: str, recordings: Sequence[bytes], headers: Mapping[str, str], *, rate: float, seed: int = 0) -> Load:
    """Send each recording once, at the times of a Poisson process with `rate` requests a second. Raises LoadError.

    A reply's seconds count from the time its request was due, so that a late generator does not hide latency.
    """
    random_times = random.Random(seed)
    due = list(accumulate(random_times.expovariate(rate) for _ in recordings))
    began = time.perf_counter()

    def client(recording: bytes, due_seconds: float) -> Reply:
        time.sleep(max(0.0, began + due_seconds - time.perf_counter()))
        with Connection(port, model) as connection:
            reply = connection.post(recording, headers)
        return Reply(time.perf_counter() - began - due_seconds, reply.body)

    with ThreadPoolExecutor(len(recordings)) as clients:
        replies = tuple(clients.map(client, recordings, due))
    return Load(len(recordings), time.perf_counter() - began, replies)
