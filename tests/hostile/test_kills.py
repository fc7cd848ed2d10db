"""Every process of the server killed or stopped under load: what is open ends at once with a reason, what is queued is answered."""

from __future__ import annotations

import os
import signal
import time

import pytest
import requests

from tests.hostile.conftest import Figure, Start
from tests.hostile.load import TIMER, Ending, good_after, seconds_until, under_load
from tests.serve.server import Server, wait_for

pytestmark = [pytest.mark.serve, pytest.mark.slow]
OPEN, QUEUED, ROUNDS = 4, 6, 2
SOON = 20.0
"""Seconds within which a request ends whose process is gone. An idle machine takes half of one."""


def worker_of(server: Server) -> int:
    (worker,) = server.processes("model_service_worker")
    return worker


def queued(server: Server) -> int:
    """Requests that TorchServe has accepted and not handed to the worker."""
    (model,) = requests.get(f"http://127.0.0.1:{server.management_port}/models/whisper", timeout=30).json()
    return int(model["jobQueueStatus"]["pendingRequests"])


def say_why(endings: list[Ending]) -> bool:
    """Whether each ended with an error that has a message, or with a broken connection because it had been held by what was killed."""
    return all(not ending.status or (ending.status >= 500 and '"message"' in ending.text) for ending in endings)


@pytest.mark.parametrize("front", ["torchserve", "gateway"])
def test_a_killed_worker(server: Server, figure: Figure, front: str) -> None:
    door = server.gateway("gateway") if front == "gateway" else server
    for number in range(ROUNDS):
        with under_load(door) as load:
            open_ones = load.send(OPEN)
            wait_for(lambda: server.metric("whisper_open_requests") == OPEN, 60, "the requests are open")
            worker = worker_of(server)
            os.kill(worker, signal.SIGSTOP)  # a worker that takes nothing more: what comes now is queued
            waiting = load.send(QUEUED, TIMER)
            wait_for(lambda: queued(server) == QUEUED, 30, "the others are queued")
            began = time.monotonic()
            os.kill(worker, signal.SIGKILL)
            good = good_after(door, began)
            endings, survivors = [request.result() for request in open_ones], [request.result() for request in waiting]
        failed = max(ending.at for ending in endings) - began
        figure(
            f"{front}, kill -9 of the worker, {number + 1}: {OPEN} open requests failed within {failed:.2f} s, "
            f"{sum(ending.is_good for ending in survivors)} of {QUEUED} queued ones were answered, the next good reply after {good:.1f} s"
        )
        assert say_why(endings) and failed < SOON, endings
        assert front == "torchserve" or all('"error"' in ending.text and "again" in ending.text for ending in endings), endings
        assert all(ending.is_good for ending in survivors), survivors
    assert server.process.poll() is None


def test_a_stopped_worker_under_load(start: Start, figure: Figure) -> None:
    server = start(WHISPER_WATCHDOG_SECONDS="5")  # by default 30
    door = server.gateway("gateway")
    with under_load(door) as load:
        open_ones = load.send(OPEN)
        wait_for(lambda: server.metric("whisper_open_requests") == OPEN, 60, "the requests are open")
        worker, began = worker_of(server), time.monotonic()
        os.kill(worker, signal.SIGSTOP)
        waiting = load.send(QUEUED, TIMER)
        noticed = seconds_until(lambda: worker not in server.processes("model_service_worker"), began)
        good = good_after(door, began)
        endings, survivors = [request.result() for request in open_ones], [request.result() for request in waiting]
    figure(
        f"SIGSTOP of the worker: noticed and ended after {noticed:.1f} s, {sum(ending.is_good for ending in survivors)} of {QUEUED} "
        f"requests sent afterwards were answered, the next good reply after {good:.1f} s"
    )
    assert say_why([ending for ending in endings if not ending.is_good]), endings
    assert all(ending.is_good for ending in survivors), survivors


def test_a_killed_gateway(server: Server, figure: Figure) -> None:
    """The launcher starts another one. Clients of TorchServe's own port notice nothing."""
    door = server.gateway("gateway")
    with under_load(door) as load, under_load(server) as beside:
        open_ones, others = load.send(OPEN), beside.send(OPEN, TIMER)
        wait_for(lambda: server.metric("whisper_open_requests") >= OPEN, 60, "the requests are open")
        (gateway,) = server.processes("gateway.__main__")
        began = time.monotonic()
        os.kill(gateway, signal.SIGKILL)
        good = good_after(door, began)
        endings, answered = [request.result() for request in open_ones], sum(request.result().is_good for request in others)
    failed = max(ending.at for ending in endings) - began
    figure(f"kill -9 of the gateway: {OPEN} open requests ended within {failed:.2f} s, the next good reply after {good:.1f} s")
    assert say_why(endings) and failed < SOON, endings
    assert answered == OPEN
    wait_for(lambda: server.metric("whisper_open_requests") == 0, 60, "the work of requests that are gone has ended")


@pytest.mark.parametrize("who", ["Java", "the launcher"])
def test_a_killed_parent_under_load(start: Start, figure: Figure, who: str) -> None:
    server = start()
    with under_load(server.gateway("gateway")) as load:
        open_ones = load.send(OPEN)
        wait_for(lambda: server.metric("whisper_open_requests") == OPEN, 60, "the requests are open")
        victim = server.process.pid if who == "the launcher" else server.processes("org.pytorch.serve.ModelServer")[0]
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        status = server.wait_until_over(60)
        over = time.monotonic() - began
        gone = seconds_until(lambda: not server.processes(), began, 60)
        endings = [request.result() for request in open_ones]
    failed = max(ending.at for ending in endings) - began
    figure(
        f"kill -9 of {who}: {OPEN} open requests ended within {failed:.1f} s, the launcher after {over:.1f} s with {status}, "
        f"nothing was left running after {gone:.1f} s"
    )
    assert say_why(endings) and failed < SOON, endings
    assert status == (-signal.SIGKILL if who == "the launcher" else 1)
    began = time.monotonic()
    figure(f"the next start answers after {good_after(start().gateway('gateway'), began):.1f} s")
