"""The paths of the HTTP API and the content types of its replies."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from ..options import ResponseFormat

Route = Literal["native", "transcriptions", "translations", "models", "ready"]
"""`native` is this server's own API (`/predictions/whisper`, `/invocations`), `ready` tells whether the server can answer;
the others are paths of OpenAI's API."""

ROUTES: Mapping[str, Route] = MappingProxyType(
    {
        "": "native",
        "v1/audio/transcriptions": "transcriptions",
        "v1/audio/translations": "translations",
        "v1/models": "models",
        "health/ready": "ready",
    }
)
CONTENT_TYPES: Mapping[ResponseFormat, str] = MappingProxyType(
    {
        "json": "application/json",
        "text": "text/plain",
        "srt": "application/x-subrip",
        "vtt": "text/vtt",
        "tsv": "text/tab-separated-values",
        "verbose_json": "application/json",
    }
)


def content_type(response_format: ResponseFormat) -> str:
    """The Content-Type header of a whole reply. JSON is always UTF-8, so it has no charset."""
    kind = CONTENT_TYPES[response_format]
    return kind if kind == CONTENT_TYPES["json"] else f"{kind}; charset=utf-8"


def stream_content_type(route: Route) -> str:
    """The Content-Type header of a stream."""
    return "application/x-ndjson" if route == "native" else "text/event-stream"
