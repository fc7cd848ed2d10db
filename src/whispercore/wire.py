"""One HTTP request, as a server's row of fields and headers → a checked `Request`. Knows no server; raises `WhisperError` only.

Fields are the body's form fields, the keys of a JSON object, or the query's. A raw body takes its options from headers:
`X-Whisper-<Option-With-Dashes>`, as in `X-Whisper-Beam-Size: 5`. An empty value, or JSON's null, counts as not sent.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType, NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from .errors import InvalidRequest, NotFound, TooLarge
from .options import FALLBACK_TEMPERATURES, Options, Reply, ResponseFormat

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
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "initial_prompt",  # OpenAI's API
        "log_prob_threshold": "logprob_threshold",  # faster-whisper
        "timestamp_granularities[]": "timestamp_granularities",  # as the official clients spell an array
        "model_name": "model",  # TorchServe's own query field on /invocations
    }
)
OPTION_HEADER = "x-whisper-"
RAW_FIELD = "body"
AUDIO_FIELDS = ("file", "audio", "data")
MAX_TEXT = 10_000
"""Characters of a text option; the model itself reads at most the last 223 tokens of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, checked. `audio`: the upload, undecoded and uncopied; empty on the route `models`, which takes none."""

    audio: Audio
    options: Options
    reply: Reply
    route: Route


@dataclass(frozen=True, slots=True)
class _Sent:
    """A field as the client sent it: `label` is its name there, for messages."""

    name: str
    label: str
    value: Any


def parse(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
    """The request that `row` and `headers` make.

    `row`: a raw body is {"body": bytes}, a JSON body {"body": its value}, a form one bytes or str per field; query fields
    stand beside. Headers count in any case; values that are no strings are passed over (form fields' own headers).
    Raises InvalidRequest (400) naming the field, NotFound (404) for an unknown `url_path`.
    """
    known = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    route = _route(known.get("url_path", ""))
    if route == "models":
        return Request(audio=b"", options=Options(), reply=Reply(), route=route)
    content = _json_content(row, known.get("content-type", ""))
    sent = _collect([*_fields(row, content), *_headers(headers)])
    return Request(
        audio=_audio(row, content),
        options=_options(sent, route),
        reply=_reply(sent, known.get("accept", "")),
        route=route,
    )


def request_id(headers: Mapping[str, Any]) -> str:
    """The client's x-request-id when it can be repeated in a header and a log line, else a new one."""
    offered = next((value for name, value in headers.items() if name.lower() == "x-request-id" and isinstance(value, str)), "")
    sane = 0 < len(offered) <= 128 and offered.isascii() and offered.isprintable()
    return offered if sane else uuid.uuid4().hex


def check_audio_bytes(audio: Audio, limit: int) -> None:
    """Raise TooLarge when the upload has more than `limit` bytes."""
    size = memoryview(audio).nbytes
    if size > limit:
        raise TooLarge(f"the audio has {size / 2**20:.1f} MB, at most {limit / 2**20:g} MB are accepted", param="file")


def _route(path: str) -> Route:
    route = ROUTES.get(path.partition("?")[0].strip("/"))
    if route is None:
        raise NotFound(f"no such path: /{_shown(path.strip('/'))}; there are: {', '.join('/' + path for path in ROUTES if path)}")
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
            yield _Sent(ALIASES.get(name, name), name, _plain(name, value))


def _headers(headers: Mapping[str, Any]) -> Iterator[_Sent]:
    for label, value in headers.items():
        if label.lower().startswith(OPTION_HEADER) and isinstance(value, str):
            name = label.lower().removeprefix(OPTION_HEADER).replace("-", "_")
            yield _Sent(ALIASES.get(name, name), label, _utf8(value).strip())


def _utf8(header: str) -> str:
    """HTTP libraries read header bytes as Latin-1; a client that sent UTF-8 gets its letters back."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _plain(name: str, value: Any) -> Any:
    """A field's value, its bytes as stripped text."""
    if isinstance(value, Audio):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{_shown(name)} is not UTF-8 text", param=_shown(name)) from None
    return value.strip() if isinstance(value, str) else value


def _collect(found: list[_Sent]) -> dict[str, _Sent]:
    """The fields by their own name, known ones only, each once."""
    sent: dict[str, _Sent] = {}
    for field in found:
        if field.name not in KNOWN_FIELDS:
            raise _unknown(field)
        if field.value is None or field.value == "":
            continue
        if field.name in sent:
            raise InvalidRequest(f"{field.name} is given twice: as {sent[field.name].label} and as {field.label}", param=field.name)
        sent[field.name] = field
    return sent


def _unknown(field: _Sent) -> InvalidRequest:
    close = difflib.get_close_matches(field.name[:64], [*KNOWN_FIELDS, *ALIASES], n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    names = ", ".join(sorted({*AUDIO_FIELDS, *KNOWN_FIELDS, *ALIASES}))
    return InvalidRequest(f"unknown field '{_shown(field.label)}'; {hint}known: {names}", param=_shown(field.label), code="unknown_field")


# The audio


def _audio(row: Mapping[str, Any], content: Mapping[str, Any] | None) -> Audio:
    """The one upload of the request."""
    names = AUDIO_FIELDS if content is not None else (RAW_FIELD, *AUDIO_FIELDS)
    uploads = {name: _upload(name, row[name]) for name in names if row.get(name) is not None}
    for name in AUDIO_FIELDS:
        if content is not None and content.get(name) is not None:
            uploads[f"JSON's {name}" if name in uploads else name] = _base64(name, content[name])
    if not uploads:
        raise InvalidRequest("missing file: send the audio as the body, as the form field 'file', or as base64 in JSON", param="file")
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


def _options(sent: Mapping[str, _Sent], route: Route) -> Options:
    values = {name: _value(name, sent[name].value) for name in _OPTION_TYPES if name in sent}
    if route == "translations" and values.setdefault("task", "translate") != "translate":
        raise InvalidRequest("the path /v1/audio/translations translates; post to /v1/audio/transcriptions instead", param="task")
    return Options(**values)


def _reply(sent: Mapping[str, _Sent], accept: str) -> Reply:
    if "model" in sent:
        _text("model", sent["model"].value)  # any name will do: the server has one model
    if "timestamp_granularities" in sent:
        _check_granularities(sent["timestamp_granularities"].value)
    if "response_format" not in sent:
        return Reply(response_format=_accepted(accept))
    wanted = _text("response_format", sent["response_format"].value).lower()
    for known in CONTENT_TYPES:
        if wanted == known:
            return Reply(response_format=known)
    raise InvalidRequest(f"response_format must be one of {', '.join(CONTENT_TYPES)}; got '{_shown(wanted)}'", param="response_format")


def _check_granularities(value: Any) -> None:
    for one in _listed(value) if isinstance(value, str | list) else [value]:
        if one == "word":
            message = "timestamp_granularities: 'word' is not available in this version; 'segment' is"
            raise InvalidRequest(message, param="timestamp_granularities", code="unsupported_value")
        if one != "segment":
            raise InvalidRequest(f"timestamp_granularities must be segment; got '{_shown(one)}'", param="timestamp_granularities")


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


def _value(name: str, value: Any) -> Any:
    """`value`, text or typed, as the type of the option `name`."""
    hint = _OPTION_TYPES[name]
    if get_origin(hint) is tuple:
        return _temperatures(name, value)
    if get_origin(hint) is Literal:
        return _text(name, value).lower()
    optional = NoneType in get_args(hint)
    kind = get_args(hint)[0] if optional else hint
    if optional and kind in (int, float) and isinstance(value, str) and value.lower() == "none":
        return None
    if name == "language":
        return _language(value)
    return _READERS[kind](name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text; got {_shown(value)}", param=name)
    if len(value) > MAX_TEXT:
        raise InvalidRequest(f"{name} has {len(value)} characters, at most {MAX_TEXT} are accepted", param=name)
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidRequest(f"{name} is not valid Unicode text: it has an unpaired surrogate", param=name)
    return value


def _language(value: Any) -> str | None:
    """The ISO code of a code or an English name; None for auto."""
    wanted = _text("language", value).lower()
    code: str = TO_LANGUAGE_CODE.get(wanted, wanted)
    if wanted == "auto":
        return None
    if code not in LANGUAGES:
        close = difflib.get_close_matches(wanted[:64], [*LANGUAGES, *TO_LANGUAGE_CODE], n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise InvalidRequest(f"unknown language '{_shown(wanted)}'; {hint}known: {', '.join(sorted(LANGUAGES))}", param="language")
    return code


def _boolean(name: str, value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower()) if isinstance(value, bool | int | str) else None
    if known is None:
        raise InvalidRequest(f"{name} must be true or false; got {_shown(value)}", param=name)
    return known


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRequest(f"{name} must be a number; got {_shown(value)}", param=name)
    return number


def _integer(name: str, value: Any) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise InvalidRequest(f"{name} must be a whole number; got {_shown(value)}", param=name)
    return int(number)


def _temperatures(name: str, value: Any) -> tuple[float, ...]:
    """A list as it is; the number 0 means the whole fallback list, as in OpenAI's API."""
    if isinstance(value, list) or (isinstance(value, str) and ("," in value or value.startswith("["))):
        return tuple(_number(name, one) for one in _listed(value))
    one = _number(name, value)
    return (one,) if one else FALLBACK_TEMPERATURES


def _listed(value: str | list[Any]) -> list[Any]:
    """The items of a list, of its JSON, or of text with commas."""
    if isinstance(value, list):
        return value
    return [item.strip().strip('"') for item in value.removeprefix("[").removesuffix("]").split(",")]


def _shown(value: Any) -> str:
    """`value` for a message: short, and whole Unicode."""
    try:
        text = str(value)
    except ValueError:  # an int of more than 4,300 digits
        text = type(value).__name__
    return (text if len(text) <= 80 else text[:80] + "…").encode(errors="replace").decode()


_READERS: Mapping[Any, Callable[[str, Any], Any]] = MappingProxyType({str: _text, bool: _boolean, int: _integer, float: _number})
_HINTS = get_type_hints(Options)
_OPTION_TYPES: Mapping[str, Any] = MappingProxyType({item.name: _HINTS[item.name] for item in fields(Options)})
KNOWN_FIELDS = (*_OPTION_TYPES, "response_format", "timestamp_granularities", "model")
_BY_CONTENT_TYPE: Mapping[str, ResponseFormat] = MappingProxyType(
    {
        **{kind: name for name, kind in CONTENT_TYPES.items() if name != "verbose_json"},
        **{"text/*": "text", "text/srt": "srt", "application/*": "json", "*/*": "json"},
    }
)
