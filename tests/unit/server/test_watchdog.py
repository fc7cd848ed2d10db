"""The launcher's watchdog, with a stand-in for TorchServe and its worker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server import watchdog
from server.configuration import StartError
from server.torchserve import TorchServe
from server.watchdog import WorkerWatchdog, is_alive, worker_process
from tests.unit.doubles import PATIENCE
from whispercore.torchserve.handshake import WorkerHealth


class Worker:
    """A process that looks like TorchServe's worker and does nothing."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "model_service_worker.py"])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.end()


class Watched:
    """A watchdog and what it sees. `answer`: the status of its tests; None: they are not answered."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker, self.health = worker, WorkerHealth()
        self.answer: int | None = 200
        self.tests = 0
        self.ready: list[bool] = []
        self.said: list[str] = []
        monkeypatch.setattr(watchdog, "_interval", lambda: 0.05)
        monkeypatch.setattr(watchdog, "say", self.said.append)
        monkeypatch.setattr(watchdog, "_Test", self._test)
        watched = self

        class Server:
            process = SimpleNamespace(pid=os.getpid())
            watchdog_token = "secret"
            configuration = SimpleNamespace(inference=None, log_file="whisper.log")
            show_ready = staticmethod(self.ready.append)

            @property
            def worker_health(self) -> WorkerHealth:
                return watched.health

        self.watchdog = WorkerWatchdog(cast(TorchServe, Server()), start_seconds=0.05)

    def _test(self, *_: Any) -> Any:
        self.tests += 1
        return SimpleNamespace(status=self.answer, forgotten=SimpleNamespace(set=lambda: None))

    def look_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.watchdog.look()
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def watched(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(worker, monkeypatch)


def dead(worker: Worker) -> bool:
    return worker.process.poll() is not None


def test_the_worker_is_found_by_its_name_and_a_zombie_is_not_alive(worker: Worker) -> None:
    assert worker_process(os.getpid()) == worker.process.pid and is_alive(worker.process.pid)
    worker.process.kill()
    deadline = time.monotonic() + PATIENCE
    while is_alive(worker.process.pid):
        assert time.monotonic() < deadline
    worker.process.wait()
    assert worker_process(os.getpid()) is None


def test_an_idle_worker_is_tested_and_one_that_succeeds_is_not(watched: Watched) -> None:
    watched.look_until(lambda: watched.tests == 2)
    assert not watched.said and False not in watched.ready
    for _ in range(20):
        watched.health = WorkerHealth(time.monotonic() + PATIENCE)  # however long the next look takes
        watched.watchdog.look()
    assert watched.tests == 2


@pytest.mark.parametrize("answer", [500, None], ids=["fails", "hangs"])
def test_the_first_failure_ends_readiness_and_the_second_the_worker(watched: Watched, answer: int | None) -> None:
    watched.answer = answer
    watched.look_until(lambda: watched.ready[-1:] == [False])
    assert not dead(watched.worker)
    assert watched.said[0].startswith("not ready: the worker " + ("answered its test with 500" if answer else "did not pass its test"))
    watched.look_until(lambda: dead(watched.worker))
    assert watched.tests == 2 and watched.said[1].startswith("two tests in a row failed")
    watched.worker.start()
    watched.answer = 200
    watched.look_until(lambda: watched.ready[-1])
    assert watched.said[2:] == ["ready again"]


def test_another_requests_success_passes_the_test(watched: Watched) -> None:
    watched.answer = None
    watched.look_until(lambda: watched.tests == 1)
    watched.health = WorkerHealth(time.monotonic(), longest_batch=10.0)
    watched.watchdog.look()
    assert not watched.said and watched.ready == [True]


def test_a_worker_that_dies_again_and_again_ends_the_server(watched: Watched) -> None:
    with pytest.raises(StartError, match=r"started again 4 times in a row and transcribes nothing: see whisper.log"):
        for _ in range(20):
            watched.answer = None
            watched.worker.end()
            watched.watchdog.look()
            watched.worker.start()
            watched.watchdog.look()
    assert watched.ready and not any(watched.ready) and len(watched.said) == 1
