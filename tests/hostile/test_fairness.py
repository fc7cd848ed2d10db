"""Floods, and clients that leave: what they cost another client, in windows of others that are decoded while its clip waits."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.hostile.faults import Faults, faulty_server
from tests.serve.server import Server, wait_for
from tests.unit.doubles import wav

pytestmark = [pytest.mark.serve, pytest.mark.slow]
PATIENCE = 120.0
BATCH = 8
SHARE = 128
"""Open requests of one client: config/model-config.yaml."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Faults]]:
    """Its engine takes a twentieth of a second for a window, in batches of at most 8."""
    folder = tmp_path_factory.mktemp("fairness")
    with faulty_server(folder, seconds_per_window=0.05, WHISPER_CLIENT_HEADER="x-whisper-client") as server:
        yield server


@pytest.fixture
def server(running: tuple[Server, Faults]) -> Server:
    return running[0]


def post(server: Server, client: str, seed: int, timeout: float = PATIENCE) -> requests.Response:
    headers = {"X-Whisper-Client": client, "X-Whisper-Vad-Filter": "false"} if client else {"X-Whisper-Vad-Filter": "false"}
    return requests.post(server.url, data=wav(1.0, seed), headers=headers, timeout=timeout)


def windows_meanwhile(server: Server, client: str, seed: int) -> int:
    """The windows that are decoded while a clip of the client waits, its own included."""
    before = server.metric("whisper_windows_total")
    reply = post(server, client, seed)
    assert reply.status_code == 200, reply.text
    return round(server.metric("whisper_windows_total") - before)


def test_a_flood_of_one_client_delays_another_by_a_few_batches(server: Server) -> None:
    with ThreadPoolExecutor(400) as pool:
        flood = [pool.submit(post, server, "flood", seed) for seed in range(400)]
        wait_for(lambda: server.metric("whisper_open_requests") > SHARE / 2, PATIENCE, "the flood is open")
        meanwhile: list[int] = []
        while server.metric("whisper_open_requests") > SHARE / 4:
            meanwhile.append(windows_meanwhile(server, "other", 1000 + len(meanwhile)))
        replies = [request.result() for request in flood]
    # One batch is being decoded when the clip arrives, one has the clip, and metrics lag by one. First come, first served is a hundred.
    assert meanwhile and sorted(meanwhile)[len(meanwhile) // 2] <= 3 * BATCH, meanwhile
    statuses = Counter(reply.status_code for reply in replies)
    assert statuses[200] >= SHARE and set(statuses) <= {200, 503}
    for refused in (reply for reply in replies if reply.status_code == 503):
        assert refused.json()["error"]["code"] == "client_overloaded"
        assert int(refused.headers["Retry-After"]) >= 1


def test_clients_that_have_left_are_noticed_before_they_are_transcribed(running: tuple[Server, Faults]) -> None:
    server, faults = running
    leavers = 100

    def leave(seed: int) -> None:
        with contextlib.suppress(requests.RequestException):
            post(server, "", 5000 + seed, timeout=2.0)

    faults.set("the engine hangs")
    with ThreadPoolExecutor(leavers) as pool:
        leaving = [pool.submit(leave, seed) for seed in range(leavers)]
        wait_for(lambda: server.metric("whisper_open_requests") > leavers / 2, PATIENCE, "they are open")
        assert all(future.result() is None for future in leaving)
    wait_for(lambda: server.metric("whisper_open_requests") <= BATCH, PATIENCE, "they are noticed")
    faults.set("")
    assert windows_meanwhile(server, "", 7000) <= 2 * BATCH + 1
    wait_for(lambda: server.metric("whisper_open_requests") == 0, PATIENCE, "nothing is open")


def test_audio_that_waits_is_published_and_goes_away(server: Server) -> None:
    with ThreadPoolExecutor(64) as pool:
        waiting = [pool.submit(post, server, "", 9000 + seed) for seed in range(64)]
        wait_for(lambda: server.metric("whisper_waiting_audio_seconds") > 1, PATIENCE, "audio waits")
        assert all(request.result().status_code == 200 for request in waiting)
    wait_for(lambda: server.metric("whisper_waiting_audio_seconds") == 0, PATIENCE, "none waits")
