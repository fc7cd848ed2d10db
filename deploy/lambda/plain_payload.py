"""A payload of a direct invocation: {"audio": "<base64>"} or {"s3": "s3://BUCKET/KEY"} or {"url": "https://…"}, and options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from function_errors import SourceError
from invocation import Deadline, answer
from s3_objects import Objects, Place
from url_source import fetch

from whispercore.api.fields import AUDIO_FIELDS, RAW_FIELD
from whispercore.errors import InvalidRequest
from whispercore.serving.intake import Intake
from whispercore.serving.response import Response

S3, URL, OUTPUT = "s3", "url", "output"
SOURCES = (*AUDIO_FIELDS, S3, URL)


class RequestFailed(Exception):
    """The request is wrong, or its recording: the same payload fails again. The message is the server's error body."""


class FunctionFailed(Exception):
    """The function has failed, or what it depends on: worth another try. The message is the server's error body."""


def is_payload(event: Mapping[str, Any]) -> bool:
    """Whether the event names a recording."""
    return any(name in event for name in SOURCES)


def transcribe(intake: Intake, objects: Objects, payload: Mapping[str, Any], request_id: str, deadline: Deadline) -> Response:
    """The reply to the payload. Raises WhisperError for a source that cannot be read."""
    given = [name for name in SOURCES if payload.get(name) is not None]
    if len(given) > 1:
        raise InvalidRequest(f"one recording per request; got {' and '.join(given)}", param=given[0])
    fields: dict[str, Any] = {name: value for name, value in payload.items() if name not in (S3, URL, OUTPUT)}
    limit, headers = intake.transcriber.settings.max_audio_bytes, {}
    if given == [S3]:
        fields[RAW_FIELD] = objects.read(Place.of(_text(payload, S3), S3), limit)[0]
    elif given == [URL]:
        fields[RAW_FIELD] = fetch(_text(payload, URL), limit)
    else:
        fields, headers = {RAW_FIELD: fields}, {"content-type": "application/json"}
    deadline.check()
    return answer(intake, request_id, fields, headers, deadline).response


def output_of(payload: Mapping[str, Any]) -> Place | None:
    """Where the payload wants its result; None: in the reply. Raises SourceError."""
    return Place.of(_text(payload, OUTPUT), OUTPUT) if payload.get(OUTPUT) is not None else None


def result(response: Response) -> Any:
    """The function's result: the reply's JSON object, or {"rendered": …} with text or subtitles.

    Raises RequestFailed and FunctionFailed for an error, because Lambda tries an asynchronous invocation again, and
    keeps it in the failure queue, only when the function raises.
    """
    if response.status >= 400:
        raise (RequestFailed if response.status < 500 else FunctionFailed)(response.payload.decode())
    if response.content_type == "application/json":
        return json.loads(response.payload)
    warnings = response.headers.get("x-whisper-warnings")
    return {"rendered": response.payload.decode(), "content_type": response.content_type, **({"warnings": [warnings]} if warnings else {})}


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload[name]
    if not isinstance(value, str):
        raise SourceError(f"{name} must be text", param=name)
    return value
