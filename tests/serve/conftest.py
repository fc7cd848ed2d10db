from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serve.server import Server

MAX_AUDIO_SECONDS = 3600


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What serve.sh sets up, shared by every server of the run."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def server(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests talk to."""
    server = Server(tmp_path_factory.mktemp("server"), state, WHISPER_MAX_AUDIO_SECONDS=str(MAX_AUDIO_SECONDS))
    try:
        yield server.wait_until_ready()
        status = server.stop()
        assert status == 0, server.said
    finally:
        server.clean_up()


@pytest.fixture
def start(server: Server, state: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts further servers, after `server` has set everything up; none outlives the test."""
    started: list[Server] = []

    def start(**options: object) -> Server:
        started.append(Server(tmp_path / f"server{len(started)}", **({"state": state} | options)))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.clean_up()
