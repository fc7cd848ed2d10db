"""The description of the API at /openapi.json, its request bodies made from the table of options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from whispercore.api.routes import CONTENT_TYPES
from whispercore.options import Options, Reply

Schema = dict[str, Any]
DESCRIPTION = """Whisper, self-hosted. The routes under /v1/audio are OpenAI's; every one of them takes all options.
An error is `{"error": {"message", "type", "param", "code"}}`."""
TRANSCRIBING = ("/v1/audio/transcriptions", "/v1/audio/translations", "/predictions/whisper", "/invocations")
_STATUSES = {
    "400": "An unknown field or a bad value.",
    "401": "No API key, or an unknown one.",
    "403": "Not allowed on this server.",
    "404": "No such path, job or batch.",
    "405": "Not with this method.",
    "408": "The body arrives too slowly.",
    "409": "Not in this state.",
    "413": "The recording is too large or too long.",
    "415": "No audio in a known container.",
    "422": "Audio of which nothing can be decoded.",
    "429": "A limit of the key is used up; `Retry-After` says when to ask again.",
    "500": "The server failed.",
    "503": "Too much work; `Retry-After` says when to ask again.",
}


def describe(app: FastAPI) -> Schema:
    """The OpenAPI document of the application."""
    document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Error"] = _ERROR
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation)
    return document


def _complete(path: str, method: str, operation: Schema) -> None:
    """Add the errors, and to routes that take recordings the request and the replies."""
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    operation["responses"] |= {status: {"description": text, **error} for status, text in _STATUSES.items()}
    if method in ("post", "put") and path.startswith(TRANSCRIBING):
        operation["requestBody"] = _body(_form({}))
        operation["responses"]["200"] = {"description": "The transcript.", "content": _transcripts()}
    if method == "post" and path == "/v1/jobs":
        own: dict[str, Schema] = {
            "file": {"type": "array", "items": _FILE, "maxItems": 100},
            "webhook": {"type": "string", "format": "uri", "description": "is called when the job has ended"},
        }
        operation["requestBody"] = _body(_form(own))


def _body(form: Schema) -> Schema:
    json_form = {**form, "properties": {**form["properties"], "audio": {"type": "string", "description": "base64"}}}
    json_form["properties"] = {name: schema for name, schema in json_form["properties"].items() if name != "file"}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": json_form},
            "application/octet-stream": {"schema": _FILE},
        },
    }


def _form(changes: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": {**_PROPERTIES, **changes}, "additionalProperties": False}


def _transcripts() -> Schema:
    kinds = {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}} for kind in CONTENT_TYPES.values()}
    return {**kinds, "text/event-stream": {"schema": {"type": "string"}}, "application/x-ndjson": {"schema": {"type": "string"}}}


def _properties() -> Iterator[tuple[str, Schema]]:
    yield "file", {**_FILE, "description": "the recording, in any common container"}
    yield "url", {"type": "string", "format": "uri", "description": "in place of a file, where the server fetches URLs"}
    yield "model", {"type": "string", "description": "any name; the reply warns when it is not that of the served model"}
    for kind in (Options, Reply):
        hints = get_type_hints(kind)
        for item in fields(kind):
            yield item.name, _property(hints[item.name], item.metadata)


def _property(hint: Any, metadata: Mapping[str, Any]) -> Schema:
    arguments = [argument for argument in get_args(hint) if argument is not type(None)]
    schema: Schema = {"description": metadata["doc"]}
    if get_origin(hint) is tuple:
        items = {"enum": list(metadata["choices"])} if metadata["choices"] else _type(arguments[0])
        return {**schema, "type": "array", "items": items}
    if metadata["choices"]:
        return {**schema, "type": "string", "enum": list(metadata["choices"])}
    schema |= _type(arguments[0] if type(None) in get_args(hint) else hint)
    limits = {"minimum": metadata.get("minimum"), "maximum": metadata.get("maximum")}
    return {**schema, **{name: limit for name, limit in limits.items() if limit is not None}}


def _type(hint: Any) -> Schema:
    return {"type": {bool: "boolean", int: "integer", float: "number"}.get(hint, "string")}


_FILE: Schema = {"type": "string", "format": "binary"}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_PROPERTIES = dict(_properties())
