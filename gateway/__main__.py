"""`python -m gateway`: serves the application until SIGTERM or SIGINT. serve.sh starts it.

Exit status: 0 after a clean stop, 1 when it could not start.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI

from whispercore.errors import ConfigurationError

from .app import create_app
from .backend import Backend
from .configuration import Configuration
from .connections import HEADER_BYTES, KEEP_ALIVE_SECONDS, TimedProtocol
from .logs import set_up_logging
from .torchserve import TorchServe


def main() -> int:
    """Serve; see the module's text for the exit status."""
    set_up_logging()
    try:
        configuration = Configuration.load()
        app = create_app(configuration, _backend(configuration))
    except ConfigurationError as error:
        print(f"gateway: {error.message}", file=sys.stderr)
        return 1
    server = make_server(app, configuration)
    server.run()
    return 0 if server.started else 1


def make_server(app: FastAPI, configuration: Configuration) -> uvicorn.Server:
    """uvicorn with this project's limits on connections."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=configuration.host,
            port=configuration.port,
            http=TimedProtocol,
            ws="websockets-sansio",
            ws_max_size=2 * 1024 * 1024,
            # a realtime session that has too much sound reads no further for a while, and no pongs either
            ws_ping_timeout=120,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(configuration.grace_seconds)),
            access_log=False,
            log_config=None,
            server_header=False,
        )
    )


def _backend(configuration: Configuration) -> Backend:
    if configuration.torchserve:
        return TorchServe(configuration.torchserve, configuration.torchserve_metrics)
    from .inprocess import InProcess, load  # imports PyTorch and an engine, which takes seconds

    return InProcess(load)


if __name__ == "__main__":
    sys.exit(main())
