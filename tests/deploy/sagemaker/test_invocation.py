"""A recording goes to an endpoint in real time or through S3; what does not fit is refused before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.sagemaker.failure import DeployError, Missing, Refused
from deploy.sagemaker.invocation import Invocation, content_type, invoke
from deploy.sagemaker.limits import LIMITS, SERVER_BYTES, check_payload
from tests.deploy.sagemaker.account import BUCKET, NAME, QUIET, REGION, REPLY, Account
from whispercore.api.request import parse


def invocation(file: Path, size: int = 5, **changes: Any) -> Invocation:
    file.write_bytes(b"")
    with file.open("r+b") as opened:
        opened.truncate(size)  # a sparse file: the largest takes no room on the disk
    return Invocation(**{"name": NAME, "mode": "realtime", "file": file, "options": {}, "bucket": BUCKET} | changes)


def test_a_recording_in_real_time(aws: Account, tmp_path: Path) -> None:
    assert invoke(aws, invocation(tmp_path / "a.flac", options={"language": "en"}), QUIET) == REPLY
    sent = aws.parameters("invoke_endpoint")
    assert (sent["EndpointName"], sent["Body"], sent["Accept"]) == (NAME, bytes(5), "application/json")
    assert parse({"body": b"x"}, {"Content-Type": sent["ContentType"]}).options.language == "en"


def test_a_recording_through_s3(aws: Account, tmp_path: Path) -> None:
    said: list[str] = []
    reply = invoke(aws, invocation(tmp_path / "a.flac", mode="async"), said.append)
    assert json.loads(reply) == {"default": "response"}, "moto's own reply"
    assert aws.parameters("invoke_endpoint_async")["InputLocation"].startswith(f"s3://{BUCKET}/whisper/{NAME}/input/")
    assert aws.parameters("invoke_endpoint_async")["InvocationTimeoutSeconds"] == 3600
    assert aws.left() == {}, "the recording is removed when its reply has arrived"
    assert any("the reply will be in s3://" in line for line in said)


def test_a_reply_that_takes_time_is_waited_for(aws: Account, tmp_path: Path) -> None:
    late = 3

    def hide(_: int, __: str, operation: str) -> None:
        nonlocal late
        if operation == "get_object" and late:
            late -= 1
            raise Missing("not there", "NoSuchKey")

    aws.before = hide
    assert invoke(aws, invocation(tmp_path / "a.flac", mode="async"), QUIET)
    assert aws.pauses == 2


def test_a_reply_that_does_not_come_is_not_lost(aws: Account, tmp_path: Path) -> None:
    def hide(_: int, __: str, operation: str) -> None:
        if operation == "get_object":
            raise Missing("not there", "NoSuchKey")

    aws.before = hide
    with pytest.raises(DeployError, match="no reply after 4 s; it is not lost: it will be in s3://"):
        invoke(aws, invocation(tmp_path / "a.flac", mode="async", wait_seconds=4), QUIET)
    assert len(aws.left()["objects"]) == 1, "the endpoint may still read the recording"


OURS = '{"error":{"message":"unknown language \'xx\'","type":"invalid_request_error","param":"language","code":"invalid_value"}}'
QUOTED = f'Received client error (400) from primary with message "{OURS}". See https://logs for more'
"""This server's error object, as SageMaker quotes it."""


