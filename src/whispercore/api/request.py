"""One HTTP request, as a server's row of fields and headers → a checked `Request`. Knows no server; raises `WhisperError` only."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote

from ..errors import InvalidRequest, NotFound, TooLarge
from ..options import SUBTITLE_OPTIONS, Options, Reply, ResponseFormat
from .fields import AUDIO_FIELDS, OPTION_TYPES, REPLY_TYPES, TYPES, Audio, Sent, sent_fields
from .fields import RAW_FIELD as RAW_FIELD
from .multipart import form_fields, is_form
from .values import read, shown

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, checked. `audio`: the upload, undecoded and uncopied; empty on the route `models`, which takes none.

    `model`: the name of the model asked for, or asked about on the route `models`; empty when none was named.
    """

    audio: Audio
    options: Options
    reply: Reply
    route: Route
    model: str = ""


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
    row = _divided(row, known.get("content-type", ""))
    content = _json_content(row, known.get("content-type", ""))
    sent = sent_fields(row, content, headers)
    audio = _audio(row, content)
    options, reply, model = _asked(sent, route, known.get("accept", ""))
    return Request(audio=audio, options=options, reply=reply, route=route, model=model)


def client_request_id(headers: Mapping[str, Any]) -> str:
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


# The body


def _divided(row: Mapping[str, Any], content_type: str) -> Mapping[str, Any]:
    """The row, with the fields of a multipart form in the place of a body that the server has not divided."""
    body = row.get(RAW_FIELD)
    if not (isinstance(body, Audio) and is_form(content_type)):
        return row
    return {**{name: value for name, value in row.items() if name != RAW_FIELD}, **form_fields(body, content_type)}


def _json_content(row: Mapping[str, Any], content_type: str) -> Mapping[str, Any] | None:
    """The JSON object in the body; None when the body is something else."""
    body = row.get(RAW_FIELD)
    kind = content_type.partition(";")[0].strip().lower()
    says_json = kind in ("application/json", "text/json") or kind.endswith("+json")
    if says_json and body and isinstance(body, Audio | str):
        # TorchServe hands over as bytes what it could not parse, and what another Content-Type than application/json calls JSON.
        try:
            body = json.loads(bytes(body) if isinstance(body, memoryview) else body)
        except (ValueError, RecursionError):
            raise InvalidRequest("the body is not valid JSON", code="invalid_json") from None
    elif body is None or isinstance(body, Audio | str):
        return None
    if not isinstance(body, Mapping):
        raise InvalidRequest('the JSON body must be an object, as in {"audio": "<base64>", "language": "en"}', code="invalid_json")
    return body


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


def _asked(sent: Mapping[str, Sent], route: Route, accept: str) -> tuple[Options, Reply, str]:
    """What the fields ask for, with what one of them implies for another, and the model's name."""
    values = {name: read(name, TYPES[name], field.label, field.value) for name, field in sent.items()}
    if "response_format" not in values and not values.get("stream"):
        values["response_format"] = _accepted(accept)
    _imply(values, route)
    labels = {name: field.label for name, field in sent.items()}
    labels.setdefault("include", labels.get("token_logprobs", "include"))
    with _named_as_sent(labels):
        if route == "translations" and values["task"] != "translate":
            raise InvalidRequest("task: /v1/audio/translations translates; post to /v1/audio/transcriptions instead", param="task")
        reply = Reply(**{name: value for name, value in values.items() if name in REPLY_TYPES})
        _check_form(reply, labels, route)
        options = Options(**{name: value for name, value in values.items() if name in OPTION_TYPES})
    return options, reply, values.get("model", "").strip()


def _imply(values: dict[str, Any], route: Route) -> None:
    """What a field switches on: words their times, log-probabilities themselves, OpenAI's chunking strategies the VAD.

    Raises InvalidRequest for two that contradict each other.
    """
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
    if values.get("translate") and values.get("task") == "transcribe":
        raise InvalidRequest("translate=true and task=transcribe contradict each other: give one of them", param="translate")
    if route == "translations" or values.get("translate"):
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


_BY_CONTENT_TYPE: Mapping[str, ResponseFormat] = MappingProxyType(
    {
        **{kind: name for name, kind in CONTENT_TYPES.items() if name != "verbose_json"},
        **{"text/*": "text", "text/srt": "srt", "application/*": "json", "*/*": "json"},
    }
)
