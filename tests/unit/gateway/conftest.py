"""A gateway with a fake engine, served by uvicorn on a free port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.__main__ import make_server
from gateway.app import create_app
from gateway.backend import Backend
from gateway.configuration import Configuration
from gateway.inprocess import InProcess
from tests.unit.doubles import PATIENCE, Recorder
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.torchserve.handshake import CLIENT_HEADER

MAX_BODY = 2 * 1024 * 1024
CORE = Settings(max_audio_bytes=MAX_BODY // 2, client_header=CLIENT_HEADER, watchdog_seconds=0.0)


@dataclass(frozen=True)
class Served:
    """A running gateway."""

    client: httpx.Client
    port: int
    engine: Recorder
    app: Any

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def wait_for(condition: Callable[[], Any], what: str = "the condition") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serve(folder: Path, *, backend: Backend | None = None, engine: Recorder | None = None, **changes: Any) -> Iterator[Served]:
    engine = engine or Recorder()
    backend = backend or InProcess(lambda: Transcriber(CORE, engine=engine))
    plain = Configuration(spool=folder / "spool", data=folder / "data", port=free_port(), max_body_bytes=MAX_BODY)
    configuration = replace(plain, **changes)
    app = create_app(configuration, backend)
    server = make_server(app, configuration)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, "the start of the gateway")
    with httpx.Client(base_url=f"http://127.0.0.1:{configuration.port}", timeout=PATIENCE) as client:
        yield Served(client, configuration.port, engine, app)
    server.should_exit = True
    wait_for(lambda: not app.state.jobs.running, "the jobs have been left to the next start")
    engine.gate.set()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the gateway does not stop"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("gateway")) as running:
        yield running
