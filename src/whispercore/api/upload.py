"""The recording of a request: the raw body, a form field, or base64 in JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest, TooLarge
from .fields import AUDIO_FIELDS, RAW_FIELD, Audio


def read_upload(row: Mapping[str, Any], content: Mapping[str, Any] | None) -> Audio:
    """The one recording of the request: in `row`, or as base64 in the JSON object `content`.

    Binary data is not copied. Raises InvalidRequest when there is no recording, or more than one.
    """
    names = AUDIO_FIELDS if content is not None else (RAW_FIELD, *AUDIO_FIELDS)
    uploads = {name: _bytes(name, row[name]) for name in names if row.get(name) is not None}
    for name in AUDIO_FIELDS:
        if content is not None and content.get(name) is not None:
            uploads[f"JSON's {name}" if name in uploads else name] = _base64(name, content[name])
    if not uploads:
        message = "missing file: send the audio as the body, as the form field 'file', or as base64 in JSON"
        raise InvalidRequest(message, param="file", code="missing_required_parameter")
    if len(uploads) > 1:
        raise InvalidRequest(f"one recording per request; got {' and '.join(uploads)}", param="file")
    [audio] = uploads.values()
    if not audio:
        raise InvalidRequest("the file is empty: 0 bytes arrived", param="file", code="empty_file")
    return audio


def check_audio_bytes(audio: Audio, limit: int) -> None:
    """Raise TooLarge when the upload has more than `limit` bytes."""
    size = memoryview(audio).nbytes
    if size > limit:
        raise TooLarge(f"the audio has {size:,} bytes, at most {limit:,} ({limit / 2**20:g} MB) are accepted", param="file")


def _bytes(name: str, value: Any) -> Audio:
    if isinstance(value, str):  # a form part with a text content type; the decoder will report that it is not audio
        return value.encode(errors="replace")
    if isinstance(value, Audio):
        return value
    if isinstance(value, list):
        raise InvalidRequest(f"one recording per request; got {len(value)} times {name}", param=name)
    raise InvalidRequest(f"{name} must be a file", param=name)


def _base64(name: str, value: Any) -> bytes:
    """The bytes of plain base64, or of a data: URI."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be base64 text", param=name)
    prefix, comma, encoded = value.partition(",") if value[:5].lower() == "data:" else ("", "", value)
    try:
        if prefix and not (comma and prefix.lower().endswith(";base64")):
            raise ValueError("a data: URI without ;base64,")
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "send standard base64 with padding and no line breaks (base64 -w0 FILE)"
        raise InvalidRequest(f"{name} is not valid base64: {error}; {hint}", param=name, code="invalid_base64") from None
