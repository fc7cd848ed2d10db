"""A transcriber of this process behind the gateway, and the project's own load client in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.__main__ import make_server
from gateway.app import create_app
from gateway.configuration import Configuration
from gateway.inprocess import InProcess
from whispercore.serving.transcriber import Transcriber

from .load import LoadError
from .server import free_ports

CLIENT = Path(__file__).resolve().parent.parent / "clients" / "bulk_request.py"


@dataclass(frozen=True, slots=True)
class Answers:
    """`seconds`: from the first request to the last answer. `latencies`: of each request."""

    seconds: float
    latencies: list[float]


@contextmanager
def gateway(transcriber: Transcriber) -> Iterator[str]:
    """The address of a gateway, on a thread of this process, that transcribes with `transcriber`, and closes it at the end."""
    with TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        configuration = Configuration(spool=Path(folder, "spool"), data=Path(folder, "data"), port=port)
        server = make_server(create_app(configuration, InProcess(lambda: transcriber)), configuration)
        thread = threading.Thread(target=server.run, name="gateway")
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise LoadError(f"the gateway does not start on port {port}")
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


def send(url: str, recordings: Sequence[bytes], suffix: str, *, at_once: int, repeat: int = 1, vad: bool = True) -> Answers:
    """Send each recording `repeat` times, `at_once` open at any time. `vad`: with voice detection.

    Raises CalledProcessError when one is not answered.
    """
    with TemporaryDirectory() as folder:
        for number, recording in enumerate(recordings):
            Path(folder, f"{number:02}.{suffix}").write_bytes(recording)
        report = Path(folder, "report.json")
        arguments = ["--url", url, "--language", "en", "--concurrency", str(at_once), "--repeat", str(repeat), "--json", str(report)]
        arguments += [] if vad else ["--option", "vad=false"]
        subprocess.run([sys.executable, str(CLIENT), folder, *arguments], check=True, stdout=subprocess.DEVNULL)
        answered = json.loads(report.read_text())
    return Answers(answered["summary"]["wall"], [outcome["latency"] for outcome in answered["outcomes"]])
