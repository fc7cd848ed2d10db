"""One server for most tests, and a way to start others. Every test in this folder has the marker `serve`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serve.server import Gateway, Server, running

MAX_AUDIO_SECONDS = 3600
FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; pytest calls the hook with all tests of the run."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.serve)


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what serve.sh sets up, shared by all servers of the run."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def torchserve(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of most tests, with its gateway."""
    with running(tmp_path_factory.mktemp("server"), state, WHISPER_MAX_AUDIO_SECONDS=str(MAX_AUDIO_SECONDS)) as server:
        yield server


@pytest.fixture(scope="session")
def inprocess(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that transcribes by itself."""
    folder = tmp_path_factory.mktemp("inprocess")
    with running(folder, state, ("--inprocess",), WHISPER_MAX_AUDIO_SECONDS=str(MAX_AUDIO_SECONDS)) as server:
        yield server.gateway("inprocess")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server | Gateway:
    """TorchServe; in modules that are marked with FRONTS also the gateway before it, and the gateway alone."""
    kind = getattr(request, "param", "torchserve")
    if kind == "gateway":
        torchserve: Server = request.getfixturevalue("torchserve")
        return torchserve.gateway("gateway")
    front: Server | Gateway = request.getfixturevalue(kind)
    return front


@pytest.fixture
def start(torchserve: Server, state: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts further servers, after `torchserve` has set everything up. They are stopped at the end of the test."""
    started: list[Server] = []

    def start(**options: object) -> Server:
        started.append(Server(tmp_path / f"server{len(started)}", **({"state": state} | options)))
        return started[-1]

    yield start
    for further in started:
        further.clean_up()
