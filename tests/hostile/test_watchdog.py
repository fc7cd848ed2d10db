"""The launcher's watchdog: whatever stops the worker from transcribing, readiness says so at once, and the worker is started again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.hostile.faults import Faults, faulty_server
from tests.serve.recordings import SAMPLES
from tests.serve.server import Server, wait_for

pytestmark = [pytest.mark.serve, pytest.mark.slow]
TIMER = (SAMPLES / "timer.flac").read_bytes()
WATCHDOG_SECONDS = 3
PATIENCE = 180.0
"""Two tests, the end of the worker, and the start of the next one, on a busy machine."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Faults]]:
    with faulty_server(tmp_path_factory.mktemp("faulty"), WHISPER_WATCHDOG_SECONDS=str(WATCHDOG_SECONDS)) as server:
        yield server


def worker_of(server: Server) -> int:
    (worker,) = server.processes("model_service_worker")
    return worker


def post(server: Server, seconds: float = PATIENCE) -> int:
    return requests.post(server.url, data=TIMER, headers={"Cache-Control": "no-cache"}, timeout=seconds).status_code


def is_ready(server: Server) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{server.url}/1.0/health/ready", timeout=2).status_code == 200
    return False


def recovers_from(server: Server, worker: int) -> None:
    """Wait until readiness is gone, the worker is another one, and that one transcribes. One line tells of each."""
    wait_for(lambda: worker not in server.processes("model_service_worker"), PATIENCE, "the worker is ended")
    wait_for(lambda: server.output.count("ready again") == server.output.count("not ready: "), PATIENCE, "ready again")
    assert is_ready(server) and post(server) == 200
    assert server.process.poll() is None


def test_an_idle_server_is_tested_and_the_test_is_not_counted(running: tuple[Server, Faults]) -> None:
    server, _ = running
    assert post(server) == 200
    wait_for(lambda: server.metric("whisper_last_success_timestamp_seconds") > 0, PATIENCE, "the success is published")
    windows, requests_before = server.metric("whisper_windows_total"), server.metric("whisper_requests_total")
    before = server.metric("whisper_last_success_timestamp_seconds")
    wait_for(lambda: server.metric("whisper_last_success_timestamp_seconds") >= before + WATCHDOG_SECONDS - 1, PATIENCE, "a test")
    assert server.metric("whisper_windows_total") > windows
    assert server.metric("whisper_requests_total") == requests_before
    assert abs(time.time() - server.metric("whisper_last_success_timestamp_seconds")) < PATIENCE


@pytest.mark.parametrize("fault", ["the engine hangs", "the engine raises", "the readers hang"])
def test_a_worker_that_transcribes_nothing_is_replaced(running: tuple[Server, Faults], fault: str) -> None:
    server, faults = running
    worker, times = worker_of(server), server.output.count("not ready: ")
    faults.set(fault)
    wait_for(lambda: server.output.count("not ready: ") > times, PATIENCE, "readiness is gone")
    assert not is_ready(server)
    assert server.metric("whisper_ready") == 0, "the worker itself still answers, and publishes what the watchdog says"
    wait_for(lambda: worker not in server.processes("model_service_worker"), PATIENCE, "the worker is ended")
    faults.set("")
    recovers_from(server, worker)


@pytest.mark.parametrize("load", [0, 8], ids=["idle", "under load"])
def test_a_worker_that_is_stopped_is_replaced(running: tuple[Server, Faults], load: int) -> None:
    server, faults = running
    worker = worker_of(server)
    with ThreadPoolExecutor(load + 1) as pool:
        faults.set("the engine hangs" if load else "")
        waiting = [pool.submit(post, server) for _ in range(load)]
        if load:
            wait_for(lambda: server.metric("whisper_open_requests") >= load, PATIENCE, "the requests are open")
        os.kill(worker, signal.SIGSTOP)
        faults.set("")
        recovers_from(server, worker)
        assert {request.result() for request in waiting} <= {200, 500, 503, 507}


def test_a_worker_that_dies_at_each_start_ends_the_server(tmp_path: Path) -> None:
    with faulty_server(tmp_path, WHISPER_WATCHDOG_SECONDS=str(WATCHDOG_SECONDS)) as (server, faults):
        faults.set("the worker dies")
        os.kill(worker_of(server), signal.SIGKILL)
        assert server.wait_until_over(PATIENCE) == 1
        assert "times in a row and transcribes nothing: see" in server.output.splitlines()[-1]
        assert not server.processes()


def test_an_engine_that_never_works_again_ends_the_server(tmp_path: Path) -> None:
    with faulty_server(tmp_path, WHISPER_WATCHDOG_SECONDS=str(WATCHDOG_SECONDS)) as (server, faults):
        faults.set("the engine raises")
        assert server.wait_until_over(2 * PATIENCE) == 1
        assert "the worker was started again 3 times in a row and transcribes nothing" in server.output.splitlines()[-1]
        assert not server.processes()
