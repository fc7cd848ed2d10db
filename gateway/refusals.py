"""Errors that only the gateway has, and every error as an HTTP response in OpenAI's form."""

from __future__ import annotations

import math

from starlette.responses import Response

from whispercore.api.error_reply import render_error
from whispercore.errors import Overloaded, WhisperError

from .backend import Reply


class RequestTimeout(WhisperError):
    """The body arrives too slowly."""

    status = 408
    kind = "invalid_request_error"
    default_code = "request_timeout"


class Unauthorized(WhisperError):
    """There is no API key in the request, or an unknown one."""

    status = 401
    kind = "invalid_request_error"
    default_code = "invalid_api_key"


class Forbidden(WhisperError):
    """The request asks for something that this server does not allow."""

    status = 403
    kind = "invalid_request_error"
    default_code = "forbidden"


class MethodNotAllowed(WhisperError):
    """The path exists, but not with this method."""

    status = 405
    kind = "invalid_request_error"
    default_code = "method_not_allowed"


class Conflict(WhisperError):
    """The request does not fit the state of what it names."""

    status = 409
    kind = "invalid_request_error"
    default_code = "conflict"


class RateLimited(Overloaded):
    """A key has used up one of its limits; again after `retry_after` seconds."""

    status = 429
    kind = "rate_limit_error"
    default_code = "rate_limit_exceeded"


def error_reply(error: WhisperError) -> Reply:
    """The error as what a back end would answer."""
    status, body = render_error(error)
    headers = {"retry-after": str(max(1, math.ceil(error.retry_after)))} if isinstance(error, Overloaded) else {}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return Reply(status=status, content_type=body.content_type, body=body.payload, headers=headers)


def error_response(error: WhisperError) -> Response:
    """The error as an HTTP response."""
    reply = error_reply(error)
    assert isinstance(reply.body, bytes)
    return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)
