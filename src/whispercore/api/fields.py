"""The fields of a request, each under this server's own name, with the value as the client sent it.

Fields come from a form, from the keys of a JSON object, or from the query. Beside a raw body, options are headers:
`X-Whisper-<Option-With-Dashes>`, for example `X-Whisper-Beam-Size: 5`. Where a proxy drops them, as SageMaker does,
they may be parameters of Content-Type: `audio/flac; x-whisper-beam-size=5`. An empty value and JSON's null count as not
sent. A list is JSON, text with commas, or a repeated field `name[]`. An object is JSON, or one field `name[part]` per
part, as OpenAI's clients send it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_origin, get_type_hints

from ..errors import InvalidRequest
from ..options import Options, Reply
from .multipart import parameters
from .values import MAX_LIST_TEXT, NONE_WORDS, for_message, parse_json

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
MAX_FIELDS = 1_000
"""Fields of a form, at most."""
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
_SPEAKERS = "speakers are not identified; channels=separate transcribes the channels of a call separately"
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
        "return_char_alignments": "there are times for words, not for characters: use word_timestamps",
        "detect_language": "there is no reply without a transcript; leave language out, and the reply names the detected language",
        "batch_size": "the server batches the windows of all requests: WHISPER_BATCH_SIZE",
        "compute_type": "the server decides it for all requests: WHISPER_DTYPE",
    }
)
"""Fields of OpenAI's API and of other servers that this server does not have → the reason.

A value that switches off is accepted.
"""
IGNORED = ("encode",)
"""Fields without effect.

whisper-asr-webservice's `encode` asks for FFmpeg to decode the upload, which always happens here.
"""
_OFF_WORDS = ("", "false", "0", "no", "off", "none", "null")
_FILE_WORDS = frozenset(
    {"file", "files", "filedata", "audio", "audios", "audiofile", "audiodata", "data", "upload", "uploads", "input", "inputs", "recording"}
    | {"sound", "voice", "speech", "media", "video", "source", "content", "blob", "binary", "bytes", "base64", "b64", "raw", "wav", "mp3"}
    | {"attachment", "document"}
)
"""An unknown field whose name consists only of these words is a misnamed recording."""
_MIN_SIMILARITY = 0.6
"""difflib's ratio from which an unknown field gets a suggestion."""
_MIN_SIMILARITY_OFF = 0.8
"""The same for an unknown field that switches something off.

Below this ratio the field is taken for another server's option, and is accepted.
"""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request. `name` is this server's name, `label` the client's own spelling, for error messages."""

    name: str
    label: str
    value: Any


def read_fields(row: Mapping[str, Any], content: Mapping[str, Any] | None, headers: Mapping[str, Any]) -> dict[str, Field]:
    """The known fields that have a value, by name: those of `row`, of the JSON object `content` and of `headers`.

    Raises InvalidRequest for an unknown field, for a field given twice, and for a value that is not text.
    """
    by_name: dict[str, Field] = {}
    for field in (*_body_fields(row, content), *_header_fields(headers)):
        _check_name(field)
        if field.name not in KNOWN_FIELDS or _is_unset(field):
            continue
        _check_text(field)
        if field.name in by_name:
            label, first = for_message(field.label), for_message(by_name[field.name].label)
            raise InvalidRequest(f"{label} is given twice: as {first} and as {label}", param=field.label)
        by_name[field.name] = field
    return by_name


def _body_fields(row: Mapping[str, Any], content: Mapping[str, Any] | None) -> Iterator[Field]:
    """Form and query fields, then those of the JSON object, without the recording."""
    named = [(name, value) for name, value in row.items() if name != RAW_FIELD]
    for name, value in [*named, *(content or {}).items()]:
        if name not in AUDIO_FIELDS:
            yield from _expand(name, name, _as_text(value))


def _header_fields(headers: Mapping[str, Any]) -> Iterator[Field]:
    for label, value in headers.items():
        if not isinstance(value, str):
            continue
        for option, text in [(label, _utf8(value)), *(parameters(value) if label.lower() == "content-type" else ())]:
            if option.lower().startswith(OPTION_HEADER):
                name = option.lower().removeprefix(OPTION_HEADER).replace("-", "_")
                yield from _expand(name, option, text.strip())


def _expand(name: str, label: str, value: Any) -> Iterator[Field]:
    """The field under this server's name, or one field per part of an object.

    An alias is replaced by the name that it stands for, and `name[]` of a list by `name`.
    """
    if name in OBJECT_FIELDS and isinstance(value, str) and value.startswith("{"):
        value = parse_json(label, value)
    if name in OBJECT_FIELDS and isinstance(value, Mapping):
        for part, part_value in value.items():
            yield from _expand(f"{name}[{part}]", f"{label}[{part}]", _as_text(part_value))
        return
    list_name = name.removesuffix("[]")
    list_name = ALIASES.get(list_name, list_name)
    yield Field(list_name if list_name in LIST_FIELDS else ALIASES.get(name, name), label, value)


def _utf8(header: str) -> str:
    """A header value that was sent as UTF-8. HTTP libraries decode header bytes as Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _as_text(value: Any) -> Any:
    """The value with bytes decoded and text stripped, also inside a list. Bytes that are not UTF-8 stay bytes."""
    if isinstance(value, list):
        return [_as_text(item) if isinstance(item, Audio | str) else item for item in value]
    if isinstance(value, Audio):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError:
            return value
    return value.strip() if isinstance(value, str) else value


