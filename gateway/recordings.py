"""A request that names its recording by `url` → the same request with the recording as an upload."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from whispercore.api.fields import AUDIO_FIELDS, RAW_FIELD
from whispercore.errors import InvalidRequest

from .body import Body
from .context import Gateway, until_gone
from .urls import fetch

MAX_JSON = 64 * 1024
"""Bytes of a JSON body that may hold a URL. Larger ones hold the recording itself."""


async def with_recording(body: Body, request: Request, gateway: Gateway) -> Body:
    """The body itself when it names no URL. Raises what `fetch` raises, and InvalidRequest when there is a file, too."""
    content = _json_with_url(body, request.headers.get("content-type", ""))
    fields = {**body.fields, **(content or {})}
    url = fields.pop("url", None)
    if not url:
        return body
    if not isinstance(url, str):
        raise InvalidRequest("one recording per request: give one url", param="url")
    if (body.uploads and content is None) or any(fields.get(name) for name in AUDIO_FIELDS):
        raise InvalidRequest("one recording per request: give a file or a url", param="url")
    limit = gateway.configuration.max_body_bytes
    fetched = await until_gone(request, fetch(url, gateway.configuration, gateway.spool, limit))
    return Body(fields, {"file": (fetched,)})


def _json_with_url(body: Body, content_type: str) -> dict[str, Any] | None:
    """The JSON object of the body when it names a URL."""
    raw = body.uploads.get(RAW_FIELD, ())
    if len(raw) != 1 or raw[0].size > MAX_JSON or "json" not in content_type:
        return None
    try:
        content = json.loads(bytes(raw[0].view()))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("url") else None
