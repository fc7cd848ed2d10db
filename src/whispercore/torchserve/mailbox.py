"""Between TorchServe, which polls, and the core, whose threads work on their own.

With continuous batching TorchServe calls the handler again and again, each time with every open request.
`Mailbox.exchange` is one such call: it begins the new requests, waits a moment for news, and returns a response for
each request that has news.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices import logical_cores
from ..errors import WhisperError
from ..serving.backlog import WATCHDOG
from ..serving.intake import Intake
from ..serving.open_request import OpenRequest
from ..serving.response import Response, error_response
from ..serving.transcriber import Transcriber
from .spool import SpooledRequest, unpack

EARLY_FIRST_CHUNK_BYTES = 1024 * 1024
"""TorchServe hands a request's body over at each call until the request's first chunk. Bodies of at least this size
therefore get an empty first chunk as soon as their audio has proved readable. Smaller ones wait without a status, so
that an error can still set it."""
MAX_RESENT_BYTES = 4 * 1024 * 1024
"""When all bodies that are handed over again come to more than this, smaller ones get an empty first chunk too, the
largest first: else 32 clips of 320 kB cost a tenth of a second of CPU at each call."""
SHORTEST_WAIT, LONGEST_WAIT = min(0.05, max(0.02, 0.1 / logical_cores())), 0.25
"""Seconds that a call waits for news. Polling less often saves CPU when calls are expensive; it only delays requests
that arrive during the wait. A call costs some tenths of a millisecond of CPU for each open request, and the bodies that
it hands over again. So the wait grows with both, and calls take a few percent of one core. On few cores the shortest
wait is longer: 50 calls a second take 8 % of a core, Java's part included, while a single file is decoded."""
WAIT_PER_REQUEST, WAIT_PER_BYTE = 0.004, 1 / 50e6
AFTER_REPLIES_SECONDS, AFTER_REPLIES_SHARE = 0.15, 0.25
"""For this long after a reply calls wait only this share of their time: clients ask again at once, and a lane waits for them."""
KEEP_ALIVE_SECONDS = 1.0
"""TorchServe notices that a client has gone only when it sends something. So every reply that has begun gets a chunk
without content this often."""
QUEUED_SECONDS = 2.0
"""While more requests are open than windows are decoded at the same time, one that has waited this long gets an empty first chunk,
as soon as its audio has proved readable. Without that the requests of clients that have left would be transcribed to the end, and the
others would wait for them: TorchServe would not notice. Its status is 200 then, and a later failure is in the body."""
UNOPENED_SECONDS = 5.0
"""A stream begins when its recording has been opened, because until then an error can still set the status. When many
recordings are being read, opening can take long. After this time the stream begins anyway, so that its client does not
give up."""


@dataclass(frozen=True, slots=True)
class PolledRow:
    """One open request in a call of TorchServe: its id, its fields and its headers."""

    server_id: str
    fields: Mapping[str, Any]
    headers: Mapping[str, Any]


