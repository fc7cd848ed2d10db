"""Reads the server's replies: streams of JSON lines, OpenAI's server-sent events, whole answers, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from failures import SIZE_ADVICE, RequestFailed

BLOCK_BYTES = 64 * 1024
LINES, EVENTS = "application/x-ndjson", "text/event-stream"
WARNINGS_HEADER, MODEL_HEADER = "X-Whisper-Warnings", "X-Whisper-Model"
Line = dict[str, Any]
"""A line of a stream: `type` is segment, progress, delta (a piece of text from OpenAI's API) or, in the last one,
transcript."""


def lines_of(response: requests.Response, in_pieces: bool) -> Iterator[Line]:
    """The lines of a stream, or a single line for any other reply. With `in_pieces` the reply must be a stream.

    Raises RequestFailed.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if kind not in (LINES, EVENTS):
        check(response)
        if in_pieces:
            raise RequestFailed("no stream", f"{response.url} does not stream lines of JSON: its path must end in /predictions/whisper")
        yield _single_line(response)
        return
    if not response.ok:
        check(response)
    last = ""
    for text in _texts(response):
        if line := _line(text) if kind == LINES else _event(text):
            last = str(line.get("type"))
            yield line
    if last != "transcript":
        raise RequestFailed("connection lost", "the reply ended before the transcript was whole: send the recording again")


def _texts(response: requests.Response) -> Iterator[bytes]:
    """The lines of the body, each as soon as it is complete."""
    pieces: list[bytes] = []
    while block := response.raw.read1(BLOCK_BYTES, decode_content=True):
        *line_ends, rest = block.split(b"\n")
        for end in line_ends:
            yield b"".join([*pieces, end]).rstrip(b"\r")
            pieces = []
        pieces.append(rest)
    if text := b"".join(pieces):
        yield text


def _single_line(response: requests.Response) -> Line:
    """A reply that is not a stream, in the form of a stream's last line. `rendered` is its text."""
    text = response.content.decode(errors="replace")
    fields = _json_object(response) if "json" in response.headers.get("Content-Type", "") else {}
    model = {"model": response.headers[MODEL_HEADER]} if MODEL_HEADER in response.headers else {}
    return {**model, **fields, "warnings": reply_warnings(response), "type": "transcript", "rendered": text}


def reply_warnings(response: requests.Response) -> list[str]:
    """The server's warnings: from the JSON, or from a header when the reply is text."""
    warnings = _json_object(response).get("warnings") or response.headers.get(WARNINGS_HEADER) or []
    if isinstance(warnings, str):
        try:
            warnings = json.loads(warnings)
        except ValueError:
            warnings = [warnings]
    return [str(warning) for warning in warnings] if isinstance(warnings, list) else [str(warnings)]


def _json_object(response: requests.Response) -> dict[str, Any]:
    try:
        fields = response.json()
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _line(text: bytes) -> Line | None:
    """A line of a native stream; None for an empty one. Raises RequestFailed when the line is an error."""
    if not text.strip():
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        raise RequestFailed("connection lost", "the reply ended in the middle of a line: send the recording again") from None
    if not isinstance(fields, dict):
        raise RequestFailed("no transcript", f"the server's answer is not a transcript but {text[:60]!r}: is --url right?")
    _check_fields(fields)
    return fields


def _event(text: bytes) -> Line | None:
    """An event of OpenAI's API; None for a comment, an empty line, an unknown event.

    Raises RequestFailed when it is an error.
    """
    if not text.startswith(b"data:") or (data := text[5:].strip()) == b"[DONE]":
        return None
    fields = _line(data) or {}
    if fields.get("type") == "transcript.text.delta":
        return {"type": "delta", "text": fields.get("delta", "")}
    if fields.get("type") == "transcript.text.done":
        return {**fields, "type": "transcript", "rendered": fields.get("text", "") + "\n"}
    return None


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Raise RequestFailed for an error that was sent after the status."""
    if error := fields.get("error"):
        details = error if isinstance(error, dict) else {"message": error}
        message = f"after the reply began: {details.get('message')}"
        raise RequestFailed(f"after the reply began {details.get('code') or ''}".strip(), message)


def check(response: requests.Response) -> None:
    """Raise RequestFailed for an error status, or an error that was sent after the status."""
    # A large recording gets status 200 before it is decoded. Errors after that are in the body.
    if response.ok:
        if response.content[:64].lstrip().startswith(b'{"error":'):
            _check_fields(_json_object(response))
        return
    code, message = _server_error(response)
    status = f"HTTP {response.status_code}"
    raise RequestFailed(f"{status} {code}".strip(), f"{status}: {message}{_advice(response.status_code, code)}")


def _server_error(response: requests.Response) -> tuple[str, str]:
    """The server's code and message. TorchServe's own errors have `type` and `message` at the top."""
    try:
        fields = response.json()
        if "error" in fields:
            return str(fields["error"].get("code") or ""), str(fields["error"]["message"])
        return str(fields.get("type") or ""), str(fields["message"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return "", " ".join(response.text.split())[:200] or response.reason


def _advice(status: int, code: str) -> str:
    """Advice for errors whose message contains none."""
    if status == 413 and code == "too_long":
        return ", or start the server with a larger WHISPER_MAX_AUDIO_SECONDS"
    if status == 413:
        return f"; the upload is too large for the server or for a proxy: {SIZE_ADVICE}"
    if status in (404, 405):
        return "; is --url right? http://HOST:8080 is enough: the path is found"
    return ""
