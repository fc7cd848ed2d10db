"""A real TorchServe, started by ./serve.sh as users start it, on free ports and with its own folders."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300.0
MARK = "SERVER_TEST_MARK"
# Variables of the caller's shell that would change the server under test.
FOREIGN = re.compile(r"(TS_|WHISPER_)(?!VENV$|PYTHON$|TORCH$|MODELS_DIR$)|(LOG_LOCATION|METRICS_LOCATION|PYTHONPATH|TEMP)$")


FRONTS = pytest.mark.parametrize("server", ["torchserve", "gateway", "inprocess"], indirect=True)
"""Runs a test against TorchServe itself, the gateway before it, and the gateway alone."""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


class Server:
    """A running serve.sh. `folder`: its logs; `state`: what it sets up, which several servers may share."""

    kind = "torchserve"

    def __init__(
        self,
        folder: Path,
        state: Path,
        *,
        root: Path = ROOT,
        prefix: tuple[str, ...] = (),
        arguments: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.management_port, self.metrics_port, self.gateway_port = free_ports(4)
        self.mark = uuid.uuid4().hex
        settings = {
            "WHISPER_VENV": os.environ.get("WHISPER_VENV", sys.prefix),
            "WHISPER_STATE_DIR": str(state),
            "WHISPER_DATA_DIR": str(folder / "data"),
            "WHISPER_ENGINE": "ct2",
            "WHISPER_MODEL": "nano",
            "WHISPER_DEVICE": "cpu",
            "LOG_LOCATION": str(folder / "logs"),
            "TS_INFERENCE_ADDRESS": f"http://127.0.0.1:{self.port}",
            "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{self.management_port}",
            "TS_METRICS_ADDRESS": f"http://127.0.0.1:{self.metrics_port}",
            "WHISPER_GATEWAY_ADDRESS": f"http://127.0.0.1:{self.gateway_port}",
            MARK: self.mark,
        } | environment
        inherited = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
        self.began = time.monotonic()
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            command = [*prefix, str(root / "serve.sh"), *arguments]
            env = {name: value for name, value in {**inherited, **settings}.items() if value}
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    @property
    def output(self) -> str:
        """What serve.sh has printed on the console."""
        return (self.folder / "stderr").read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/predictions/whisper"

    @property
    def openai_url(self) -> str:
        """The base URL for OpenAI's clients."""
        return f"{self.url}/1.0/v1"

    @property
    def log(self) -> Path:
        """The log that names every request."""
        return self.folder / "logs" / "whisper.log"

    def gateway(self, kind: str) -> Gateway:
        """The same server through its gateway."""
        return Gateway(self, kind)

    def wait_until_ready(self) -> Server:
        wait_for(lambda: "ready after" in self.output or self.process.poll() is not None, START_SECONDS, "serve.sh ready")
        assert self.process.poll() is None, self.output
        self.ready_seconds = time.monotonic() - self.began
        return self

    def wait_until_over(self, seconds: float = START_SECONDS) -> int:
        """The exit status."""
        return self.process.wait(seconds)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        return _metric(self.metrics_port, name)

    def processes(self, name: str = "") -> list[int]:
        """The running processes that this serve.sh started, or those with `name` in their command line."""
        return [pid for pid, command in self._marked() if name in command]

    def _marked(self) -> Iterator[tuple[int, str]]:
        mark = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()

    def stop(self) -> int:
        """Stop the server as Ctrl-C does. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.wait_until_over(120)

    def clean_up(self) -> None:
        """Kill all processes that remain."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            self.process.terminate()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)


class Gateway:
    """A running serve.sh as seen through its gateway. `kind`: "gateway" before TorchServe, or "inprocess"."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server, self.kind = server, kind
        self.folder, self.port = server.folder, server.gateway_port
        self.url, self.openai_url = f"http://127.0.0.1:{self.port}/predictions/whisper", f"http://127.0.0.1:{self.port}/v1"
        self.log = self.folder / "logs" / ("whisper.log" if kind == "gateway" else "gateway.log")

    def metric(self, name: str) -> float:
        return _metric(self.port, name)

    def processes(self, name: str = "") -> list[int]:
        return self.server.processes(name)


def _metric(port: int, name: str) -> float:
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


@contextlib.contextmanager
def running(folder: Path, state: Path, arguments: tuple[str, ...] = (), **environment: str) -> Iterator[Server]:
    """A server that is ready, stopped as Ctrl-C does at the end. Nothing of it is left behind."""
    server = Server(folder, state, arguments=arguments, **environment)
    try:
        yield server.wait_until_ready()
        status = server.stop()
        assert status == 0, server.output
    finally:
        server.clean_up()