def test_the_servers_own_message_arrives(aws: Account, tmp_path: Path) -> None:
    address = "http://motoapi.amazonaws.com/moto-api/static/sagemaker/async-endpoint-results"
    requests.post(address, json={"region": REGION, "results": [{"is_failure": True, "data": QUOTED}]}, timeout=5)
    with pytest.raises(DeployError, match=r"the container refused it: unknown language 'xx'$"):
        invoke(aws, invocation(tmp_path / "a.flac", mode="async"), QUIET)

    def refuse(_: int, __: str, operation: str) -> None:
        if operation == "invoke_endpoint":
            raise Refused(QUOTED, "ModelError")

    aws.before = refuse
    with pytest.raises(DeployError, match=r"answered with an error: unknown language 'xx'$"):
        invoke(aws, invocation(tmp_path / "a.flac"), QUIET)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("ModelError", "Your invocation timed out while waiting for a response", "longer than 60 s needs --mode async"),
        ("ValidationError", "Endpoint whisper of account 123456789012 not found.", "there is no endpoint 'whisper' in this region"),
        ("AccessDeniedException", "AWS denies it", "AWS denies it"),
    ],
)
@pytest.mark.parametrize("mode", ["realtime", "async"])
def test_a_refused_invocation(aws: Account, tmp_path: Path, mode: str, code: str, message: str, expected: str) -> None:
    def refuse(_: int, __: str, operation: str) -> None:
        if operation.startswith("invoke_endpoint"):
            raise Refused(message, code)

    aws.before = refuse
    with pytest.raises(DeployError) as raised:
        invoke(aws, invocation(tmp_path / "a.flac", mode=mode), QUIET)
    assert expected in str(raised.value) or (mode == "async" and code == "ModelError")
    assert aws.left() == {}, "nothing of the recording stays in S3"


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("mode", "size", "fits"),
    [
        ("realtime", LIMITS["realtime"].payload_bytes + 1, r"--mode async \(up to 157 MB\) or --mode batch \(up to 100 MB\)"),
        ("realtime", 101 * MEGABYTE, r"send it with --mode async \(up to 157 MB\); nothing was sent"),
        ("realtime", SERVER_BYTES + 1, "the server's limit is 157,286,400 bytes .*ffmpeg -i FILE"),
        ("async", SERVER_BYTES + 1, "the server's limit is 157,286,400 bytes .*ffmpeg -i FILE"),
        ("realtime", 0, "is empty: nothing was sent"),
        ("async", 0, "is empty: nothing was sent"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_sent(aws: Account, tmp_path: Path, mode: str, size: int, fits: str) -> None:
    with pytest.raises(DeployError, match=fits):
        invoke(aws, invocation(tmp_path / "a.flac", size, mode=mode), QUIET)
    assert aws.requests == []


def test_the_limits_can_be_changed(tmp_path: Path) -> None:
    check_payload("realtime", "a.flac", LIMITS["realtime"].payload_bytes)
    check_payload("realtime", "a.flac", 25 * MEGABYTE, payload_limit=25 * MEGABYTE)
    check_payload("async", "a.flac", 1000 * MEGABYTE, server_limit=1000 * MEGABYTE)
    with pytest.raises(DeployError, match="asynchronous inference takes at most 1,000,000,000"):
        check_payload("async", "a.flac", 1000 * MEGABYTE + 1, server_limit=2000 * MEGABYTE)


def test_the_limits_are_botocores(aws: Account) -> None:
    """Where botocore's descriptions of the services state a limit."""
    runtime = aws.client("sagemaker-runtime").meta.service_model.operation_model("InvokeEndpoint").input_shape.members
    queued = aws.client("sagemaker-runtime").meta.service_model.operation_model("InvokeEndpointAsync").input_shape.members
    transform = aws.client("sagemaker").meta.service_model.operation_model("CreateTransformJob").input_shape.members
    assert LIMITS["realtime"].payload_bytes == runtime["Body"].metadata["max"]
    assert LIMITS["realtime"].content_type == runtime["ContentType"].metadata["max"]
    assert (LIMITS["async"].content_type, LIMITS["async"].seconds) == (
        queued["ContentType"].metadata["max"],
        queued["InvocationTimeoutSeconds"].metadata["max"],
    )
    assert LIMITS["batch"].content_type == transform["TransformInput"].members["ContentType"].metadata["max"]
    assert LIMITS["batch"].seconds == transform["ModelClientConfig"].members["InvocationsTimeoutInSeconds"].metadata["max"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": "en", "beam_size": "5"},
        {"initial_prompt": 'Grüße; "quoted", \\ and = signs'},
        {"temperature": "0,0.4", "timestamp_granularities": "word", "response_format": "verbose_json"},
    ],
)
def test_options_travel_in_content_type(options: dict[str, str]) -> None:
    header = content_type("audio/flac", options)
    assert header.isascii()
    assert parse({"body": b"x"}, {"Content-Type": header}) == parse({"body": b"x", **options}, {})


def test_too_long_options_are_refused_before_anything_is_sent(aws: Account, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"a Content-Type of \d+ characters, real-time inference takes 1024 .*base64 in JSON"):
        invoke(aws, invocation(tmp_path / "a.flac", options={"initial_prompt": "word " * 300}), QUIET)
    assert aws.requests == []


def test_a_missing_file(aws: Account, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be read: No such file"):
        invoke(aws, Invocation(name=NAME, mode="realtime", file=tmp_path / "none", options={}), QUIET)
