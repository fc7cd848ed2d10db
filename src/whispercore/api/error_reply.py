"""`WhisperError` → the status and the body of an error reply, in OpenAI's form."""

from __future__ import annotations

from http import HTTPStatus

from ..errors import WhisperError
from .reply import Body, json_body
from .transcript_json import Fields


def render_error(error: WhisperError) -> tuple[int, Body]:
    """The HTTP status and the body of an error reply."""
    return error.status, json_body(error_fields(error))


def error_fields(error: WhisperError) -> Fields:
    """OpenAI's error object: message, type, param, code."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def status_phrase(status: int) -> str:
    """The reason phrase of a status line.

    499, for a request whose client disconnected, is nginx's and not in the HTTP standard.
    """
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase
