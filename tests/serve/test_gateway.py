"""The gateway as serve.sh runs it: killed, stopped, and alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, repeat, words
from tests.serve.server import Gateway, Server, wait_for

TIMER = (SAMPLES / "timer.flac").read_bytes()
EXPECTED = words(TRANSCRIPTS["timer.flac"])
LONG = 8
"""Repetitions of a sample of 47 s."""
MODES = pytest.mark.parametrize("arguments", [(), ("--inprocess",)], ids=["before TorchServe", "in process"])


def gateway_of(server: Server) -> Gateway:
    return server.gateway("gateway")


def transcribe(gateway: Gateway, audio: bytes = TIMER) -> requests.Response:
    return requests.post(f"{gateway.openai_url}/audio/transcriptions", files={"file": audio}, timeout=300)


def kill(server: Server) -> int:
    """Kill the gateway's process. Returns its process id."""
    [pid] = server.processes("gateway.__main__")
    os.kill(pid, signal.SIGKILL)
    return pid


@MODES
def test_a_killed_gateway_comes_back_and_loses_no_job(start: Callable[..., Server], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    server = start(arguments=arguments).wait_until_ready()
    gateway, long = gateway_of(server), repeat("home.flac", LONG, tmp_path / "long.flac").read_bytes()
    jobs = f"{gateway.openai_url}/jobs"
    ids = [requests.post(jobs, files={"file": audio}, timeout=60).json()["id"] for audio in (long, TIMER)]

    def progress(job: str) -> float:
        return float(requests.get(f"{jobs}/{job}", timeout=60).json()["progress"]["seconds"])

    wait_for(lambda: progress(ids[0]) > 0, 120, "the long job is under way")
    killed = kill(server)
    wait_for(lambda: server.processes("gateway.__main__") not in ([], [killed]), 60, "the next gateway")
    wait_for(lambda: _answers(gateway), 120, "its first answer")

    def status(job: str) -> str:
        return str(requests.get(f"{jobs}/{job}", timeout=60).json()["status"])

    wait_for(lambda: {status(job) for job in ids} == {"completed"}, 300, "both jobs")
    text = requests.get(f"{jobs}/{ids[1]}/result?response_format=text", timeout=60).text
    assert words(text) == EXPECTED
    assert requests.get(f"{jobs}/{ids[0]}", timeout=60).json()["attempts"] == 2
    assert words(transcribe(gateway).json()["text"]) == EXPECTED
    assert server.stop() == 0, server.output


@MODES
def test_open_requests_are_answered_before_the_end(start: Callable[..., Server], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    server = start(arguments=arguments).wait_until_ready()
    gateway, audio = gateway_of(server), repeat("home.flac", 2, tmp_path / "long.flac").read_bytes()
    with ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(transcribe, gateway, audio) for _ in range(2)]
        wait_for(lambda: gateway.metric("whisper_open_requests") == 2, 60, "both requests are open")
        assert server.stop() == 0, server.output
        assert all(words(reply.result().json()["text"]) for reply in replies)
    assert server.processes() == []


def test_in_process_there_is_no_java(inprocess: Gateway) -> None:
    assert inprocess.processes("java") == [] and len(inprocess.processes("gateway.__main__")) == 1


def test_a_taken_port_is_told(start: Callable[..., Server], torchserve: Server) -> None:
    second = start(WHISPER_GATEWAY_ADDRESS=f"http://127.0.0.1:{torchserve.gateway_port}")
    assert second.wait_until_over() == 1 and "WHISPER_GATEWAY_ADDRESS=http://127.0.0.1:PORT" in second.output


def test_without_a_gateway_torchserve_serves_alone(start: Callable[..., Server]) -> None:
    server = start(WHISPER_GATEWAY_ADDRESS="off").wait_until_ready()
    assert words(requests.post(server.url, data=TIMER, timeout=60).json()["text"]) == EXPECTED
    assert server.processes("gateway.__main__") == [] and server.stop() == 0


def _answers(gateway: Gateway) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{gateway.port}/health/ready", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False
