"""Simultaneous requests, and what one of them must not do to the others."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, assert_understood, repeat, studio, words
from tests.serve.server import Server, wait_for

TIMER = (SAMPLES / "timer.flac").read_bytes()
EXPECTED = words(TRANSCRIPTS["timer.flac"])
LONG_REPEATS = 15


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Nearly twelve minutes of speech, 22 MB as WAV: long enough that the reply starts before the transcript is
    finished."""
    return repeat("home.flac", LONG_REPEATS, tmp_path_factory.mktemp("long") / "long.wav").read_bytes()


def transcribe(server: Server, audio: bytes) -> requests.Response:
    return requests.post(server.url, data=audio, timeout=300)


def test_sixteen_at_once(server: Server) -> None:
    names = [name for name in TRANSCRIPTS if name != "home.flac"]
    bodies = [(SAMPLES / names[number % len(names)]).read_bytes() for number in range(16)]
    with ThreadPoolExecutor(18) as pool:
        refused = pool.submit(transcribe, server, b"not a recording" * 100)
        empty = pool.submit(transcribe, server, b"")
        replies = list(pool.map(lambda body: transcribe(server, body), bodies))
    assert [reply.status_code for reply in replies] == [200] * 16
    for number, reply in enumerate(replies):
        assert_understood(reply.json()["text"], names[number % len(names)])
    assert (refused.result().status_code, empty.result().status_code) == (415, 400)


def test_a_clip_does_not_wait_for_a_long_file(server: Server, long: bytes) -> None:
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(transcribe, server, long)
        wait_for(lambda: server.metric("whisper_open_requests") == 1, 60, "the long file is open")
        clip = transcribe(server, TIMER)
        assert words(clip.json()["text"]) == EXPECTED
        assert not pending.done(), "the clip was answered after the long file, or the file is too short for this test"
        spoken = words(pending.result().json()["text"])
    assert len(spoken) == pytest.approx(LONG_REPEATS * len(words(TRANSCRIPTS["home.flac"])), rel=0.05)


def test_a_client_that_disconnects_cancels_its_work(server: Server, tmp_path: Path) -> None:
    windows, half_an_hour = server.metric("whisper_windows_total"), repeat("home.flac", 38, tmp_path / "longer.wav").read_bytes()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", "/predictions/whisper", half_an_hour)
    assert connection.getresponse().status == 200  # the reply has started
    connection.close()

    def is_cancelled() -> bool:
        """TorchServe reports closed connections with the next request: this clip, or serve.sh's health check."""
        assert words(transcribe(server, TIMER).json()["text"]) == EXPECTED
        return server.metric("whisper_open_requests") == 0

    wait_for(is_cancelled, 60, "the request is cancelled")
    assert server.metric("whisper_windows_total") - windows < 30 * 60 / 30, "it was transcribed to its end"


def test_a_client_that_disconnects_while_sending(server: Server, long: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            f"POST /predictions/whisper HTTP/1.1\r\nHost: here\r\nContent-Length: {len(long)}\r\n\r\n".encode() + long[:1_000_000]
        )
    assert words(transcribe(server, TIMER).json()["text"]) == EXPECTED


def test_the_largest_body(server: Server, tmp_path: Path) -> None:
    """150 MiB of audio, with the overhead of multipart. Small requests are answered meanwhile."""
    size = 150 * 1024 * 1024
    audio = studio("timer.flac", size, tmp_path / "studio.wav").read_bytes()
    assert size - 100 < len(audio) <= size
    over = threading.Event()
    clips: list[float] = []

    def send_clips() -> None:
        while not over.wait(0.5):
            began = time.monotonic()
            assert words(transcribe(server, TIMER).json()["text"]) == EXPECTED
            clips.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(send_clips)
        reply = requests.post(server.url, files={"file": ("studio.wav", audio)}, timeout=300)
        over.set()
        beside.result()
    content = reply.json()
    assert (reply.status_code, words(content["text"])) == (200, EXPECTED)
    assert content["duration"] == pytest.approx(size / (192000 * 8 * 4), abs=0.1)
    assert clips


def test_a_killed_worker_is_replaced(server: Server, long: bytes) -> None:
    """A reply that had started is cut off and does not hang. The next request is answered by the new worker."""
    begun = requests.post(server.url, data=long, timeout=120, stream=True)
    assert begun.status_code == 200
    [worker] = server.processes("model_service_worker")
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(requests.RequestException):
        begun.json()
    assert words(transcribe(server, TIMER).json()["text"]) == EXPECTED
    assert worker not in server.processes("model_service_worker")
