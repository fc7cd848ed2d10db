"""Between TorchServe, which polls, and the core, whose threads work on their own.

With continuous batching TorchServe calls the handler again and again, each time with every open request.
`Mailbox.exchange` is one such call: it begins the new requests, waits a moment for news, and returns a response for
each request that has news.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..api.models import remarks, render_models
from ..api.reply import json_body
from ..api.request import Request, client_request_id
from ..devices import logical_cores
from ..errors import EngineError, WhisperError
from ..serving.sharing import SharedJobs, wants_own_job
from ..serving.transcriber import Transcriber
from .open_request import OpenRequest, both_ids
from .response import Response, error_response, whole_response

logger = logging.getLogger(__name__)

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
KEEP_ALIVE_SECONDS = 1.0
"""TorchServe notices that a client has gone only when it sends something. So every reply that has begun gets a chunk
without content this often."""
UNOPENED_SECONDS = 5.0
"""A stream begins when its recording has been opened, because until then an error can still set the status. When many
recordings are being read, opening can take long. After this time the stream begins anyway, so that its client does not
give up."""

STALLED_BATCHES = 20
"""An engine that needs this many times as long as for its longest batch so far has stalled."""


@dataclass(frozen=True, slots=True)
class PolledRow:
    """One open request in a call of TorchServe: its id, its fields and its headers."""

    server_id: str
    fields: Mapping[str, Any]
    headers: Mapping[str, Any]


class Mailbox:
    """The open requests. Only TorchServe's thread calls it; threads of the core wake it up."""

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self.jobs = SharedJobs(transcriber)
        self._model = transcriber.settings.model_id
        self._open: dict[str, OpenRequest] = {}
        self._news = threading.Event()
        self._kept_alive = 0.0

    def __len__(self) -> int:
        """The number of requests that have not had their last response."""
        return len(self._open)

    def exchange(self, rows: Iterable[PolledRow]) -> dict[str, Response]:
        """Responses by TorchServe's request id. An open request that is in none of the rows is cancelled: it has gone away."""
        by_id = {row.server_id: row for row in rows}
        for gone in self._open.keys() - by_id.keys():
            self.jobs.detach(self._open.pop(gone).attachment)
        new = [row for row in by_id.values() if row.server_id not in self._open]
        responses = {row.server_id: response for row in new if (response := self._receive(row))}
        until = time.monotonic() + (0.0 if responses else self._seconds_to_wait())
        while not (responses := responses | self._responses()) and (seconds := until - time.monotonic()) > 0:
            self._news.wait(seconds)
            self._news.clear()
        return responses

    def _receive(self, row: PolledRow) -> Response | None:
        """Begin a request. Returns a response when it is refused, or needs no transcription."""
        arrived = time.monotonic()
        request_id = client_request_id(row.headers) or row.server_id
        try:
            request = self.jobs.check(row.fields, row.headers)
            if request.route == "models":
                return self._list_models(request, request_id)
            if request.route == "ready":
                return self._readiness_response(request_id)
            self._open[row.server_id] = self._begin(row, request, request_id, arrived)
        except WhisperError as error:
            logger.info("request %s refused with %d: %s", both_ids(row.server_id, request_id), error.status, error.message)
            return error_response(error, request_id)
        except Exception as error:  # an unforeseen error of one request must not fail the others of the same call
            logger.exception("request %s could not be read", both_ids(row.server_id, request_id))
            return error_response(EngineError(f"the request could not be read: {error}"), request_id)
        return None

    @property
    def is_stalled(self) -> bool:
        """Whether the engine has given no result for so long that it is to be restarted."""
        return 0 < self._stall_limit < self.transcriber.scheduler.stalled_seconds

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted, and the engine gives results."""
        return not (self.jobs.closing or 0 < self._stall_limit / 2 < self.transcriber.scheduler.stalled_seconds)

    @property
    def _stall_limit(self) -> float:
        """Seconds; 0.0: no limit."""
        setting = self.transcriber.settings.stall_seconds
        return max(setting, STALLED_BATCHES * self.transcriber.scheduler.longest_seconds) if setting else 0.0

    def _readiness_response(self, request_id: str) -> Response:
        scheduler = self.transcriber.scheduler
        success = None if scheduler.last_success is None else round(time.monotonic() - scheduler.last_success, 1)
        body = {
            "status": "ready" if self.is_ready else "not ready",
            "seconds_since_last_success": success,
            "stalled_seconds": round(scheduler.stalled_seconds, 1),
            "open_requests": len(self),
        }
        return whole_response(json_body(body), request_id, 200 if self.is_ready else 503)

    def _begin(self, row: PolledRow, request: Request, request_id: str, arrived: float) -> OpenRequest:
        on_progress = self._news.set if request.reply.stream else None
        attachment = self.jobs.begin(request, alone=wants_own_job(row.headers), on_news=self._news.set, on_progress=on_progress)
        opened = OpenRequest(
            row.server_id,
            request_id,
            attachment,
            arrived,
            resent_bytes=len(request.audio),
            model=self._model,
            remarks=self._remarks(request.model),
            tokenizer=self.transcriber.engine.tokenizer,
        )
        if attachment.joined:
            first = next(other for other in self._open.values() if other.job is attachment.job)
            logger.info("request %s shares the work of %s: the same audio and options", opened, first)
        return opened

    def _list_models(self, request: Request, request_id: str) -> Response:
        limit = self.transcriber.settings.max_audio_bytes
        return whole_response(render_models(self._model, request.model, self._remarks(""), max_audio_bytes=limit), request_id)

    def _remarks(self, asked: str) -> tuple[str, ...]:
        """What a reply has to say about the model when the request asked for the model `asked`."""
        return remarks(asked, self._model, demonstration=self.transcriber.is_demonstration)

    def _seconds_to_wait(self) -> float:
        """How long this call waits for news."""
        resent = sum(request.resent_bytes for request in self._without_reply())
        return min(max(SHORTEST_WAIT, WAIT_PER_REQUEST * len(self._open) + WAIT_PER_BYTE * resent), LONGEST_WAIT)

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
        return early

    def _respond(self, request: OpenRequest, allow_empty: bool) -> Response | None:
        """The last response when the job has ended or the reply cannot be made; else a chunk when there is one."""
        try:
            if not request.job.ended:
                return request.chunk(allow_empty=allow_empty)
            response = request.final()
        except WhisperError as error:
            response = request.failure(error)
            logger.warning("request %s failed after %.3f s: %s", request, response.seconds, error.message)
        except Exception as error:  # an unforeseen error of one request must not fail the others of the same call
            response = request.failure(EngineError(f"the reply could not be made: {error}"))
            logger.exception("request %s could not be answered", request)
        del self._open[request.server_id]
        self.jobs.detach(request.attachment)
        return response


def _begins_stream(request: OpenRequest) -> bool:
    """Whether a stream that has not begun is due to begin."""
    return request.is_stream and (request.job.opened or time.monotonic() - request.arrived >= UNOPENED_SECONDS)
