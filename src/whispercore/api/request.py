"""The fields and headers of one HTTP request → a checked `Request`.

Independent of any server; every error is a `WhisperError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ..errors import InvalidRequest, NotFound
from ..options import SUBTITLE_OPTIONS, Options, Reply
from .accept import accepted_format
from .fields import MAX_FIELDS, OPTION_TYPES, RAW_FIELD, REPLY_TYPES, TYPES, Audio, Field, read_fields
from .multipart import form_fields, is_form
from .routes import ROUTES, Route
from .upload import read_upload
from .values import for_message, parse_value

_MODEL_PATH = "v1/models/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One checked request. `audio`: the upload, neither decoded nor copied; empty on the route `models`.

    `model`: the name of the requested model; empty when the client gave none.
    """

    audio: Audio
    options: Options
    reply: Reply
    route: Route
    model: str = ""


def parse(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
    """The request in `row` and `headers`.

    `row`: a raw body is {"body": bytes}, a JSON body {"body": its value}. A form has one bytes or str per field, or a
    list of all values of a repeated field. Query fields stand beside either. Header names may have any case; values
    that are not strings (headers of form parts) are ignored. Raises InvalidRequest (400) with the field's name, and
    NotFound (404) for an unknown `url_path`.
    """
    texts = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    path = texts.get("url_path", "").partition("?")[0].strip("/")
    model = path.removeprefix(_MODEL_PATH) if path.startswith(_MODEL_PATH) else ""
    route = "models" if model else _route(path)
    if route in ("models", "ready"):
        return Request(audio=b"", options=Options(), reply=Reply(), route=route, model=unquote(model))
    _check_count(row)
    row = _split_form(row, texts.get("content-type", ""))
    content = _json_object(row.get(RAW_FIELD), texts.get("content-type", ""))
    fields = read_fields(row, content, headers)
    audio = read_upload(row, content)
    options, reply, model = _read_options(fields, route, texts.get("accept", ""))
    return Request(audio=audio, options=options, reply=reply, route=route, model=model)


def client_request_id(headers: Mapping[str, Any]) -> str:
    """The client's x-request-id; "" when there is none, or when it cannot be repeated in a header and a log line."""
    request_id = next((value for name, value in headers.items() if name.lower() == "x-request-id" and isinstance(value, str)), "")
    is_valid = 0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()
    return request_id if is_valid else ""


def _route(path: str) -> Route:
    route = ROUTES.get(path)
    if route is None:
        raise NotFound(f"no such path: /{for_message(path)}; there are: {', '.join('/' + path for path in ROUTES if path)}")
    return route


def _check_count(row: Mapping[str, Any]) -> None:
    """Raise InvalidRequest when a form has more than `MAX_FIELDS` fields. TorchServe's reader keeps one more than that."""
    if sum(len(value) if isinstance(value, list) else 1 for value in row.values()) > MAX_FIELDS:
        raise InvalidRequest(f"the form has more than {MAX_FIELDS} fields", code="too_many_fields")


def _split_form(row: Mapping[str, Any], content_type: str) -> Mapping[str, Any]:
    """The row; when its body is a form that the server has not split, the form's fields replace the body."""
    body = row.get(RAW_FIELD)
    if not (isinstance(body, Audio) and is_form(content_type)):
        return row
    return {**{name: value for name, value in row.items() if name != RAW_FIELD}, **form_fields(body, content_type)}


def _json_object(body: Any, content_type: str) -> Mapping[str, Any] | None:
    """The JSON object in the body; None when the body is not JSON.

    TorchServe parses JSON itself. It passes bytes when the JSON is invalid, and when Content-Type is a JSON type other
    than application/json. Raises InvalidRequest for invalid JSON, and for JSON that is not an object.
    """
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind in ("application/json", "text/json") or kind.endswith("+json")
    if is_json and body and isinstance(body, Audio | str):
        try:
            body = json.loads(bytes(body) if isinstance(body, memoryview) else body)
        except (ValueError, RecursionError):
            raise InvalidRequest("the body is not valid JSON", code="invalid_json") from None
    elif body is None or isinstance(body, Audio | str):
        return None
    if not isinstance(body, Mapping):
        raise InvalidRequest('the JSON body must be an object, as in {"audio": "<base64>", "language": "en"}', code="invalid_json")
    return body


def _read_options(fields: Mapping[str, Field], route: Route, accept: str) -> tuple[Options, Reply, str]:
    """The options of the transcription, those of the reply, and the name of the requested model."""
    values = {name: parse_value(name, TYPES[name], field.label, field.value) for name, field in fields.items()}
    if "response_format" not in values and not values.get("stream"):
        values["response_format"] = accepted_format(accept)
    _add_implied(values, route)
    labels = {name: field.label for name, field in fields.items()}
    labels.setdefault("include", labels.get("token_logprobs", "include"))
    with _errors_name(labels):
        if route == "translations" and values["task"] != "translate":
            raise InvalidRequest("task: /v1/audio/translations translates; post to /v1/audio/transcriptions instead", param="task")
        reply = Reply(**{name: value for name, value in values.items() if name in REPLY_TYPES})
        _check_format(reply, labels, route)
        options = Options(**{name: value for name, value in values.items() if name in OPTION_TYPES})
    return options, reply, values.get("model", "").strip()


def _add_implied(values: dict[str, Any], route: Route) -> None:
    """Set the options that other options imply, for example `word_timestamps` for subtitles that are split by words.

    Raises InvalidRequest when two options contradict each other.
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


def _check_format(reply: Reply, labels: Mapping[str, str], route: Route) -> None:
    """Raise InvalidRequest when `response_format` cannot carry the requested times, or cannot be streamed."""
    with_times = ("json", "verbose_json") if route == "native" else ("verbose_json",)
    if "timestamp_granularities" in labels and reply.response_format not in with_times:
        message = f"timestamp_granularities: response_format must be {' or '.join(with_times)} to have times"
        raise InvalidRequest(message, param="timestamp_granularities")
    if reply.stream and route != "native" and reply.response_format not in ("json", "text"):
        raise InvalidRequest("stream: response_format must be json or text to be streamed", param="stream")


@contextmanager
def _errors_name(labels: Mapping[str, str]) -> Iterator[None]:
    """Put the client's own name of an option into its error: prompt, X-Whisper-Beam-Size."""
    try:
        yield
    except InvalidRequest as error:
        name = error.param or ""
        label = labels.get(name, name)
        raise InvalidRequest(error.message.replace(name, label, 1), param=label, code=error.code) from None
