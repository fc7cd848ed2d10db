"""A stand-in for the server's front door: it records what reaches it, and a reply waits until the test allows it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from tests.deploy.compose.metrics_page import metrics_page

Message = dict[str, Any]


class StandIn:
    """An ASGI application. Attributes are read and set by the test's thread.

    `received`: bytes of the current upload that have arrived. `allowed`: lets a waiting reply go on. `gone`: a client has
    disconnected before its reply was complete. `paths`: every path that was asked for.
    """

    def __init__(self) -> None:
        self.received = 0
        self.allowed = threading.Event()
        self.gone = threading.Event()
        self.paths: list[str] = []
        self._began = time.monotonic()

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        """Serve one connection."""
        if scope["type"] == "websocket":
            await _echo(receive, send)
        elif scope["type"] == "http":
            self.paths.append(scope["path"])
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        path, query = scope["path"], scope["query_string"].decode()
        self.received = 0
        more = True
        while more:
            message = await receive()
            self.received += len(message.get("body", b""))
            more = message.get("more_body", False)
        if path == "/metrics":
            await _reply(send, "text/plain; version=0.0.4", metrics_page(time.monotonic() - self._began).encode())
        elif query in ("events", "lines"):
            await self._stream(query, receive, send)
        elif query == "wait":
            await self._wait(receive)
            await _reply(send, "application/json", b"{}")
        else:
            await _reply(send, "application/json", json.dumps({"path": path, "received": self.received}).encode())

    async def _stream(self, kind: str, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        """A first part at once, the second one when the test allows it."""
        content_type, parts = {
            "events": (b"text/event-stream", (b"data: first\n\n", b"data: second\n\n")),
            "lines": (b"application/x-ndjson", (b'{"part":"first"}\n', b'{"part":"second"}\n')),
        }[kind]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
        await send({"type": "http.response.body", "body": parts[0], "more_body": True})
        await self._wait(receive)
        await send({"type": "http.response.body", "body": parts[1]})

    async def _wait(self, receive: Callable[[], Awaitable[Message]]) -> None:
        """Until the test allows the reply, or the client goes."""
        disconnect = asyncio.ensure_future(receive())
        while not self.allowed.is_set() and not disconnect.done():
            await asyncio.sleep(0.01)
        if disconnect.done():
            self.gone.set()
        disconnect.cancel()


async def _reply(send: Callable[[Message], Awaitable[None]], content_type: str, body: bytes) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _echo(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """Send each message of a websocket back."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})


@contextlib.contextmanager
def serving(stand_in: StandIn) -> Iterator[int]:
    """The port of 127.0.0.1 on which the stand-in serves, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(stand_in, lifespan="off", log_level="error", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stand_in.allowed.set()
        server.should_exit = True
        thread.join()
