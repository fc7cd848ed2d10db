"""A server for each module, further ones for tests that end theirs, and figures that are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serve.server import Server, running

Start = Callable[..., Server]
Figure = Callable[[str], None]


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what serve.sh sets up, shared by all servers of this folder."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, state: Path) -> Iterator[Server]:
    """A server for one module, so that the traces of an attack do not reach other tests."""
    with running(tmp_path_factory.mktemp("server"), state) as server:
        yield server


@pytest.fixture
def start(state: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts servers that the test may end in any way. Nothing of them is left."""
    started: list[Server] = []

    def start(**options: object) -> Server:
        started.append(Server(tmp_path / f"server{len(started)}", **({"state": state} | options)))
        return started[-1].wait_until_ready()

    yield start
    for server in started:
        server.clean_up()


@pytest.fixture
def figure(capsys: pytest.CaptureFixture[str]) -> Figure:
    """Prints a line past pytest's capture: what an attack cost."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}")

    return show
