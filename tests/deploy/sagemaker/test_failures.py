"""AWS's own errors, by botocore's Stubber, become one line that says what to do; nothing goes on costing money."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, NoCredentialsError, NoRegionError
from botocore.stub import Stubber
from moto.sagemaker.models import FakeEndpoint, FakeTransformJob

from deploy.sagemaker import creation
from deploy.sagemaker.api import Aws
from deploy.sagemaker.creation import deploy
from deploy.sagemaker.deployment import Names
from deploy.sagemaker.failure import DeployError, Missing, Refused, translated
from deploy.sagemaker.removal import POLL_SECONDS, remove_endpoint
from deploy.sagemaker.storage import upload
from tests.deploy.sagemaker.account import BUCKET, NAME, NAMES, QUIET, SESSION, Account, born, deployment

ARN = f"arn:aws:sagemaker:eu-west-1:123456789012:endpoint/{NAME}"
TALKS = f"s3://{BUCKET}/talks/"
GONE = ("ValidationException", f'Could not find endpoint "{ARN}".')


class Stubbed(Aws):
    """AWS whose answers a test gives, in order."""

    def __init__(self, service: str) -> None:
        super().__init__("eu-west-1")
        self._session = SESSION
        self._clients[service, True] = self._clients[service, False] = client = SESSION.client(service)
        self.stubber = Stubber(client)
        self.paused: list[float] = []

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)

    def describe(self, status: str) -> None:
        """One answer to DescribeEndpoint, and one to ListTags that follows it in a removal."""
        moment = "2026-11-28T00:00:00Z"
        answer = {"EndpointName": NAME, "EndpointArn": ARN, "EndpointConfigName": NAME, "EndpointStatus": status}
        answer |= {"CreationTime": moment, "LastModifiedTime": moment}
        self.stubber.add_response("describe_endpoint", answer, {"EndpointName": NAME})
        self.stubber.add_response("list_tags", {"Tags": NAMES.tags}, {"ResourceArn": ARN})


@pytest.fixture
def sagemaker() -> Iterator[Stubbed]:
    made = Stubbed("sagemaker")
    with made.stubber:
        yield made
        made.stubber.assert_no_pending_responses()


def test_an_endpoint_that_is_being_made_is_deleted_when_aws_allows_it(sagemaker: Stubbed) -> None:
    said: list[str] = []
    for status in ("Creating", "Creating", "Failed"):
        sagemaker.describe(status)
    sagemaker.stubber.add_response("delete_endpoint", {}, {"EndpointName": NAME})
    sagemaker.describe("Deleting")
    sagemaker.stubber.add_client_error("describe_endpoint", *GONE)
    remove_endpoint(sagemaker, NAMES, said.append)
    assert sagemaker.paused == [POLL_SECONDS] * 3
    assert len(said) == 1 and "it costs money until then" in said[0]


def test_an_endpoint_that_is_gone_is_no_failure(sagemaker: Stubbed) -> None:
    sagemaker.stubber.add_client_error("describe_endpoint", *GONE)
    remove_endpoint(sagemaker, NAMES, QUIET)


@pytest.mark.parametrize("status", ["Failed", "OutOfService"])
def test_an_endpoint_that_does_not_come_up_tells_why_and_is_removed(
    aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    born(monkeypatch, FakeEndpoint, endpoint_status=status, failure_reason="The primary container did not pass the ping health check.")
    with pytest.raises(DeployError, match=rf"the endpoint is {status}: .*ping health check.*/aws/sagemaker/Endpoints/{NAME}"):
        deploy(aws, deployment(tmp_path), QUIET)
    assert aws.left() == {}


@pytest.mark.parametrize("status", ["Failed", "Stopped"])
def test_a_batch_that_fails_tells_why_and_leaves_its_transcripts(
    aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    born(monkeypatch, FakeTransformJob, transform_job_status=status, failure_reason="AlgorithmError: see job logs")
    for key in ("talks/1.flac", f"whisper/{NAME}/output/1.flac.out"):
        aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"content")
    with pytest.raises(DeployError, match=f"is {status}: AlgorithmError: see job logs; transcripts that were finished before are in s3://"):
        deploy(aws, deployment(tmp_path, mode="batch", inputs=TALKS), QUIET)
    assert aws.left() == {"objects": ["talks/1.flac", f"whisper/{NAME}/output/1.flac.out"]}


def test_a_batch_that_is_interrupted_is_stopped(aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    born(monkeypatch, FakeTransformJob, transform_job_status="InProgress")
    aws.client("s3").put_object(Bucket=BUCKET, Key="talks/1.flac", Body=b"sound")
    aws.on_pause = interrupt
    with pytest.raises(KeyboardInterrupt):
        deploy(aws, deployment(tmp_path, mode="batch", inputs=TALKS), QUIET)
    assert "stop_transform_job" in aws.operations
    assert aws.left() == {"objects": ["talks/1.flac"]}


def test_a_bucket_that_is_not_there_is_told_before_anything_is_made(aws: Account, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"there is no bucket 'elsewhere': make it \(aws s3 mb s3://elsewhere\)"):
        deploy(aws, deployment(tmp_path, bucket="elsewhere"), QUIET)
    assert aws.operations == ["head_bucket"]
    with pytest.raises(DeployError, match="there is no bucket 'elsewhere'"):
        deploy(aws, deployment(tmp_path, mode="batch", inputs="s3://elsewhere/talks/"), QUIET)
    assert aws.left() == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "holds no recordings: upload them first"),
        ({"talks/": 0}, "holds no recordings"),
        ({"talks/1.flac": 5, "talks/2.flac": 0}, "talks/2.flac is empty"),
        (
            {"talks/1.flac": 5, "talks/2.flac": 100_000_001},
            r"100,000,001 bytes, batch transform takes at most 100,000,000; .*--mode async",
        ),
    ],
)
def test_a_batch_with_a_recording_that_cannot_be_sent_is_refused(
    aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, int], message: str
) -> None:
    monkeypatch.setattr(creation, "objects", lambda *_: iter([{"Key": key, "Size": size} for key, size in keys.items()]))
    with pytest.raises(DeployError, match=message):
        deploy(aws, deployment(tmp_path, mode="batch", inputs=TALKS), QUIET)
    assert not any(operation.startswith(("create", "upload")) for operation in aws.operations)


def test_a_batch_with_a_half_uploaded_recording_is_refused(aws: Account, tmp_path: Path) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=BUCKET, Key="talks/1.flac", Body=b"sound")
    started = s3.create_multipart_upload(Bucket=BUCKET, Key="talks/2.flac")["UploadId"]
    with pytest.raises(DeployError, match=f"talks/2.flac is only half uploaded: finish it, or give it up .*--upload-id {started}"):
        deploy(aws, deployment(tmp_path, mode="batch", inputs=TALKS), QUIET)
    assert not any(operation.startswith(("create", "upload")) for operation in aws.operations)


def test_a_file_that_grows_while_it_is_uploaded_is_told(aws: Account, tmp_path: Path) -> None:
    file = tmp_path / "growing.flac"
    file.write_bytes(b"begin")

    def grow(_: int, __: str, operation: str) -> None:
        if operation == "upload_file":
            file.write_bytes(b"begin and more")

    aws.after = grow
    with pytest.raises(DeployError, match=r"has 14 bytes, 5 are in s3://recordings/key: is it still being written"):
        upload(aws, file, BUCKET, "key", NAMES)
    assert aws.left() == {}


@pytest.mark.slow
def test_an_upload_in_parts_that_breaks_leaves_no_parts(aws: Account, tmp_path: Path) -> None:
    file = tmp_path / "large.flac"
    file.write_bytes(b"x" * (9 * 1024 * 1024))
    client = aws._client("s3", once=False)

    def break_(params: dict[str, Any], **_: Any) -> None:
        if params["query_string"].get("partNumber") == 2:
            raise ConnectTimeoutError(endpoint_url="https://s3")

    client.meta.events.register("before-call.s3.UploadPart", break_)
    with pytest.raises(DeployError, match="s3 upload_file failed, its outcome is unknown"):
        upload(aws, file, BUCKET, "key", NAMES)
    assert aws.left() == {}


PARAMETERS: dict[str, dict[str, Any]] = {
    "create_endpoint": {"EndpointName": NAME, "EndpointConfigName": NAME},
    "head_bucket": {"Bucket": BUCKET},
    "put_object": {"Bucket": BUCKET, "Key": "key"},
    "get_object": {"Bucket": BUCKET, "Key": "key"},
    "delete_topic": {"TopicArn": "arn:aws:sns:eu-west-1:123456789012:whisper"},
}


@pytest.mark.parametrize(
    ("service", "operation", "code", "message", "expected"),
    [
        (
            "sagemaker",
            "create_endpoint",
            "AccessDeniedException",
            "not authorized",
            "AWS denies it: not authorized; `deploy.py policy` prints",
        ),
        ("s3", "head_bucket", "403", "Forbidden", "AWS denies it: Forbidden; `deploy.py policy`"),
        ("s3", "put_object", "NoSuchBucket", "The bucket does not exist", "make the bucket, or give another --bucket"),
        ("sagemaker", "create_endpoint", "ResourceLimitExceeded", "The limit is 0", "ResourceLimitExceeded: The limit is 0"),
    ],
)
def test_a_refusal_is_one_line(service: str, operation: str, code: str, message: str, expected: str) -> None:
    aws = Stubbed(service)
    aws.stubber.add_client_error(operation, code, message)
    with aws.stubber, pytest.raises(Refused, match=expected) as raised:
        aws(service, operation, **PARAMETERS[operation])
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, Missing)


@pytest.mark.parametrize(
    ("service", "operation", "code"), [("s3", "get_object", "NoSuchKey"), ("sns", "delete_topic", "NotFoundException")]
)
def test_what_is_missing_is_told_apart(service: str, operation: str, code: str) -> None:
    aws = Stubbed(service)
    aws.stubber.add_client_error(operation, code, "not there")
    with aws.stubber, pytest.raises(Missing):
        aws(service, operation, **PARAMETERS[operation])


def test_other_errors_of_boto3_say_what_to_do() -> None:
    assert "run `aws configure`" in str(translated(NoCredentialsError(), "s3", "head_bucket"))
    assert "give --region" in str(translated(NoRegionError(), "s3", "head_bucket"))
    assert "AWS cannot be reached" in str(translated(EndpointConnectionError(endpoint_url="https://s3"), "s3", "head_bucket"))
    assert "its outcome is unknown" in str(translated(ConnectTimeoutError(endpoint_url="https://s3"), "s3", "head_bucket"))


@pytest.mark.parametrize("operation", ["create_endpoint", "invoke_endpoint"])
def test_what_must_not_happen_twice_is_sent_once(aws: Account, operation: str) -> None:
    service = "sagemaker" if operation == "create_endpoint" else "sagemaker-runtime"
    parameters = {"create_endpoint": PARAMETERS["create_endpoint"], "invoke_endpoint": {"EndpointName": NAME, "Body": b"sound"}}
    attempts = 0

    def lose(**_: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise ConnectTimeoutError(endpoint_url="https://sagemaker")

    client = aws._client(service, once=True)
    client.meta.events.register_first("before-send", lose)
    with pytest.raises(DeployError, match="its outcome is unknown"):
        Aws.__call__(aws, service, operation, **parameters[operation])
    assert attempts == 1


def test_a_request_that_botocore_refuses_was_not_sent(aws: Account) -> None:
    with pytest.raises(Refused, match="Missing required parameter"):
        aws("sagemaker", "create_model")


@pytest.mark.parametrize("name", ["", "-a", "a--b", "A", "a_b", "a" * 41, "a/b"])
def test_a_name_that_aws_would_refuse(name: str) -> None:
    with pytest.raises(DeployError, match="cannot be a name"):
        Names(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "whisper"}, "is no role: --role takes arn:aws:iam::ACCOUNT:role/NAME"),
        ({"form": "pytorch", "archive": None}, "form pytorch needs --archive"),
        ({"instances": 0}, "must be at least 1"),
        ({"mode": "batch"}, "needs --input s3://BUCKET/PREFIX/"),
        ({"notify": True}, "are for --mode async"),
    ],
)
def test_a_deployment_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        deployment(tmp_path, **changes)


def test_a_missing_archive_is_told_before_anything_is_sent(aws: Account, tmp_path: Path) -> None:
    made = deployment(tmp_path)
    assert made.archive
    made.archive.unlink()
    with pytest.raises(DeployError, match="no archive at"):
        deploy(aws, made, QUIET)
    assert aws.requests == []
