"""A request that has begun and not been answered yet, and the responses it gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..api.reply import render
from ..api.routes import content_type, stream_content_type
from ..api.stream import stream_chunk, stream_end, stream_error, stream_progress
from ..api.transcript_json import warnings_of
from ..errors import Cancelled, EngineError, WhisperError
from ..types import Progress, Transcript
from .backlog import WATCHDOG
from .models import AnyJob
from .response import Response, error_response
from .sharing import Attachment

logger = logging.getLogger(__name__)

COMMENT = b":\n\n"
"""A server-sent event without content: clients skip it, and proxies see that the connection is alive."""
MAX_HEADER = 2000
"""Characters of a header's value, at most."""


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request between its arrival and its last response.

    `server_id`: the server's id of the request. `request_id`: the client's x-request-id, else the server's id.
    `arrived`: time.monotonic. `resent_bytes`: the size of the body, which the server hands over at each call until the
    reply has started (`reply_started`). `model`: the name of the model that answers. `remarks`: warnings about the model.
    `cancelled`: the client has gone. `sent`: the progress that a stream has sent.
    """

    server_id: str
    request_id: str
    attachment: Attachment
    arrived: float
    resent_bytes: int
    model: str
    remarks: tuple[str, ...]
    reply_started: bool = False
    cancelled: bool = False
    sent: Progress = field(default_factory=Progress)

    def __str__(self) -> str:
        return both_ids(self.server_id, self.request_id)

    @property
    def job(self) -> AnyJob:
        """The job that answers the request; others may share it."""
        return self.attachment.job

    @property
    def is_stream(self) -> bool:
        """Whether the reply is a stream."""
        return self.attachment.request.reply.stream

    @property
    def _is_test(self) -> bool:
        return self.attachment.client == WATCHDOG

    def cancel(self) -> None:
        """Answer with the error Cancelled from now on: the client has gone."""
        self.cancelled = True

    def respond(self, *, allow_empty: bool) -> Response | None:
        """What is due now: the last response when the job has ended, else a chunk when there is one."""
        try:
            if self.cancelled:
                raise Cancelled("the client has gone")
            return self._final() if self.job.ended else self._chunk(allow_empty=allow_empty)
        except WhisperError as error:
            response = self._failure(error)
            logger.warning("request %s failed after %.3f s: %s", self, response.seconds, error.message)
        except Exception as error:  # an unforeseen error of one request must not fail the others of the same call
            response = self._failure(EngineError(f"the reply could not be made: {error}"))
            logger.exception("request %s could not be answered", self)
        return response

    def _chunk(self, *, allow_empty: bool) -> Response | None:
        """A chunk with a stream's news; without news an empty chunk if `allow_empty`, else None. It begins the reply."""
        payload = self._news() or (self._keep_alive() if allow_empty else b"")
        if not (payload or allow_empty):
            return None
        self.reply_started = True
        return Response(200, self._content_type, payload, self.request_id, last=False, headers=self._headers(self.remarks))

    def _final(self) -> Response:
        """The last response, when the job has ended. Raises the job's error."""
        transcript = self.job.result(timeout=0)
        transcript = replace(transcript, warnings=(*self.remarks, *transcript.warnings))
        content_type, payload = self._rest(transcript)
        seconds = time.monotonic() - self.arrived
        level = logging.DEBUG if self._is_test else logging.INFO
        logger.log(level, "request %s: %.1f s of audio in %.3f s", self, transcript.duration, seconds)
        return Response(
            200,
            content_type,
            payload,
            self.request_id,
            last=self._last,
            audio_seconds=transcript.duration,
            seconds=seconds,
            dropped=tuple(dropped.reason for dropped in transcript.dropped),
            headers={**self._headers(warnings_of(transcript)), "x-whisper-audio-seconds": f"{transcript.duration:.3f}"},
            is_test=self._is_test,
        )

    def _failure(self, error: WhisperError) -> Response:
        """The last response when the request failed: with the error's status, or within a stream that has begun."""
        seconds = time.monotonic() - self.arrived
        if self.reply_started and self.is_stream:
            payload = stream_error(error, self.attachment.request.route)
            return Response(error.status, self._content_type, payload, self.request_id, last=True, seconds=seconds)
        return replace(error_response(error, self.request_id), last=self._last, seconds=seconds, is_test=self._is_test)

    @property
    def _content_type(self) -> str:
        """Of a reply that is a transcript."""
        request = self.attachment.request
        return stream_content_type(request.route) if self.is_stream else content_type(request.reply.response_format)

    @property
    def _last(self) -> bool | None:
        """`last` of the last response: a chunk when the reply has begun, else the whole reply."""
        return True if self.reply_started else None

    def _keep_alive(self) -> bytes:
        """A chunk without news: for a stream a sign of life, else empty."""
        if not self.is_stream:
            return b""
        return stream_progress(self.sent) if self.attachment.request.route == "native" else COMMENT

    def _headers(self, warnings: Sequence[str]) -> dict[str, str]:
        """The model's name, and the warnings of a reply whose body has no place for them."""
        in_body = self.is_stream or self.attachment.request.reply.response_format in ("json", "verbose_json")
        headers = {"x-whisper-model": self.model, "x-whisper-warnings": "" if in_body else "; ".join(warnings)}
        return {name: _header_value(text) for name, text in headers.items() if text}

    def _news(self) -> bytes:
        """What a stream has not sent yet, new segments and seconds done; empty when there is nothing, or no stream."""
        if not self.is_stream or (progress := self.job.progress) == self.sent:
            return b""
        segments, self.sent = progress.segments[len(self.sent.segments) :], progress
        request = self.attachment.request
        return stream_chunk(segments, progress, request.reply, request.route, tokenizer=self.job.tokenizer)

    def _rest(self, transcript: Transcript) -> tuple[str, bytes]:
        """Content type and bytes of the whole reply, or of the rest of a stream."""
        reply, route = self.attachment.request.reply, self.attachment.request.route
        if not reply.stream:
            body = render(transcript, reply, route, tokenizer=self.job.tokenizer, model=self.model)
            return body.content_type, body.payload
        end = stream_end(transcript, reply, route, tokenizer=self.job.tokenizer, model=self.model)
        return self._content_type, self._news() + end


def both_ids(server_id: str, request_id: str) -> str:
    """A request in logs: the server's id and, in brackets, the client's own when it sent one."""
    return server_id if request_id == server_id else f"{server_id} ({request_id})"


def _header_value(text: str) -> str:
    """`text` as a header can carry it: one line of printable ASCII."""
    plain = text.encode("ascii", errors="replace").decode()
    return "".join(character if character.isprintable() else " " for character in plain)[:MAX_HEADER]
