"""One HTTP request, as a server's row of fields and headers → a checked `Request`. Knows no server; raises `WhisperError` only.

Fields are the body's form fields, the keys of a JSON object, or the query's. A raw body takes its options from headers:
`X-Whisper-<Option-With-Dashes>`, as in `X-Whisper-Beam-Size: 5`. An empty value, or JSON's null, counts as not sent. A list is JSON,
text with commas, or a repeated `name[]`; an object is JSON or its parts as `name[part]`: as OpenAI's clients send them.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_origin, get_type_hints
from urllib.parse import unquote

from .errors import InvalidRequest, NotFound, TooLarge
from .options import SUBTITLE_OPTIONS, Options, Reply, ResponseFormat
from .values import parsed, read, shown

Audio: TypeAlias = bytes | bytearray | memoryview
Route = Literal["native", "transcriptions", "translations", "models"]

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
ROUTES: Mapping[str, Route] = MappingProxyType(
    {"": "native", "v1/audio/transcriptions": "transcriptions", "v1/audio/translations": "translations", "v1/models": "models"}
)
_ONE_MODEL = "v1/models/"
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
        # TorchServe's own query field on /invocations
        "model_name": "model",
    }
)
OBJECT_FIELDS = ("vad_parameters", "chunking_strategy")
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "known_speaker_names": "speakers are not told apart",
        "known_speaker_references": "speakers are not told apart",
        "vad_parameters[max_speech_duration_s]": "windows have at most 30 s already",
        "vad_parameters": 'it takes an object, as in {"threshold": 0.5}',
    }
)
"""What OpenAI's API or faster-whisper have and this server has not, with why."""
OPTION_HEADER = "x-whisper-"
RAW_FIELD = "body"
AUDIO_FIELDS = ("file", "audio", "data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, checked. `audio`: the upload, undecoded and uncopied; empty on the route `models`, which takes none.

    `model`: the one asked about there, by its id; empty: all.
    """

    audio: Audio
    options: Options
    reply: Reply
    route: Route
    model: str = ""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A field as the client sent it: `label` is its name there, for messages."""

    name: str
    label: str
    value: Any


def parse(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
    """The request that `row` and `headers` make.

    `row`: a raw body is {"body": bytes}, a JSON body {"body": its value}, a form one bytes or str per field, or the list of all
    values of a field that was repeated; query fields stand beside. Headers count in any case; values that are no strings are
    passed over (form fields' own headers). Raises InvalidRequest (400) naming the field, NotFound (404) for an unknown `url_path`.
    """
    known = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    path = known.get("url_path", "").partition("?")[0].strip("/")
    model = path.removeprefix(_ONE_MODEL) if path.startswith(_ONE_MODEL) else ""
    route = "models" if model else _route(path)
    if route == "models":
        return Request(audio=b"", options=Options(), reply=Reply(), route=route, model=unquote(model))
    content = _json_content(row, known.get("content-type", ""))
    sent = _collect([*_fields(row, content), *_headers(headers)])
    audio = _audio(row, content)
    options, reply = _asked(sent, route, known.get("accept", ""))
    return Request(audio=audio, options=options, reply=reply, route=route)


def request_id(headers: Mapping[str, Any]) -> str:
    """The client's x-request-id when it can be repeated in a header and a log line, else ""."""
    offered = next((value for name, value in headers.items() if name.lower() == "x-request-id" and isinstance(value, str)), "")
    sane = 0 < len(offered) <= 128 and offered.isascii() and offered.isprintable()
    return offered if sane else ""


def check_audio_bytes(audio: Audio, limit: int) -> None:
    """Raise TooLarge when the upload has more than `limit` bytes."""
    size = memoryview(audio).nbytes
    if size > limit:
        raise TooLarge(f"the audio has {size:,} bytes, at most {limit:,} ({limit / 2**20:g} MB) are accepted", param="file")


def _route(path: str) -> Route:
    route = ROUTES.get(path)
    if route is None:
        raise NotFound(f"no such path: /{shown(path)}; there are: {', '.join('/' + path for path in ROUTES if path)}")
    return route


# Where fields come from


def _json_content(row: Mapping[str, Any], content_type: str) -> Mapping[str, Any] | None:
    """The JSON object in the body; None when the body is something else."""
    body = row.get(RAW_FIELD)
    says_json = content_type.partition(";")[0].strip().lower() == "application/json"
    if says_json and body and isinstance(body, Audio | str):
        # TorchServe hands over JSON that it could not parse as bytes (facts/torchserve.md: nothing may kill the worker)
        try:
            body = json.loads(bytes(body) if isinstance(body, memoryview) else body)
        except (ValueError, RecursionError):
            raise InvalidRequest("the body is not valid JSON", code="invalid_json") from None
    elif body is None or isinstance(body, Audio | str):
        return None
    if not isinstance(body, Mapping):
        raise InvalidRequest('the JSON body must be an object, as in {"audio": "<base64>", "language": "en"}', code="invalid_json")
    return body


def _fields(row: Mapping[str, Any], content: Mapping[str, Any] | None) -> Iterator[_Sent]:
    """Every field but the audio: form and query fields, then those of the JSON object."""
    named = [(name, value) for name, value in row.items() if name != RAW_FIELD]
    for name, value in [*named, *(content or {}).items()]:
        if name not in AUDIO_FIELDS:
            yield from _spelled(name, name, _plain(name, value))


def _headers(headers: Mapping[str, Any]) -> Iterator[_Sent]:
    for label, value in headers.items():
        if label.lower().startswith(OPTION_HEADER) and isinstance(value, str):
            name = label.lower().removeprefix(OPTION_HEADER).replace("-", "_")
            yield from _spelled(name, label, _utf8(value).strip())


def _spelled(name: str, label: str, value: Any) -> Iterator[_Sent]:
    """The field under its own name, which may be sent as an alias, as name[] for a list, or as an object with several fields."""
    if name in OBJECT_FIELDS and isinstance(value, str) and value.startswith("{"):
        value = parsed(label, value)
    if name in OBJECT_FIELDS and isinstance(value, Mapping):
        for part, inner in value.items():
            yield from _spelled(f"{name}[{part}]", f"{label}[{part}]", _plain(part, inner))
        return
    base = name.removesuffix("[]")
    base = ALIASES.get(base, base)
    yield _Sent(base if base in LIST_FIELDS else ALIASES.get(name, name), label, value)


def _utf8(header: str) -> str:
    """HTTP libraries read header bytes as Latin-1; a client that sent UTF-8 gets its letters back."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _plain(name: str, value: Any) -> Any:
    """A field's value, or those of a repeated field, bytes as stripped text."""
    if isinstance(value, list):
        return [_plain(name, one) if isinstance(one, Audio | str) else one for one in value]
    if isinstance(value, Audio):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{shown(name)} is not UTF-8 text", param=shown(name)) from None
    return value.strip() if isinstance(value, str) else value


def _collect(found: list[_Sent]) -> dict[str, _Sent]:
    """The fields by their own name, known ones only, each once."""
    sent: dict[str, _Sent] = {}
    for field in found:
        _check_known(field)
        if field.value is None or field.value == "":
            continue
        if field.name in sent:
            message = f"{shown(field.label)} is given twice: as {shown(sent[field.name].label)} and as {shown(field.label)}"
            raise InvalidRequest(message, param=field.label)
        sent[field.name] = field
    return sent


def _check_known(field: _Sent) -> None:
    """Raise InvalidRequest for a field that nobody knows, or that is known elsewhere but not available here."""
    label = shown(field.label)
    if field.name in KNOWN_FIELDS or (field.name in REFUSED and field.value in (None, "")):
        return
    if why := REFUSED.get(field.name.removesuffix("[]")):
        raise InvalidRequest(f"{label} is not available: {why}", param=label, code="unsupported_parameter")
    close = difflib.get_close_matches(field.name[:64], [*KNOWN_FIELDS, *ALIASES], n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    names = ", ".join(sorted({*AUDIO_FIELDS, *KNOWN_FIELDS, *ALIASES}))
    raise InvalidRequest(f"unknown field '{label}'; {hint}known: {names}", param=label, code="unknown_parameter")


# The audio


def _audio(row: Mapping[str, Any], content: Mapping[str, Any] | None) -> Audio:
    """The one upload of the request."""
    names = AUDIO_FIELDS if content is not None else (RAW_FIELD, *AUDIO_FIELDS)
    uploads = {name: _upload(name, row[name]) for name in names if row.get(name) is not None}
    for name in AUDIO_FIELDS:
        if content is not None and content.get(name) is not None:
            uploads[f"JSON's {name}" if name in uploads else name] = _base64(name, content[name])
    if not uploads:
        message = "missing file: send the audio as the body, as the form field 'file', or as base64 in JSON"
        raise InvalidRequest(message, param="file", code="missing_required_parameter")
    if len(uploads) > 1:
        raise InvalidRequest(f"one recording per request; got {' and '.join(uploads)}", param="file")
    audio = next(iter(uploads.values()))
    if not audio:
        raise InvalidRequest("the file is empty: 0 bytes arrived", param="file", code="empty_file")
    return audio


def _upload(name: str, value: Any) -> Audio:
    if isinstance(value, str):  # a part that calls itself text: the decoder will tell that it is no audio
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
    head, comma, rest = value.partition(",") if value[:5].lower() == "data:" else ("", "", value)
    try:
        if head and not (comma and head.lower().endswith(";base64")):
            raise ValueError("a data: URI without ;base64,")
        return base64.b64decode(rest, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "send standard base64 with padding and no line breaks (base64 -w0 FILE)"
        raise InvalidRequest(f"{name} is not valid base64: {error}; {hint}", param=name, code="invalid_base64") from None


# Options and the reply's form, read by the types of their dataclasses


def _asked(sent: Mapping[str, _Sent], route: Route, accept: str) -> tuple[Options, Reply]:
    """What the fields ask for; what one of them says of another included."""
    values = {name: read(name, _TYPES[name], field.label, field.value) for name, field in sent.items()}
    if "response_format" not in values and not values.get("stream"):
        values["response_format"] = _accepted(accept)
    _imply(values, route)
    labels = {name: field.label for name, field in sent.items()}
    labels.setdefault("include", labels.get("token_logprobs", "include"))
    with _named_as_sent(labels):
        if route == "translations" and values["task"] != "translate":
            raise InvalidRequest("task: /v1/audio/translations translates; post to /v1/audio/transcriptions instead", param="task")
        reply = Reply(**{name: value for name, value in values.items() if name in _REPLY_TYPES})
        _check_form(reply, labels, route)
        return Options(**{name: value for name, value in values.items() if name in _OPTION_TYPES}), reply


def _imply(values: dict[str, Any], route: Route) -> None:
    """What a field switches on: words their times, log-probabilities themselves, OpenAI's chunking strategies the VAD."""
    if values.get("word_timestamps"):
        values.setdefault("timestamp_granularities", ("word", "segment"))
    if "word" in values.get("timestamp_granularities", ()) or any(values.get(name) for name in SUBTITLE_OPTIONS):
        values["word_timestamps"] = True
    if values.get("token_logprobs"):
        values.setdefault("include", ("logprobs",))
    if values.get("include"):
        values["token_logprobs"] = True
    if values.get("chunking_strategy"):
        values.setdefault("vad_filter", True)
    if route == "translations":
        values.setdefault("task", "translate")


def _check_form(reply: Reply, labels: Mapping[str, str], route: Route) -> None:
    """Raise InvalidRequest for what the form of the answer has no place for."""
    timed = ("json", "verbose_json") if route == "native" else ("verbose_json",)
    if "timestamp_granularities" in labels and reply.response_format not in timed:
        message = f"timestamp_granularities: response_format must be {' or '.join(timed)} to have times"
        raise InvalidRequest(message, param="timestamp_granularities")
    if reply.stream and route != "native" and reply.response_format not in ("json", "text"):
        raise InvalidRequest("stream: response_format must be json or text to be streamed", param="stream")


@contextmanager
def _named_as_sent(labels: Mapping[str, str]) -> Iterator[None]:
    """An option's error, told by the name that the client gave it: prompt, X-Whisper-Beam-Size."""
    try:
        yield
    except InvalidRequest as error:
        name = error.param or ""
        label = labels.get(name, name)
        raise InvalidRequest(error.message.replace(name, label, 1), param=label, code=error.code) from None


def _accepted(accept: str) -> ResponseFormat:
    """The format that an Accept header likes best; json when it names none that we have."""
    ranked: list[tuple[float, bool, ResponseFormat]] = []
    for part in accept.lower().split(","):
        kind, *parameters = [piece.strip() for piece in part.split(";")]
        quality = next((_quality(piece[2:]) for piece in parameters if piece.startswith("q=")), 1.0)
        wanted = _BY_CONTENT_TYPE.get(kind)
        if wanted and quality > 0:
            ranked.append((quality, "*" not in kind, wanted))
    return max(ranked, key=lambda entry: entry[:2])[2] if ranked else "json"


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


_HINTS = {**get_type_hints(Options), **get_type_hints(Reply)}
_OPTION_TYPES = {item.name: _HINTS[item.name] for item in fields(Options)}
_REPLY_TYPES = {item.name: _HINTS[item.name] for item in fields(Reply)}
_TYPES: Mapping[str, Any] = MappingProxyType(
    {**_OPTION_TYPES, **_REPLY_TYPES, "model": str, "chunking_strategy": Literal["auto", "server_vad"] | None}
)
KNOWN_FIELDS = tuple(_TYPES)
LIST_FIELDS = (*(name for name, hint in _TYPES.items() if get_origin(hint) is tuple), "hotwords")
_BY_CONTENT_TYPE: Mapping[str, ResponseFormat] = MappingProxyType(
    {
        **{kind: name for name, kind in CONTENT_TYPES.items() if name != "verbose_json"},
        **{"text/*": "text", "text/srt": "srt", "application/*": "json", "*/*": "json"},
    }
)
