"""What the routes share: the parts of the gateway, who asks, and what wraps every request."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whispercore.api.request import client_request_id

from .backend import Backend
from .configuration import Configuration
from .keys import Key, Keys
from .refusals import Forbidden, error_response
from .spool import Spool
from .telemetry import Telemetry
from .usage import Usage

logger = logging.getLogger(__name__)
T = TypeVar("T")

_SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The parts of the running gateway; `app.state.gateway` holds it. `keys`: None when no key is needed."""

    configuration: Configuration
    backend: Backend
    spool: Spool
    keys: Keys | None
    usage: Usage
    telemetry: Telemetry


@dataclass(frozen=True, slots=True)
class Admission:
    """A client that may ask. `name`: the key's, or the address. `key`: None without keys. `headers`: its x-ratelimit headers."""

    name: str
    key: Key | None
    headers: Mapping[str, str]


def gateway_of(connection: HTTPConnection) -> Gateway:
    """The gateway that a request or a WebSocket has reached."""
    gateway: Gateway = connection.app.state.gateway
    return gateway


def request_id_of(connection: HTTPConnection) -> str:
    """The client's own x-request-id, or one that the gateway has made."""
    request_id: str = connection.scope["state"]["request_id"]
    return request_id


@asynccontextmanager
async def admitted(connection: HTTPConnection, authorization: str = "") -> AsyncIterator[Admission]:
    """Admit a client for one request, a job or a session, which is open until the context ends.

    `authorization`: in place of the header, where a browser cannot send one. Raises Unauthorized (401), RateLimited (429).
    """
    gateway = gateway_of(connection)
    address = connection.client.host if connection.client else "unknown"
    if gateway.keys is None:
        yield Admission(f"address:{address}", None, {})
        return
    key = gateway.keys.check(authorization or connection.headers.get("authorization", ""))
    with gateway.usage.request(key) as headers:
        yield Admission(f"key:{key.name}", key, headers)


def count_audio(gateway: Gateway, admission: Admission, seconds: float, request_id: str) -> None:
    """Count transcribed audio for a key, in its limits, in the metrics and in the log."""
    if admission.key and seconds:
        gateway.usage.add_audio(admission.key, seconds)
        gateway.telemetry.audio_seconds.labels(admission.key.name).inc(seconds)
        logger.info("request %s: key %s, %.1f s of audio", request_id, admission.key.name, seconds)


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result. Cancels the work and raises ClientDisconnect when the client goes first. The body must have been read."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnection(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Wrapper:
    """ASGI middleware around everything: the request's id, the metrics, and headers for safety. It does not buffer."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, trusts: Callable[[str], bool] = lambda host: True) -> None:
        """`trusts`: whether a request with this Host header is handled."""
        self._app, self._telemetry, self._trusts = app, telemetry, trusts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        connection = HTTPConnection(scope)
        request_id = client_request_id(dict(connection.headers)) or secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        status, began = 499, time.monotonic()

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["x-client-request-id"] = request_id
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app if self._trusts(connection.headers.get("host", "")) else _refuse_host
        try:
            await app(scope, receive, send_on)
        except Exception:
            status = 500 if status == 499 else status  # what Starlette answers, outside of this
            raise
        finally:
            if scope["type"] == "http":
                # The route's template, not the path: labels must come from a closed set.
                route = getattr(scope.get("route"), "path", "other")
                self._telemetry.requests.labels(route, str(status)).inc()
                self._telemetry.seconds.labels(route).observe(time.monotonic() - began)


async def _refuse_host(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose Host header is not trusted; a WebSocket is refused with status 403."""
    message = "this server has no API keys, so it answers only under names of its own network: set WHISPER_ALLOWED_HOSTS"
    await error_response(Forbidden(message, code="host_not_allowed"))(scope, receive, send)
