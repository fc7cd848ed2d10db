"""The configuration of a session, in the shape of the current protocol and in that of the beta."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from whispercore.api.request import parse
from whispercore.api.values import for_message
from whispercore.errors import InvalidRequest, WhisperError

from .audio import FORMATS

LOGPROBS = "item.input_audio_transcription.logprobs"
TRANSCRIPTIONS = "v1/audio/transcriptions"
MAX_PADDING_MS, MAX_SILENCE_MS = 5_000, 10_000
MAX_NAME, MAX_TEXT = 256, 10_000
"""Characters of a model's name, and of any other text. Whisper uses the last 224 tokens of a prompt."""
_BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_READ_ONLY = ("id", "object", "expires_at", "client_secret")
"""Fields of the server's own session object. A client that sends the object back changes nothing by them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerVad:
    """OpenAI's turn detection by voice. `threshold`: the probability of speech at which a turn starts.

    `prefix_padding_ms`: sound kept before the first voice. `silence_duration_ms`: the silence that ends a turn.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcription:
    """How items are transcribed. `languages`: the candidates of language detection. `keywords`: words to expect."""

    model: str = "whisper-1"
    language: str | None = None
    prompt: str | None = None
    languages: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """The fields of a request for a transcription."""
        values = {
            "language": self.language,
            "prompt": self.prompt,
            "languages[]": list(self.languages),
            "keywords[]": list(self.keywords),
        }
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The configuration in force. `format`: one of `FORMATS`. `turn_detection`: None when the client commits."""

    format: str = "audio/pcm"
    transcription: Transcription = Transcription()
    turn_detection: ServerVad | None = ServerVad()
    logprobs: bool = False

    def updated(self, session: Mapping[str, Any]) -> SessionOptions:
        """With the fields of a session.update. Fields that it leaves out keep their values. Raises InvalidRequest."""
        kind = session.get("type", "transcription")
        if kind != "transcription":
            message = f"this server only transcribes: session.type must be transcription; got '{for_message(kind)}'"
            raise InvalidRequest(message, param="session.type")
        _check_names(session, ("type", "audio", "include", *_READ_ONLY), "session")
        audio = _object(session.get("audio"), "session.audio")
        _check_names(audio, ("input",), "session.audio")
        path = "session.audio.input"
        sound = _object(audio.get("input"), path)
        _check_names(sound, ("format", "transcription", "noise_reduction", "turn_detection"), path)
        changed = self
        if sound.get("format") is not None:
            changed = replace(changed, format=_format(sound["format"], f"{path}.format"))
        if "noise_reduction" in sound:
            _check_noise_reduction(sound["noise_reduction"], f"{path}.noise_reduction")
        if "transcription" in sound:
            changed = replace(changed, transcription=_transcription(self.transcription, sound["transcription"], f"{path}.transcription"))
        if "turn_detection" in sound:
            changed = replace(
                changed, turn_detection=_turn_detection(self.turn_detection, sound["turn_detection"], f"{path}.turn_detection")
            )
        return _with_include(changed, session)

    def updated_beta(self, session: Mapping[str, Any]) -> SessionOptions:
        """With the fields of the beta's transcription_session.update. Raises InvalidRequest."""
        prefix = "input_audio_"
        names = (f"{prefix}format", f"{prefix}transcription", f"{prefix}noise_reduction", "turn_detection", "include", "modalities")
        _check_names(session, (*names, *_READ_ONLY), "session")
        changed = self
        if (form := session.get(f"{prefix}format")) is not None:
            if not isinstance(form, str) or form not in _BETA_FORMATS:
                raise _not_among(f"session.{prefix}format", _BETA_FORMATS, form)
            changed = replace(changed, format=_BETA_FORMATS[form])
        if (name := f"{prefix}noise_reduction") in session:
            _check_noise_reduction(session[name], f"session.{name}")
        if (name := f"{prefix}transcription") in session:
            changed = replace(changed, transcription=_transcription(self.transcription, session[name], f"session.{name}"))
        if (name := "turn_detection") in session:
            changed = replace(changed, turn_detection=_turn_detection(self.turn_detection, session[name], f"session.{name}"))
        return _with_include(changed, session)

    def session(self, session_id: str) -> dict[str, Any]:
        """The session object of the current protocol."""
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": session_id,
            "audio": {
                "input": {
                    "format": {"type": self.format} | ({"rate": 24_000} if self.format == "audio/pcm" else {}),
                    "transcription": _described(self.transcription),
                    "noise_reduction": None,
                    "turn_detection": self._described_detection(),
                }
            },
            "include": self._included(),
        }

    def session_beta(self, session_id: str) -> dict[str, Any]:
        """The session object of the beta."""
        return {
            "object": "realtime.transcription_session",
            "id": session_id,
            "input_audio_format": next(name for name, form in _BETA_FORMATS.items() if form == self.format),
            "input_audio_transcription": _described(self.transcription),
            "input_audio_noise_reduction": None,
            "turn_detection": self._described_detection(),
            "include": self._included(),
        }

    def _included(self) -> list[str] | None:
        return [LOGPROBS] if self.logprobs else None

    def _described_detection(self) -> dict[str, Any] | None:
        vad = self.turn_detection
        if vad is None:
            return None
        return {
            "type": "server_vad",
            "threshold": vad.threshold,
            "prefix_padding_ms": vad.prefix_padding_ms,
            "silence_duration_ms": vad.silence_duration_ms,
        }


