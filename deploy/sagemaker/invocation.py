"""Sends a recording to an endpoint and returns the reply. What does not fit is refused before anything is sent."""

from __future__ import annotations

import json
import mimetypes
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from deploy.sagemaker.api import Api
from deploy.sagemaker.deployment import Names
from deploy.sagemaker.failure import DeployError, Missing, Refused
from deploy.sagemaker.limits import LIMITS, SERVER_BYTES, Mode, check_content_type, check_payload
from deploy.sagemaker.storage import check_bucket, delete_objects, split_uri, upload

POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One recording and its options.

    For asynchronous inference: `bucket`; `wait_seconds` for the reply; `keep_reply`, whether it stays in S3, too.
    """

    name: str
    mode: Mode
    file: Path
    options: Mapping[str, str]
    accept: str = "application/json"
    bucket: str = ""
    wait_seconds: float = 3600.0
    keep_reply: bool = True
    payload_limit: int | None = None
    server_limit: int = SERVER_BYTES

    @property
    def content_type(self) -> str:
        """The recording's type, guessed by the file's name, with the options as parameters."""
        return content_type(mimetypes.guess_type(self.file.name)[0] or "application/octet-stream", self.options)


def content_type(kind: str, options: Mapping[str, str]) -> str:
    """`kind` with the options as parameters: SageMaker forwards this header, and no others of the client's.

    A value outside of ASCII is encoded as RFC 2231 has it.
    """
    message = Message()
    values = {f"x-whisper-{name}": value if value.isascii() else ("utf-8", "", value) for name, value in options.items()}
    message.add_header("Content-Type", kind, **values)  # writes underscores as dashes
    return str(message["Content-Type"])


def invoke(api: Api, invocation: Invocation, say: Callable[[str], None]) -> bytes:
    """The reply's body. Raises DeployError."""
    try:
        size = invocation.file.stat().st_size
    except OSError as error:
        raise DeployError(f"{invocation.file} cannot be read: {error.strerror}") from None
    check_payload(invocation.mode, str(invocation.file), size, payload_limit=invocation.payload_limit, server_limit=invocation.server_limit)
    check_content_type(invocation.mode, invocation.content_type)
    return _at_once(api, invocation) if invocation.mode == "realtime" else _through_s3(api, invocation, say)


def _at_once(api: Api, invocation: Invocation) -> bytes:
    """Real-time inference."""
    request = {
        "EndpointName": invocation.name,
        "ContentType": invocation.content_type,
        "Accept": invocation.accept,
        "Body": invocation.file.read_bytes(),
    }
    try:
        body: bytes = api("sagemaker-runtime", "invoke_endpoint", **request)["Body"]
    except Refused as error:
        raise _explained(error, invocation) from error
    return body


def _through_s3(api: Api, invocation: Invocation, say: Callable[[str], None]) -> bytes:
    """Asynchronous inference: the recording goes to S3, and the reply appears there."""
    names = Names(invocation.name)
    key = f"{names.inputs}{uuid.uuid4().hex}{invocation.file.suffix}"
    check_bucket(api, invocation.bucket)
    upload(api, invocation.file, invocation.bucket, key, names)
    request = {
        "EndpointName": invocation.name,
        "ContentType": invocation.content_type,
        "Accept": invocation.accept,
        "InputLocation": f"s3://{invocation.bucket}/{key}",
        "InvocationTimeoutSeconds": LIMITS["async"].seconds,
    }
    try:
        places = api("sagemaker-runtime", "invoke_endpoint_async", **request)
    except Refused as error:
        delete_objects(api, invocation.bucket, key)
        raise _explained(error, invocation) from error
    say(f"queued; the reply will be in {places['OutputLocation']}, also when this command is stopped")
    reply = _wait_for(api, places, invocation.wait_seconds)
    delete_objects(api, invocation.bucket, key)
    if not invocation.keep_reply:
        delete_objects(api, *split_uri(places["OutputLocation"]))
    return reply


def _wait_for(api: Api, places: Mapping[str, Any], seconds: float) -> bytes:
    """The object at OutputLocation. Raises DeployError with the one at FailureLocation."""
    waited = 0.0
    while True:
        reply = _object(api, places["OutputLocation"])
        if reply is not None:
            return reply
        failure = _object(api, places["FailureLocation"]) if places.get("FailureLocation") else None
        if failure is not None:
            raise DeployError(f"the container refused it: {_message_in(failure.decode(errors='replace'))}")
        if waited >= seconds:
            raise DeployError(f"no reply after {seconds:g} s; it is not lost: it will be in {places['OutputLocation']}")
        api.pause(POLL_SECONDS)
        waited += POLL_SECONDS


def _object(api: Api, uri: str) -> bytes | None:
    """The content of an object; None while it is not there."""
    bucket, key = split_uri(uri)
    try:
        body: bytes = api("s3", "get_object", Bucket=bucket, Key=key)["Body"]
    except Missing:
        return None
    return body


def _explained(error: Refused, invocation: Invocation) -> DeployError:
    """The server's own message in place of SageMaker's, and what to do about the two that are common."""
    message = str(error)
    if error.code == "ModelError":
        too_slow = "timed out" in message.lower() and invocation.mode == "realtime"
        hint = f"; a recording that takes longer than {LIMITS['realtime'].seconds} s needs --mode async" if too_slow else ""
        return DeployError(f"the container answered with an error: {_message_in(message)}{hint}")
    if error.code in ("ValidationException", "ValidationError") and "not found" in message.lower():
        return DeployError(f"there is no endpoint '{invocation.name}' in this region: `deploy.py status --name {invocation.name}`")
    return error


def _message_in(text: str) -> str:
    """The message of this server's error object, which SageMaker quotes; the whole text when there is none."""
    start = text.find('{"error"')
    try:
        found = json.JSONDecoder().raw_decode(text[start:])[0] if start >= 0 else {}
        message: str = found["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())
    return message