class Mailbox:
    """The open requests. Only TorchServe's thread calls it; threads of the core wake it up."""

    def __init__(self, transcriber: Transcriber, spool: Path | None = None, *, watchdog_token: str = "") -> None:
        """`spool`: the folder of the gateway's uploads. `watchdog_token`: that of the launcher's watchdog."""
        self.intake = Intake(transcriber, watchdog_token=watchdog_token)
        self._spool = spool
        self._spooled: dict[str, SpooledRequest] = {}
        self._open: dict[str, OpenRequest] = {}
        self._news = threading.Event()
        self._kept_alive = 0.0
        self._replied = -math.inf

    def __len__(self) -> int:
        """The number of requests that have not had their last response."""
        return len(self._open)

    def exchange(self, rows: Iterable[PolledRow]) -> dict[str, Response]:
        """Responses by TorchServe's request id. An open request that is in none of the rows is cancelled: it has gone away."""
        by_id = {row.server_id: row for row in rows}
        for gone in self._open.keys() - by_id.keys():
            self._spooled.pop(gone, None)
            self.intake.jobs.detach(self._open.pop(gone).attachment)
        for server_id in [name for name, spooled in self._spooled.items() if spooled.is_gone]:
            del self._spooled[server_id]
            self._open[server_id].cancel()
        new = [row for row in by_id.values() if row.server_id not in self._open]
        responses = {row.server_id: response for row in new if (response := self._receive(row))}
        until = time.monotonic() + (0.0 if responses else self._seconds_to_wait())
        while not (responses := responses | self._responses()) and (seconds := until - time.monotonic()) > 0:
            self._news.wait(seconds)
            self._news.clear()
        return responses

    def _receive(self, row: PolledRow) -> Response | None:
        """Begin a request. Returns a response when it is refused, or needs no transcription."""
        spooled, fields, headers = None, row.fields, row.headers
        if self._spool:
            try:
                spooled = unpack(fields, headers, self._spool)
            except WhisperError as error:
                return error_response(error, row.server_id)
        if spooled:
            fields, headers = spooled.fields, spooled.headers
        received = self.intake.receive(row.server_id, fields, headers, self._news.set)
        if isinstance(received, Response):
            return received
        if spooled:
            received.resent_bytes = 0
            self._spooled[row.server_id] = spooled
        self._open[row.server_id] = received
        return None

    def _seconds_to_wait(self) -> float:
        """How long this call waits for news."""
        resent = sum(request.resent_bytes for request in self._without_reply())
        seconds = min(max(SHORTEST_WAIT, WAIT_PER_REQUEST * len(self._open) + WAIT_PER_BYTE * resent), LONGEST_WAIT)
        return AFTER_REPLIES_SHARE * seconds if time.monotonic() - self._replied < AFTER_REPLIES_SECONDS else seconds

    def _without_reply(self) -> list[OpenRequest]:
        """The requests whose bodies the server hands over at each call."""
        return [request for request in self._open.values() if not request.reply_started]

    def _responses(self) -> dict[str, Response]:
        """The responses that are due now, by TorchServe's request id."""
        early, now = self._to_begin_early(), time.monotonic()
        keep_alive = now - self._kept_alive >= KEEP_ALIVE_SECONDS  # for all in one call, as each call costs CPU
        self._kept_alive = now if keep_alive else self._kept_alive
        must_send = {
            request: keep_alive if request.reply_started else request in early or _begins_stream(request) for request in self._open.values()
        }
        return {request.server_id: response for request in must_send if (response := self._respond(request, must_send[request]))}

    def _to_begin_early(self) -> set[OpenRequest]:
        """The requests that get an empty first chunk, so that the server stops handing over their bodies."""
        waiting = sorted(self._without_reply(), key=lambda request: request.resent_bytes, reverse=True)
        resent, early = sum(request.resent_bytes for request in waiting), set[OpenRequest]()
        for request in waiting:
            if request.resent_bytes < EARLY_FIRST_CHUNK_BYTES and resent <= MAX_RESENT_BYTES:
                break
            if request.job.opened:
                early.add(request)
                resent -= request.resent_bytes
        if len(self._open) > self.intake.transcriber.scheduler.windows_at_once:
            early |= {request for request in waiting if request.job.opened and self._is_queued_long(request)}
        return early

    def _is_queued_long(self, request: OpenRequest) -> bool:
        """Whether its client may have left meanwhile. The gateway tells when one has left, and the launcher waits."""
        is_told = request.server_id in self._spooled or request.attachment.client == WATCHDOG
        return not is_told and time.monotonic() - request.arrived >= QUEUED_SECONDS

    def _respond(self, request: OpenRequest, allow_empty: bool) -> Response | None:
        response = request.respond(allow_empty=allow_empty)
        if response and response.last is not False:
            self._replied = time.monotonic()
            del self._open[request.server_id]
            self._spooled.pop(request.server_id, None)
            self.intake.jobs.detach(request.attachment)
        return response


def _begins_stream(request: OpenRequest) -> bool:
    """Whether a stream that has not begun is due to begin."""
    return request.is_stream and (request.job.opened or time.monotonic() - request.arrived >= UNOPENED_SECONDS)
