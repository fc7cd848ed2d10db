"""The application: all routes over one back end."""

from __future__ import annotations

import functools
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from whispercore import __version__
from whispercore.api.values import for_message
from whispercore.errors import ConfigurationError, EngineError, InvalidRequest, NotFound, WhisperError

from . import status, transcriptions
from .backend import Backend
from .configuration import Configuration
from .context import Gateway, Wrapper
from .hosts import is_trusted
from .jobs import routes as jobs
from .jobs.runner import JobRunner
from .jobs.store import JobStore
from .keys import Keys
from .openapi import describe
from .page import routes as page
from .realtime import route as realtime
from .refusals import MethodNotAllowed, error_response
from .spool import Spool
from .telemetry import Telemetry
from .usage import Usage

METHODS = ("DELETE", "GET", "HEAD", "POST", "PUT")
"""Of all routes."""
KEYS_SECONDS = 5.0
"""How often to look whether the file of keys has changed."""
logger = logging.getLogger(__name__)


def create_app(configuration: Configuration, backend: Backend) -> FastAPI:
    """The ASGI application. The back end starts and ends with it. Raises ConfigurationError."""
    if not (configuration.is_local or configuration.keys_file or configuration.allow_anonymous):
        message = f"without API keys the gateway listens on this machine only, not on {configuration.host}: set WHISPER_API_KEYS_FILE"
        raise ConfigurationError(f"{message}, or WHISPER_ALLOW_ANONYMOUS=true when something else decides who can connect")
    keys = Keys(configuration.keys_file) if configuration.keys_file else None
    try:
        store, usage = JobStore(configuration.data / "jobs"), Usage(configuration.data / "usage.sqlite")
    except (OSError, sqlite3.Error) as error:
        message = f"{configuration.data} cannot be used ({error}): set WHISPER_DATA_DIR to a folder that can be written"
        raise ConfigurationError(message, param="WHISPER_DATA_DIR") from None
    gateway = Gateway(
        configuration=configuration,
        backend=backend,
        spool=Spool(configuration.spool),  # after the lock on the data: the spool of a running gateway is not emptied
        keys=keys,
        usage=usage,
        telemetry=Telemetry(),
    )
    runner = JobRunner(gateway, store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await backend.start()
        try:
            async with anyio.create_task_group() as group:
                runner.start(group)
                group.start_soon(_reload_keys, gateway.keys)
                yield
                group.cancel_scope.cancel()
        finally:
            await backend.close()
            runner.store.close()
            gateway.usage.close()

    app = FastAPI(title="Whisper", version=__version__, lifespan=lifespan)
    document = functools.cache(lambda: describe(app))
    app.openapi = lambda: document()  # type: ignore[method-assign]  # FastAPI's own way to replace its document
    app.state.gateway, app.state.jobs = gateway, runner
    app.state.realtime = realtime.Sessions(configuration.realtime_sessions)
    for router in (page.router, status.router, transcriptions.router, jobs.router, realtime.router):
        app.include_router(router)
    app.add_exception_handler(WhisperError, _on_whisper_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_bad_query)
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=499))
    app.add_exception_handler(Exception, _on_error)
    if configuration.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(configuration.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-whisper-model", "x-whisper-warnings"],
        )
    trusts = functools.partial(is_trusted, allowed=configuration.allowed_hosts) if gateway.keys is None else lambda host: True
    app.add_middleware(Wrapper, telemetry=gateway.telemetry, trusts=trusts)
    return app


async def _reload_keys(keys: Keys | None) -> None:
    """Read the file of keys again whenever it changes."""
    fault = ""
    while keys:
        await anyio.sleep(KEYS_SECONDS)
        told, fault = fault, await run_sync(keys.reload)
        if fault and fault != told:
            logger.error("the API keys stay as they were: %s", fault)


async def _on_whisper_error(request: Request, error: Any) -> Response:
    logger.info("request %s refused with %d: %s", request.scope["state"]["request_id"], error.status, error.message)
    return error_response(error)


async def _on_http_error(request: Request, error: Any) -> Response:
    path = for_message(request.url.path)
    if error.status_code == 405:
        methods = ", ".join(_methods(request))
        reply = error_response(MethodNotAllowed(f"{path} does not take {for_message(request.method)}: use {methods}"))
        reply.headers["allow"] = methods
        return reply
    if error.status_code == 404:
        return error_response(NotFound(f"no such path: {path}; transcriptions are at /v1/audio/transcriptions"))
    return error_response(EngineError(str(error.detail)))


def _methods(request: Request) -> list[str]:
    """The methods of all routes that have the path of a request. Starlette names those of the first one only."""
    tried = ({**request.scope, "method": method} for method in METHODS)
    return [scope["method"] for scope in tried if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)]


async def _on_bad_query(request: Request, error: Any) -> Response:
    """A field of the query has the wrong type, as in `limit=many`."""
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return error_response(InvalidRequest(f"{name}: {first['msg']}", param=name))


async def _on_error(request: Request, error: Exception) -> Response:
    logger.exception("request %s failed", request.scope["state"]["request_id"], exc_info=error)
    response = error_response(EngineError("the gateway could not handle the request: its operator finds the reason in gateway.log"))
    response.headers["x-request-id"] = request.scope["state"]["request_id"]  # this reply is made outside of the Wrapper
    response.headers["connection"] = "close"  # uvicorn closes it after an exception
    return response
