"""Events of a function URL and of API Gateway (payload versions 1.0 and 2.0) → fields and headers; replies → results."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from function_errors import Unauthorized, UnknownEvent

from whispercore.api.fields import RAW_FIELD
from whispercore.errors import InvalidRequest
from whispercore.serving.response import Response

Event = Mapping[str, Any]

NATIVE = ("predictions/whisper", "invocations")
"""Paths of the server's own API. Beside them `/` has it."""
GATEWAY_SECONDS = 28.0
"""API Gateway gives a REST API 29 s and an HTTP API 30 s for a reply."""
GATEWAY_ADVICE = "API Gateway waits 29 s for a reply: use the function's URL, which waits 900 s, or upload the recording to the bucket"


def is_http(event: Event) -> bool:
    """Whether the event is an HTTP request."""
    return isinstance(event.get("requestContext"), Mapping) and ("httpMethod" in event or "rawPath" in event)


def behind_gateway(event: Event) -> bool:
    """Whether API Gateway, and not a function URL, has sent the event."""
    return ".lambda-url." not in str(event["requestContext"].get("domainName"))


def read(event: Event) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields and headers of the request, as `whispercore.api.request.parse` takes them.

    Raises InvalidRequest for a body that is broken, UnknownEvent for an event that is no HTTP request after all.
    """
    headers = {name.lower(): str(value) for name, value in _mapping(event, "headers").items() if name.lower() != "url_path"}
    for name, values in _mapping(event, "multiValueHeaders").items():
        headers.setdefault(name.lower(), ",".join(map(str, values)))
    fields = _query(event)
    body = _body(event, headers.get("content-type", ""))
    if body is not None:
        fields[RAW_FIELD] = body
    return fields, {**headers, "url_path": _path(event)}


def check_key(headers: Mapping[str, str], key: str) -> None:
    """Raise Unauthorized unless the request has the API key. It is compared in constant time."""
    scheme, _, presented = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise Unauthorized("this server needs an API key: send the header Authorization: Bearer KEY", code="missing_api_key")
    if not hmac.compare_digest(presented.strip().encode(), key.encode()):
        raise Unauthorized("the API key is not known here: check it, or ask the operator of this server for one")


def result(response: Response) -> dict[str, Any]:
    """The function's result for a reply. Every reply is text in UTF-8."""
    return {
        "statusCode": response.status,
        "headers": {"content-type": response.content_type, "x-client-request-id": response.request_id, **response.headers},
        "body": response.payload.decode(),
        "isBase64Encoded": False,
    }


def redirect(location: str, response: Response) -> dict[str, Any]:
    """The result that sends the client to another address for its reply, which clients follow with a GET."""
    headers = {"location": location, "content-type": "application/json", "x-client-request-id": response.request_id, **response.headers}
    return {"statusCode": 303, "headers": headers, "body": json.dumps({"location": location}), "isBase64Encoded": False}


def _path(event: Event) -> str:
    """The path without the stage, as in /prod/v1/models; empty for the server's own API."""
    stage = str(event["requestContext"].get("stage") or "")
    path = str(event.get("rawPath") or event.get("path") or "").strip("/")
    if stage and stage != "$default" and (path == stage or path.startswith(f"{stage}/")):
        path = path[len(stage) :].strip("/")
    return "" if path in NATIVE else path


def _query(event: Event) -> dict[str, Any]:
    """The query's fields. A name that ends with [] or is repeated has a list."""
    if "rawQueryString" in event:
        pairs = parse_qsl(str(event["rawQueryString"] or ""), keep_blank_values=True)
    elif many := _mapping(event, "multiValueQueryStringParameters"):
        pairs = [(name, str(value)) for name, values in many.items() for value in values]
    else:
        pairs = [(name, str(value)) for name, value in _mapping(event, "queryStringParameters").items()]
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: items if len(items) > 1 or name.endswith("[]") else items[0] for name, items in values.items()}


def _body(event: Event, content_type: str) -> bytes | None:
    """The bytes of the body; None when there is none. Raises InvalidRequest."""
    body = event.get("body")
    if body is None:
        return None
    if not isinstance(body, str):
        raise UnknownEvent("the event's body must be text")
    if event.get("isBase64Encoded"):
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"the event's body is not valid base64: {error}", code="invalid_base64") from None
    kind = content_type.partition(";")[0].strip().lower()
    if "\ufffd" in body and not kind.startswith(("text/", "application/json")):
        message = "API Gateway has passed the recording as text, which destroys it: set the API's binary media types to */*"
        raise InvalidRequest(message, param="file")
    return body.encode()


def _mapping(event: Event, name: str) -> Mapping[str, Any]:
    """A part of the event that may be null or missing. Raises UnknownEvent when it is something else."""
    part = event.get(name) or {}
    if not isinstance(part, Mapping):
        raise UnknownEvent(f"the event's {name} must be an object")
    return part