def _described(transcription: Transcription) -> dict[str, Any]:
    lists = {name: list(values) for name in ("languages", "keywords") if (values := getattr(transcription, name))}
    return {"model": transcription.model, "language": transcription.language, "prompt": transcription.prompt, **lists}


def _with_include(options: SessionOptions, session: Mapping[str, Any]) -> SessionOptions:
    include = session.get("include", ())
    if "include" not in session:
        return options
    if include is not None and (not isinstance(include, list) or any(name != LOGPROBS for name in include)):
        raise InvalidRequest(f"session.include may list {LOGPROBS} only", param="session.include")
    return replace(options, logprobs=bool(include))


def _format(value: Any, path: str) -> str:
    form = _object(value, path)
    _check_names(form, ("type", "rate"), path)
    kind = form.get("type", "audio/pcm")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise _not_among(f"{path}.type", FORMATS, kind)
    rate = FORMATS[kind].rate
    if form.get("rate") not in (None, rate):
        raise InvalidRequest(f"{path}.rate must be {rate} for {kind}; got {for_message(form['rate'])}", param=f"{path}.rate")
    return kind


def _transcription(before: Transcription, value: Any, path: str) -> Transcription:
    if value is None:
        raise InvalidRequest(f"{path} cannot be null: this server only transcribes", param=path)
    fields = _object(value, path)
    _check_names(fields, ("model", "language", "prompt", "languages", "keywords", "delay"), path)
    changes: dict[str, Any] = {}
    if fields.get("model") is not None:
        changes["model"] = _text(fields["model"], f"{path}.model", MAX_NAME)
    for name in ("language", "prompt"):
        if name in fields:
            changes[name] = _text(fields[name] or "", f"{path}.{name}") or None
    for name in ("languages", "keywords"):
        if name in fields:
            changes[name] = _texts(fields[name] or [], f"{path}.{name}")
    changed = replace(before, **changes)
    _check_request(changed, path)
    return changed


def _check_request(transcription: Transcription, path: str) -> None:
    """Raise InvalidRequest when the server would refuse a request with these fields, as for an unknown language."""
    try:
        parse({**transcription.fields(), "file": b"-"}, {"url_path": TRANSCRIPTIONS})
    except WhisperError as error:
        raise InvalidRequest(error.message, param=f"{path}.{(error.param or '').removesuffix('[]')}", code=error.code) from None


def _turn_detection(before: ServerVad | None, value: Any, path: str) -> ServerVad | None:
    if value is None:
        return None
    fields = _object(value, path)
    own = ("threshold", "prefix_padding_ms", "silence_duration_ms")
    _check_names(fields, ("type", *own, "create_response", "interrupt_response", "idle_timeout_ms", "eagerness"), path)
    kind = fields.get("type", "server_vad")
    if kind != "server_vad":
        message = f"{path}.type must be server_vad, or turn_detection null; got '{for_message(kind)}'"
        raise InvalidRequest(message, param=f"{path}.type", code="unsupported_value")
    if fields.get("idle_timeout_ms") is not None:
        message = f"{path}.idle_timeout_ms is not available: it asks for a response, and this server only transcribes"
        raise InvalidRequest(message, param=f"{path}.idle_timeout_ms", code="unsupported_parameter")
    limits = {"threshold": 1.0, "prefix_padding_ms": MAX_PADDING_MS, "silence_duration_ms": MAX_SILENCE_MS}
    numbers: dict[str, Any] = {name: _number(fields[name], limits[name], f"{path}.{name}") for name in own if fields.get(name) is not None}
    whole = {name: value if name == "threshold" else round(value) for name, value in numbers.items()}
    return replace(before or ServerVad(), **whole)


def _check_noise_reduction(value: Any, path: str) -> None:
    """Noise is not reduced: Whisper was trained on noisy sound. The session object says so with null."""
    if value is not None:
        _check_names(_object(value, path), ("type", "strength"), path)


def _object(value: Any, path: str) -> Mapping[str, Any]:
    """An object; None counts as an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object", param=path)
    return value


def _text(value: Any, path: str, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} must be a string", param=path)
    if len(value) > most:
        raise InvalidRequest(f"{path} may have at most {most:,} characters", param=path)
    return value


def _texts(value: Any, path: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a list of strings", param=path)
    return tuple(_text(item, path) for item in value)


def _number(value: Any, most: float, path: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0 <= value <= most:
        raise InvalidRequest(f"{path} must be between 0 and {most:g}; got {for_message(value)}", param=path)
    return float(value)


def _check_names(fields: Mapping[str, Any], known: Iterable[str], path: str) -> None:
    for name in fields:
        if name not in known:
            shown = for_message(name)
            raise InvalidRequest(f"{path} has no field '{shown}'", param=f"{path}.{shown}", code="unknown_parameter")


def _not_among(path: str, known: Iterable[str], value: Any) -> InvalidRequest:
    return InvalidRequest(f"{path} must be one of {', '.join(known)}; got '{for_message(value)}'", param=path)
