"""The gateway on a free port, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from gateway.app import create_app
from gateway.backend import Backend
from gateway.configuration import Configuration
from gateway.connections import TimedProtocol


@contextlib.contextmanager
def served(folder: Path, backend: Backend, **configuration: Any) -> Iterator[tuple[str, FastAPI]]:
    """The address, HOST:PORT, and the application."""
    app = create_app(Configuration(spool=folder / "spool", data=folder / "data", **configuration), backend)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=TimedProtocol, ws="websockets-sansio", ws_max_size=2 * 1024 * 1024, log_config=None, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            assert server.started
            yield f"127.0.0.1:{listener.getsockname()[1]}", app
        finally:
            server.should_exit = True
            thread.join(60)


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)
