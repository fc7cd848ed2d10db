"""The fields of a request → each once, by this server's own name, with the value as it was sent.

Fields are the body's form fields, the keys of a JSON object, or the query's. A raw body takes its options from headers:
`X-Whisper-<Option-With-Dashes>`, as in `X-Whisper-Beam-Size: 5`. An empty value, or JSON's null, counts as not sent. A list is JSON,
text with commas, or a repeated `name[]`; an object is JSON or its parts as `name[part]`: as OpenAI's clients send them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_origin, get_type_hints

from ..errors import InvalidRequest
from ..options import Options, Reply
from .values import MAX_LIST_TEXT, OFF, parsed, shown

Audio: TypeAlias = bytes | bytearray | memoryview

_HINTS = {**get_type_hints(Options), **get_type_hints(Reply)}
OPTION_TYPES = {item.name: _HINTS[item.name] for item in fields(Options)}
REPLY_TYPES = {item.name: _HINTS[item.name] for item in fields(Reply)}
TYPES: Mapping[str, Any] = MappingProxyType(
    {**OPTION_TYPES, **REPLY_TYPES, "model": str, "translate": bool, "chunking_strategy": Literal["auto", "server_vad"] | None}
)
KNOWN_FIELDS = tuple(TYPES)
LIST_FIELDS = (*(name for name, hint in TYPES.items() if get_origin(hint) is tuple), "hotwords")
AUDIO_FIELDS = ("file", "audio", "data")
RAW_FIELD = "body"
OPTION_HEADER = "x-whisper-"
OBJECT_FIELDS = ("vad_parameters", "chunking_strategy")
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        # OpenAI's API
        "prompt": "initial_prompt",
        "keywords": "hotwords",
        "chunking_strategy[type]": "chunking_strategy",
        "chunking_strategy[threshold]": "vad_threshold",
        "chunking_strategy[silence_duration_ms]": "vad_min_silence_duration_ms",
        "chunking_strategy[prefix_padding_ms]": "vad_speech_pad_ms",
        # faster-whisper
        "log_prob_threshold": "logprob_threshold",
        "vad_parameters[threshold]": "vad_threshold",
        "vad_parameters[neg_threshold]": "vad_neg_threshold",
        "vad_parameters[min_speech_duration_ms]": "vad_min_speech_duration_ms",
        "vad_parameters[min_silence_duration_ms]": "vad_min_silence_duration_ms",
        "vad_parameters[speech_pad_ms]": "vad_speech_pad_ms",
        # whisper.cpp's server
        "no_timestamps": "without_timestamps",
        "logprob_thold": "logprob_threshold",
        "no_speech_thold": "no_speech_threshold",
        "vad": "vad_filter",
        # whisper-asr-webservice
        "output": "response_format",
        # TorchServe's own query field on /invocations
        "model_name": "model",
    }
)
_SPEAKERS = "speakers are not told apart; of a call with a channel for each, channels=separate transcribes them apart"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        # OpenAI's API
        "known_speaker_names": _SPEAKERS,
        "known_speaker_references": _SPEAKERS,
        # faster-whisper
        "vad_parameters[max_speech_duration_s]": "windows have at most 30 s already",
        "vad_parameters": 'it takes an object, as in {"threshold": 0.5}',
        # whisperX, whisper-asr-webservice, LocalAI, whisper.cpp
        **dict.fromkeys(("diarize", "diarise", "diarization", "tinydiarize", "speaker_labels"), _SPEAKERS),
        **dict.fromkeys(("min_speakers", "max_speakers", "num_speakers", "speaker_embeddings"), _SPEAKERS),
        "return_char_alignments": "words have times, letters have none: take word_timestamps",
        "detect_language": "a reply without text is not to be had; leave language out, and the reply tells which it is",
        "batch_size": "the server batches the windows of all requests: WHISPER_BATCH_SIZE",
        "compute_type": "the server decides it for all requests: WHISPER_DTYPE",
    }
)
"""What OpenAI's API and other servers have and this server has not, with why. A value that asks for nothing passes."""
IGNORED = ("encode",)
"""Fields that change nothing here, whatever they say: whisper-asr-webservice's `encode`, for every recording is decoded."""
_NOTHING = ("", "false", "0", "no", "off", "none", "null")
_FILE_WORDS = frozenset(
    {"file", "files", "filedata", "audio", "audios", "audiofile", "audiodata", "data", "upload", "uploads", "input", "inputs", "recording"}
    | {"sound", "voice", "speech", "media", "video", "source", "content", "blob", "binary", "bytes", "base64", "b64", "raw", "wav", "mp3"}
    | {"attachment", "document"}
)
"""A field whose name has no other words was meant to be the recording."""
_SIMILAR = 0.8
"""difflib's ratio above which an unknown field with an empty value is a slip of the pen, not another server's option."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A field as the client sent it: `name` is this server's, `label` the client's own, for messages."""

    name: str
    label: str
    value: Any


def sent_fields(row: Mapping[str, Any], content: Mapping[str, Any] | None, headers: Mapping[str, Any]) -> dict[str, Sent]:
    """The fields by their own name, known ones only, each once: of `row`, of the JSON object `content`, of the headers.

    Raises InvalidRequest for an unknown field, one given twice, and one that is no text.
    """
    return _once([*_body_fields(row, content), *_header_fields(headers)])


