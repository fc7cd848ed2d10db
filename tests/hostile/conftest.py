from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the module's own: what an attack leaves behind meets no other test."""
    server = Server(tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("state"))
    try:
        yield server.wait_until_ready()
        status = server.stop()
        assert status == 0, server.output
    finally:
        server.clean_up()
