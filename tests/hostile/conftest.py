from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.server import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for one module, so that the traces of an attack do not reach other tests."""
    with running(tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("state")) as server:
        yield server
