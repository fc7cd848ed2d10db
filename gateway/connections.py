"""HTTP connections with limits on time and size."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
"""How long a client may take to send the headers of a request, from the first connection on."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection is kept."""
HEADER_BYTES = 32 * 1024


class TimedProtocol(H11Protocol):
    """uvicorn's strict parser (h11), which has no limit on the time for headers by itself.

    h11 refuses the forms of Content-Length and Transfer-Encoding that TorchServe's Netty accepts.
    """

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the time for the first headers."""
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._close_silent)

    def data_received(self, data: bytes) -> None:
        """Begin the time for headers with their first byte, and end it with their last one."""
        cycle = self.cycle
        if self._header_timer is None and (cycle is None or cycle.response_complete):
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._close_silent)
        super().data_received(data)
        if self.cycle is not cycle:
            self._cancel_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._cancel_timer()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """WebSockets have times of their own."""
        self._cancel_timer()
        super().handle_websocket_upgrade(event)

    def _cancel_timer(self) -> None:
        if self._header_timer:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_silent(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
