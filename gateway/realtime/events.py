"""The events that the server sends, named and shaped as in OpenAI's Realtime API.

All have a `type` and an `event_id` on the wire. Positions in milliseconds count from the first sample of the session.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from whispercore.errors import WhisperError

_TRANSCRIPTION = "conversation.item.input_audio_transcription"


def new_id(kind: str) -> str:
    """A random id such as `item_1f0c…`."""
    return f"{kind}_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Event:
    """An event. `optional`: the fields that are left out when they are None; others are null then."""

    type: ClassVar[str]
    optional: ClassVar[tuple[str, ...]] = ()

    def text(self) -> str:
        """The event as JSON. All characters are ASCII, so that lone surrogates of a client's strings do no harm."""
        content = {name: value for name, value in asdict(self).items() if value is not None or name not in self.optional}
        return json.dumps({"type": self.type, "event_id": new_id("event"), **content})


@dataclass(frozen=True, slots=True)
class SessionCreated(Event):
    """The first event. `session`: the configuration in force."""

    type: ClassVar[str] = "session.created"
    session: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SessionUpdated(Event):
    """The answer to session.update."""

    type: ClassVar[str] = "session.updated"
    session: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TranscriptionSessionCreated(Event):
    """The first event for a client of the beta protocol."""

    type: ClassVar[str] = "transcription_session.created"
    session: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TranscriptionSessionUpdated(Event):
    """The answer to transcription_session.update."""

    type: ClassVar[str] = "transcription_session.updated"
    session: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SpeechStarted(Event):
    """A turn has begun. `audio_start_ms`: where its sound begins, the padding included."""

    type: ClassVar[str] = "input_audio_buffer.speech_started"
    audio_start_ms: int
    item_id: str


@dataclass(frozen=True, slots=True)
class SpeechStopped(Event):
    """A turn has ended. `audio_end_ms`: where its sound ends, the silence that ended it included."""

    type: ClassVar[str] = "input_audio_buffer.speech_stopped"
    audio_end_ms: int
    item_id: str


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """The sound of an item is complete."""

    type: ClassVar[str] = "input_audio_buffer.committed"
    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class Cleared(Event):
    """The answer to input_audio_buffer.clear."""

    type: ClassVar[str] = "input_audio_buffer.cleared"


@dataclass(frozen=True, slots=True)
class ItemAdded(Event):
    """The item of a committed buffer."""

    type: ClassVar[str] = "conversation.item.added"
    item: Mapping[str, Any]
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ItemCreated(Event):
    """The same for a client of the beta protocol."""

    type: ClassVar[str] = "conversation.item.created"
    item: Mapping[str, Any]
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ItemDone(Event):
    """The item with its transcript, after `completed` or `failed`."""

    type: ClassVar[str] = "conversation.item.done"
    item: Mapping[str, Any]
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class TranscriptionDelta(Event):
    """More text of an item. The deltas of an item are never taken back."""

    type: ClassVar[str] = f"{_TRANSCRIPTION}.delta"
    item_id: str
    delta: str
    content_index: int = 0


@dataclass(frozen=True, slots=True)
class TranscriptionCompleted(Event):
    """The text of an item. It counts where it differs from the deltas."""

    type: ClassVar[str] = f"{_TRANSCRIPTION}.completed"
    optional: ClassVar[tuple[str, ...]] = ("languages", "logprobs")
    item_id: str
    transcript: str
    usage: Mapping[str, Any]
    languages: list[Any] | None = None
    logprobs: list[Any] | None = None
    content_index: int = 0


@dataclass(frozen=True, slots=True)
class TranscriptionFailed(Event):
    """An item that could not be transcribed."""

    type: ClassVar[str] = f"{_TRANSCRIPTION}.failed"
    item_id: str
    error: Mapping[str, Any]
    content_index: int = 0


@dataclass(frozen=True, slots=True)
class ErrorOccurred(Event):
    """An error. Where a client's event caused it, the error has its `event_id`."""

    type: ClassVar[str] = "error"
    error: Mapping[str, Any]


def error_event(error: WhisperError, event_id: str | None = None) -> ErrorOccurred:
    """The event of an error. `event_id`: that of the client's event which caused it."""
    return ErrorOccurred(
        {"type": error.kind, "code": error.code, "message": error.message, "param": error.param, "event_id": event_id},
    )


def item(item_id: str, transcript: str | None = None) -> dict[str, Any]:
    """An item: a user's message whose content is sound."""
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": transcript}],
    }
