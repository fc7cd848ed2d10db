"""`python -m gateway`: serves the application until SIGTERM or SIGINT. serve.sh starts it.

Exit status: 0 after a clean stop, 1 when it could not start.
"""

from __future__ import annotations

import logging
import sys

import uvicorn

from whispercore.checkpoints import choose_model, prepare
from whispercore.errors import ConfigurationError
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings

from .app import create_app
from .backend import Backend
from .configuration import Configuration
from .connections import HEADER_BYTES, KEEP_ALIVE_SECONDS, TimedProtocol
from .inprocess import InProcess
from .torchserve import TorchServe


def main() -> int:
    """Serve; see the module's text for the exit status."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel("WARNING")
    try:
        configuration = Configuration.load()
        app = create_app(configuration, _backend(configuration))
    except ConfigurationError as error:
        print(f"gateway: {error.message}", file=sys.stderr)
        return 1
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=configuration.host,
            port=configuration.port,
            http=TimedProtocol,
            ws="websockets-sansio",
            ws_max_size=2 * 1024 * 1024,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(configuration.grace_seconds)),
            access_log=False,
            log_config=None,
            server_header=False,
        )
    )
    server.run()
    return 0 if server.started else 1


def _backend(configuration: Configuration) -> Backend:
    if configuration.torchserve:
        return TorchServe(configuration.torchserve, configuration.torchserve_metrics)
    return InProcess(_load)


def _load() -> Transcriber:
    settings = choose_model(Settings.load())
    prepare(settings)
    return Transcriber(settings)


if __name__ == "__main__":
    sys.exit(main())
