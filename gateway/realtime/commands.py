"""What a client sends: JSON text → a checked command."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whispercore.api.values import for_message
from whispercore.errors import InvalidRequest

MAX_EVENT_ID = 512
"""Characters of a client's event_id, as in OpenAI's API."""
_OF_CONVERSATIONS = ("response.", "conversation.", "output_audio_buffer.")


@dataclass(frozen=True, slots=True)
class Update:
    """session.update, or in the beta protocol transcription_session.update: the fields to change."""

    session: Mapping[str, Any]
    beta: bool


@dataclass(frozen=True, slots=True)
class Append:
    """input_audio_buffer.append: more sound, in the session's format."""

    audio: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """input_audio_buffer.commit: the sound so far is an item."""


@dataclass(frozen=True, slots=True)
class Clear:
    """input_audio_buffer.clear: forget the sound that has not been committed."""


Command = Update | Append | Commit | Clear


def read(text: str) -> dict[str, Any]:
    """The JSON object in a message. Raises InvalidRequest."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest("the message is not valid JSON", code="invalid_json") from None
    if not isinstance(message, dict):
        raise InvalidRequest('the message must be a JSON object with a type, as in {"type": "session.update"}', code="invalid_json")
    return message


def event_id(message: Mapping[str, Any]) -> str | None:
    """The client's id of its event, which an error repeats; None when it has none that can be repeated."""
    value = message.get("event_id")
    return value if isinstance(value, str) and len(value) <= MAX_EVENT_ID else None


def command(message: Mapping[str, Any]) -> Command:
    """The command in a message. Raises InvalidRequest."""
    kind = message.get("type")
    match kind:
        case "input_audio_buffer.append":
            return Append(_audio(message.get("audio")))
        case "input_audio_buffer.commit":
            return Commit()
        case "input_audio_buffer.clear":
            return Clear()
        case "session.update" | "transcription_session.update":
            session = message.get("session")
            if not isinstance(session, dict):
                raise InvalidRequest("session must be an object", param="session")
            return Update(session, kind == "transcription_session.update")
    if isinstance(kind, str) and kind.startswith(_OF_CONVERSATIONS):
        raise InvalidRequest(f"this server only transcribes: it has no {for_message(kind)}", param="type", code="unsupported_event")
    known = "session.update, input_audio_buffer.append, input_audio_buffer.commit, input_audio_buffer.clear"
    raise InvalidRequest(f"type must be one of {known}; got '{for_message(kind)}'", param="type")


def _audio(value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest("audio must be a string with base64", param="audio")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("audio is not valid base64", param="audio", code="invalid_base64") from None
