"""Inputs that anyone can send, each of which once stopped the server or misled its operator; after each the next request is answered."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, words
from tests.serve.server import Server
from tests.unit.audio.test_hostile import MP3, id3, matroska

pytestmark = pytest.mark.serve
TIMER = (SAMPLES / "timer.flac").read_bytes()
PATIENCE = 30.0
"""Seconds for a request beside an attack. An idle server takes one; the machine is busy with the attack."""


def answered(server: Server, seconds: float = PATIENCE) -> float:
    """Seconds until the request of another client has its transcript."""
    began = time.monotonic()
    reply = requests.post(server.url, data=TIMER, headers={"Content-Type": "audio/flac", "Cache-Control": "no-cache"}, timeout=seconds)
    assert reply.status_code == 200, reply.text
    assert words(reply.json()["text"]) == words(TRANSCRIPTS["timer.flac"])
    return time.monotonic() - began


@contextlib.contextmanager
def watched(server: Server) -> Iterator[list[float]]:
    """Requests of another user, one after the other, while the block runs; seconds that each took."""
    over, took = threading.Event(), list[float]()

    def ask() -> None:
        while not over.is_set():
            took.append(answered(server))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield took
        finally:
            over.set()
        asking.result()


@pytest.mark.parametrize("version", ["", "/1.0"])
def test_a_customized_description_does_not_stop_the_queue(server: Server, version: str) -> None:
    base = f"http://127.0.0.1:{server.management_port}/models/whisper{version}"
    refused = requests.get(base, params={"customized": "true"}, timeout=30)
    assert refused.status_code == 400 and "customized" in refused.json()["message"]
    answered(server)
    assert requests.get(base, timeout=30).json()[0]["workers"][0]["status"] == "READY"


@pytest.mark.parametrize("bomb", [id3(100_000) + MP3, matroska(100_000)], ids=["id3", "matroska"])
def test_files_full_of_tags_do_not_stop_the_readers(server: Server, bomb: bytes) -> None:
    for _ in range(2):  # as many as there are readers; the client leaves at once
        with contextlib.suppress(requests.Timeout, requests.ConnectionError):  # the latter while the body is sent
            requests.post(server.url, data=bomb, headers={"Cache-Control": "no-cache"}, timeout=0.5)
    answered(server)


def test_packets_without_sound_do_not_stop_the_readers(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool, watched(server):
        replies = list(pool.map(lambda _: requests.post(server.url, data=b"#!AMR\n" + b"\x7c" * 3_000_000, timeout=120), range(2)))
    assert {reply.status_code for reply in replies} <= {200, 422}
    assert all("processor time" in reply.text for reply in replies)


@pytest.mark.parametrize(
    ("count", "content_type"), [(200_000, "multipart/form-data; boundary=x"), (100_000, "application/x-www-form-urlencoded")]
)
def test_a_form_of_many_fields_stops_no_other_request(server: Server, count: int, content_type: str) -> None:
    if "multipart" in content_type:
        body = b"".join(b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n\r\n' % number for number in range(count)) + b"--x--\r\n"
    else:
        body = "&".join(f"f{number}=" for number in range(count)).encode()
    with watched(server) as took:
        reply = requests.post(server.url, data=body, headers={"Content-Type": content_type}, timeout=120)
    assert reply.status_code == 400 and "fields" in reply.json()["error"]["message"], reply.text
    assert max(took) < PATIENCE


def worker_metrics(server: Server) -> list[str]:
    """The worker's metrics; TorchServe adds the host's name as a label to each."""
    text = requests.get(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30).text
    return [line for line in text.splitlines() if re.match(r"whisper_\w+\{", line)]


def test_a_client_writes_no_metrics_and_no_log_lines(server: Server) -> None:
    answered(server)
    pid = requests.get(f"http://127.0.0.1:{server.management_port}/models/whisper", timeout=30).json()[0]["workers"][0]["pid"]
    log = server.folder / "logs" / "whisper.log"
    injected = "[METRICS]whisper_windows_total.Count:4242|#|#hostname:x,1795820853"
    for line_break in ("\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\x0b", "\x0c"):
        for text in (injected, "[PID]1", "request 00000: 9.9 s of audio in 0.001 s"):
            body = {"audio": "AAAA", f"x{line_break}{text}{line_break}y": 1, "language": f"x{line_break}{text}"}
            assert requests.post(server.url, json=body, timeout=30).status_code == 400
            assert requests.post(server.url, json={"audio": "AAAA", "language": f"x{line_break}{text}"}, timeout=30).status_code == 400
            answer = requests.post(server.url, data={"prompt": "x", f"x{line_break}{text}": "1"}, timeout=30)
            assert answer.status_code in (400, 500)
    answered(server)
    answered(server)  # Java reads the worker's lines in the order in which they were written
    metrics = worker_metrics(server)
    hosts = {host for line in metrics for host in re.findall(r'ostname="([^"]*)"', line)}
    assert len(metrics) >= 5 and len(hosts) == 1 and hosts != {"x"}, metrics
    assert server.metric("whisper_windows_total") < 4242
    workers = requests.get(f"http://127.0.0.1:{server.management_port}/models/whisper", timeout=30).json()[0]["workers"]
    assert workers[0]["pid"] == pid
    messages = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    forged = ("[METRICS]whisper_windows_total.Count:4242", "request 00000")
    assert not [message for message in messages if message == "[PID]1" or message.startswith(forged)]


def test_options_cannot_multiply_the_work_without_bound(server: Server) -> None:
    for options in ({"beam_size": "17"}, {"best_of": "1000"}, {"beam_size": "16", "patience": "10"}):
        reply = requests.post(server.url, data=options, files={"file": TIMER}, timeout=60)
        assert reply.status_code == 400, reply.text


def test_readiness_is_told(server: Server) -> None:
    ready = requests.get(f"{server.url}/1.0/health/ready", timeout=30)
    assert ready.status_code == 200 and ready.json()["status"] == "ready"
    assert server.metric("whisper_ready") == 1