def _is_unset(field: Field) -> bool:
    """Whether the field counts as not sent: it is empty, or `none` for a switch or a choice.

    Some clients put `none` or `null` into a form for a value that they do not have.
    """
    if field.value is None or field.value == "":
        return True
    hint = TYPES[field.name]
    return (hint is bool or get_origin(hint) is Literal) and isinstance(field.value, str) and field.value.lower() in NONE_WORDS


def _check_text(field: Field) -> None:
    values = field.value if isinstance(field.value, list) else [field.value]
    if any(isinstance(value, Audio) for value in values):
        raise InvalidRequest(f"{for_message(field.label)} is not UTF-8 text", param=for_message(field.label))


def _check_name(field: Field) -> None:
    """Raise InvalidRequest for an unknown field, and for a field that only other servers have."""
    if field.name in (*KNOWN_FIELDS, *IGNORED):
        return
    label, is_off = for_message(field.label), _is_off(field.value)
    if reason := REFUSED.get(field.name.removesuffix("[]")):
        if not is_off:
            raise InvalidRequest(f"{label} is not available: {reason}", param=label, code="unsupported_parameter")
        return
    cutoff = _MIN_SIMILARITY_OFF if is_off else _MIN_SIMILARITY
    suggestions = difflib.get_close_matches(field.name[:64], [*KNOWN_FIELDS, *ALIASES], n=1, cutoff=cutoff)
    if is_off and not suggestions:
        return
    if _is_recording(field):
        message = f"unknown field '{label}'; did you mean 'file'? The recording is expected there, or in {' or '.join(AUDIO_FIELDS[1:])}"
        raise InvalidRequest(message, param=label, code="unknown_parameter")
    hint = f"did you mean '{suggestions[0]}'? " if suggestions else ""
    names = ", ".join(sorted({*AUDIO_FIELDS, *KNOWN_FIELDS, *ALIASES}))
    raise InvalidRequest(f"unknown field '{label}'; {hint}known: {names}", param=label, code="unknown_parameter")


def _is_off(value: Any) -> bool:
    """Whether the value switches a feature off: false, 0, no, none, null, or empty."""
    return value.lower() in _OFF_WORDS if isinstance(value, str) else not isinstance(value, Audio) and not value


def _is_recording(field: Field) -> bool:
    """Whether an unknown field holds a recording, by its value or by its name: audio_file, files, file[], audioFile."""
    values = field.value if isinstance(field.value, list) else [field.value]
    if any(isinstance(value, Audio) or (isinstance(value, str) and (len(value) > MAX_LIST_TEXT or "\0" in value)) for value in values):
        return True
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", field.name[:64])
    return bool(words) and all(word.lower() in _FILE_WORDS for word in words)
