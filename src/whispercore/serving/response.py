"""What a request gets: the whole reply, or a chunk of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..api.error_reply import render_error, status_phrase
from ..api.reply import Body
from ..errors import WhisperError


@dataclass(frozen=True, slots=True)
class Response:
    """`last`: None for a whole reply, False for a chunk with more to come, True for the last chunk.

    `request_id`: the client's own x-request-id, or the server's id when the client sent none. `audio_seconds`,
    `seconds`: the recording's duration and the time since the request's arrival. `dropped`: for each text that was left
    out as no speech, the reason. `headers`: further headers; those of a chunked reply are sent with its first chunk.
    `is_test`: it answers the watchdog, and metrics do not count it.
    """

    status: int
    content_type: str
    payload: bytes
    request_id: str
    last: bool | None = None
    audio_seconds: float = 0.0
    seconds: float = 0.0
    dropped: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    is_test: bool = False

    @property
    def reason(self) -> str:
        """The words after the number in the status line."""
        return status_phrase(self.status)


def whole_response(body: Body, request_id: str, status: int = 200) -> Response:
    """A reply that is sent at once."""
    return Response(status, body.content_type, body.payload, request_id)


def error_response(error: WhisperError, request_id: str) -> Response:
    """An error with its status, sent at once."""
    status, body = render_error(error)
    response = whole_response(body, request_id, status)
    if error.retry_after is None:
        return response
    return replace(response, headers={"Retry-After": str(max(1, math.ceil(error.retry_after)))})