def _body_fields(row: Mapping[str, Any], content: Mapping[str, Any] | None) -> Iterator[Sent]:
    """Every field but the audio: form and query fields, then those of the JSON object."""
    named = [(name, value) for name, value in row.items() if name != RAW_FIELD]
    for name, value in [*named, *(content or {}).items()]:
        if name not in AUDIO_FIELDS:
            yield from _spelled(name, name, _plain(value))


def _header_fields(headers: Mapping[str, Any]) -> Iterator[Sent]:
    for label, value in headers.items():
        if label.lower().startswith(OPTION_HEADER) and isinstance(value, str):
            name = label.lower().removeprefix(OPTION_HEADER).replace("-", "_")
            yield from _spelled(name, label, _utf8(value).strip())


def _spelled(name: str, label: str, value: Any) -> Iterator[Sent]:
    """The field under its own name, which may be sent as an alias, as name[] for a list, or as an object with several fields."""
    if name in OBJECT_FIELDS and isinstance(value, str) and value.startswith("{"):
        value = parsed(label, value)
    if name in OBJECT_FIELDS and isinstance(value, Mapping):
        for part, inner in value.items():
            yield from _spelled(f"{name}[{part}]", f"{label}[{part}]", _plain(inner))
        return
    base = name.removesuffix("[]")
    base = ALIASES.get(base, base)
    yield Sent(base if base in LIST_FIELDS else ALIASES.get(name, name), label, value)


def _utf8(header: str) -> str:
    """HTTP libraries read header bytes as Latin-1; a client that sent UTF-8 gets its letters back."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _plain(value: Any) -> Any:
    """A field's value, or those of a repeated field, bytes as stripped text; bytes that are no text as they are."""
    if isinstance(value, list):
        return [_plain(one) if isinstance(one, Audio | str) else one for one in value]
    if isinstance(value, Audio):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError:
            return value
    return value.strip() if isinstance(value, str) else value


def _once(found: Iterable[Sent]) -> dict[str, Sent]:
    sent: dict[str, Sent] = {}
    for field in found:
        _check_name(field)
        if field.name not in KNOWN_FIELDS or _is_unset(field):
            continue
        _check_text(field)
        if field.name in sent:
            message = f"{shown(field.label)} is given twice: as {shown(sent[field.name].label)} and as {shown(field.label)}"
            raise InvalidRequest(message, param=field.label)
        sent[field.name] = field
    return sent


def _is_unset(field: Sent) -> bool:
    """Whether the field counts as not sent; a switch and a choice may also say none or null, which forms make of a missing value."""
    if field.value is None or field.value == "":
        return True
    hint = TYPES[field.name]
    return (hint is bool or get_origin(hint) is Literal) and isinstance(field.value, str) and field.value.lower() in OFF


def _check_text(field: Sent) -> None:
    values = field.value if isinstance(field.value, list) else [field.value]
    if any(isinstance(value, Audio) for value in values):
        raise InvalidRequest(f"{shown(field.label)} is not UTF-8 text", param=shown(field.label))


def _check_name(field: Sent) -> None:
    """Raise InvalidRequest for an unknown field, and for one that other servers have and this one has not."""
    if field.name in (*KNOWN_FIELDS, *IGNORED):
        return
    label, nothing = shown(field.label), _asks_for_nothing(field.value)
    if why := REFUSED.get(field.name.removesuffix("[]")):
        if not nothing:
            raise InvalidRequest(f"{label} is not available: {why}", param=label, code="unsupported_parameter")
        return
    similar = difflib.get_close_matches(field.name[:64], [*KNOWN_FIELDS, *ALIASES], n=1, cutoff=_SIMILAR if nothing else 0.6)
    if nothing and not similar:
        return
    if _is_a_file(field):
        message = f"unknown field '{label}'; did you mean 'file'? The recording is expected there, or in {' or '.join(AUDIO_FIELDS[1:])}"
        raise InvalidRequest(message, param=label, code="unknown_parameter")
    hint = f"did you mean '{similar[0]}'? " if similar else ""
    names = ", ".join(sorted({*AUDIO_FIELDS, *KNOWN_FIELDS, *ALIASES}))
    raise InvalidRequest(f"unknown field '{label}'; {hint}known: {names}", param=label, code="unknown_parameter")


def _asks_for_nothing(value: Any) -> bool:
    """Whether the value switches a feature off: false, 0, no, none, null, an empty one."""
    return value.lower() in _NOTHING if isinstance(value, str) else not isinstance(value, Audio) and not value


def _is_a_file(field: Sent) -> bool:
    """Whether the unknown field holds a recording: by its value, or by its name, as in audio_file, files, file[], audioFile."""
    values = field.value if isinstance(field.value, list) else [field.value]
    if any(isinstance(value, Audio) or (isinstance(value, str) and (len(value) > MAX_LIST_TEXT or "\0" in value)) for value in values):
        return True
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", field.name[:64])
    return bool(words) and all(word.lower() in _FILE_WORDS for word in words)
