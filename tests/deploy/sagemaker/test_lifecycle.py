"""A deployment from beginning to end against moto: what is made, that it answers, and that nothing is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.sagemaker import creation
from deploy.sagemaker.creation import deploy
from deploy.sagemaker.deployment import TAG
from deploy.sagemaker.failure import DeployError, Refused
from deploy.sagemaker.removal import teardown
from tests.deploy.sagemaker.account import BUCKET, NAME, NAMES, QUIET, Account, account, deployment

MADE: dict[str, dict[str, Any]] = {
    "realtime": {"max_instances": 3},
    "async": {"mode": "async", "notify": True, "email": "someone@example.com", "max_instances": 2},
}
"""The deployments that stay, with every resource that they may have."""


def put(aws: Account, key: str, content: bytes = b"sound") -> None:
    aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content)


def batch(folder: Path, **changes: Any) -> Any:
    return deployment(folder, mode="batch", inputs=f"s3://{BUCKET}/talks/", **changes)


@pytest.mark.parametrize("mode", MADE)
def test_nothing_is_left_after_teardown(aws: Account, tmp_path: Path, mode: str) -> None:
    assert "in service" in deploy(aws, deployment(tmp_path, **MADE[mode]), QUIET)
    assert {"models", "configs", "endpoints", "targets", "policies", "objects"} <= aws.left().keys()
    aws.client("logs").create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{NAME}")
    removal = teardown(aws, NAMES, None, results=False, say=QUIET)
    assert removal.failures == ()
    assert aws.left() == {}


@pytest.mark.parametrize("mode", MADE)
def test_teardown_may_be_repeated(aws: Account, tmp_path: Path, mode: str) -> None:
    deploy(aws, deployment(tmp_path, **MADE[mode]), QUIET)
    for _ in range(2):
        assert teardown(aws, NAMES, BUCKET, results=False, say=QUIET).failures == ()
    assert aws.left() == {}


@pytest.mark.parametrize("mode", MADE)
def test_every_resource_has_the_tag(aws: Account, tmp_path: Path, mode: str) -> None:
    made = deployment(tmp_path, **MADE[mode])
    deploy(aws, made, QUIET)
    for operation in ("create_model", "create_endpoint_config", "create_endpoint"):
        assert {"Key": TAG, "Value": NAME} in aws.parameters(operation)["Tags"]
    assert aws.parameters("register_scalable_target")["Tags"] == {TAG: NAME}
    archive = aws.client("s3").get_object_tagging(Bucket=BUCKET, Key=made.archive_key)["TagSet"]
    assert archive == [{"Key": TAG, "Value": NAME}]
    if mode == "async":
        assert aws.parameters("create_topic")["Tags"] == aws.parameters("put_metric_alarm")["Tags"] == [{"Key": TAG, "Value": NAME}]


def test_an_asynchronous_endpoint_scales_to_zero_and_from_zero(aws: Account, tmp_path: Path) -> None:
    deploy(aws, deployment(tmp_path, **MADE["async"]), QUIET)
    assert aws.parameters("register_scalable_target")["MinCapacity"] == 0
    first, second = (parameters for _, operation, parameters in aws.requests if operation == "put_scaling_policy")
    metric = first["TargetTrackingScalingPolicyConfiguration"]["CustomizedMetricSpecification"]
    assert metric["MetricName"] == "ApproximateBacklogSizePerInstance"
    alarm = aws.parameters("put_metric_alarm")
    assert alarm["MetricName"] == "HasBacklogWithoutCapacity"
    assert f":policyName/{second['PolicyName']}" in alarm["AlarmActions"][0]


def test_an_asynchronous_endpoint_announces_its_replies(aws: Account, tmp_path: Path) -> None:
    deploy(aws, deployment(tmp_path, **MADE["async"]), QUIET)
    topic = aws.client("sns").list_topics()["Topics"][0]["TopicArn"]
    output = aws.parameters("create_endpoint_config")["AsyncInferenceConfig"]["OutputConfig"]
    assert output["NotificationConfig"] == {"SuccessTopic": topic, "ErrorTopic": topic}
    assert output["S3OutputPath"] == f"s3://{BUCKET}/whisper/{NAME}/output/"


def test_a_realtime_endpoint_scales_only_when_it_may_have_more_instances(aws: Account, tmp_path: Path) -> None:
    deploy(aws, deployment(tmp_path), QUIET)
    assert "register_scalable_target" not in aws.operations


def test_transcripts_stay_unless_asked_otherwise(aws: Account, tmp_path: Path) -> None:
    deploy(aws, deployment(tmp_path, **MADE["async"]), QUIET)
    put(aws, f"whisper/{NAME}/output/1.out")
    put(aws, f"whisper/{NAME}/input/1.flac")
    removal = teardown(aws, NAMES, None, results=False, say=QUIET)
    assert removal.kept == (f"s3://{BUCKET}/whisper/{NAME}/output/1.out",)
    assert aws.left() == {"objects": [f"whisper/{NAME}/output/1.out"]}
    assert teardown(aws, NAMES, BUCKET, results=True, say=QUIET).kept == ()
    assert aws.left() == {}


def test_the_bucket_is_found_without_an_archive_too(aws: Account, tmp_path: Path) -> None:
    deploy(aws, deployment(tmp_path, mode="async", archive=None), QUIET)
    put(aws, f"whisper/{NAME}/input/1.flac")
    assert teardown(aws, NAMES, None, results=False, say=QUIET).failures == ()
    assert aws.left() == {}


def test_older_versions_and_unfinished_uploads_are_removed(aws: Account, tmp_path: Path) -> None:
    s3 = aws.client("s3")
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    deploy(aws, deployment(tmp_path), QUIET)
    put(aws, f"whisper/{NAME}/model.tar.gz", b"another")
    s3.create_multipart_upload(Bucket=BUCKET, Key=f"whisper/{NAME}/input/2.flac")
    put(aws, "whisper/another/model.tar.gz")
    teardown(aws, NAMES, None, results=False, say=QUIET)
    assert aws.left() == {"objects": ["whisper/another/model.tar.gz"]}


def test_a_batch_leaves_transcripts_only(aws: Account, tmp_path: Path) -> None:
    put(aws, "talks/1.flac", b"x" * 3_000_001)
    put(aws, "talks/2.flac")
    assert "nothing runs any more" in deploy(aws, batch(tmp_path), QUIET)
    assert aws.left() == {"objects": ["talks/1.flac", "talks/2.flac"]}
    job = aws.parameters("create_transform_job")
    assert (job["MaxPayloadInMB"], job["MaxConcurrentTransforms"]) == (4, 16)
    assert job["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] == f"s3://{BUCKET}/talks/"


def test_a_batch_of_large_recordings_sends_few_at_once(tmp_path: Path) -> None:
    job = batch(tmp_path).transform_job("job", 60_000_000)
    assert job["MaxPayloadInMB"] * job["MaxConcurrentTransforms"] <= 100


def test_a_detached_batch_is_removed_by_teardown(aws: Account, tmp_path: Path) -> None:
    put(aws, "talks/1.flac")
    assert "runs" in deploy(aws, batch(tmp_path), QUIET, detach=True)
    teardown(aws, NAMES, None, results=False, say=QUIET)
    assert aws.left() == {"objects": ["talks/1.flac"]}


@pytest.mark.parametrize("other", ["model", "endpoint_config", "endpoint"])
def test_an_existing_deployment_is_left_alone(aws: Account, tmp_path: Path, other: str) -> None:
    deploy(aws, deployment(tmp_path), QUIET)
    before = aws.left()
    with pytest.raises(DeployError, match=f"there is an? .*'{NAME}' already"):
        deploy(aws, deployment(tmp_path), QUIET)
    assert aws.left() == before
    for resource in {"model", "endpoint_config", "endpoint"} - {other}:
        key = "".join(part.title() for part in resource.split("_")) + "Name"
        getattr(aws.client("sagemaker"), f"delete_{resource}")(**{key: NAME})
    with pytest.raises(DeployError, match=f"there is an? {other.replace('_', ' ')} '{NAME}' already"):
        deploy(aws, deployment(tmp_path), QUIET)


def test_what_something_else_has_made_stays(aws: Account) -> None:
    container = {"Image": "an-image", "ModelDataUrl": f"s3://{BUCKET}/whisper/{NAME}/model.tar.gz"}
    aws.client("sagemaker").create_model(ModelName=NAME, PrimaryContainer=container, ExecutionRoleArn="arn:aws:iam::123456789012:role/a")
    put(aws, f"whisper/{NAME}/model.tar.gz")
    with pytest.raises(DeployError, match=f"has no tag {TAG}={NAME}"):
        teardown(aws, NAMES, None, results=True, say=QUIET)
    assert aws.left().keys() == {"models", "objects"}


@pytest.mark.parametrize("kind", ["endpoint", "endpoint configuration", "topic", "alarm"])
def test_a_resource_without_the_tag_stays_and_the_others_go(aws: Account, tmp_path: Path, kind: str) -> None:
    deploy(aws, deployment(tmp_path, **MADE["async"]), QUIET)
    tagged = {
        "endpoint": ("sagemaker", "delete_tags", "ResourceArn", f"arn:aws:sagemaker:eu-west-1:123456789012:endpoint/{NAME}"),
        "endpoint configuration": (
            "sagemaker",
            "delete_tags",
            "ResourceArn",
            f"arn:aws:sagemaker:eu-west-1:123456789012:endpoint-config/{NAME}",
        ),
        "topic": ("sns", "untag_resource", "ResourceArn", f"arn:aws:sns:eu-west-1:123456789012:{NAME}"),
        "alarm": ("cloudwatch", "untag_resource", "ResourceARN", f"arn:aws:cloudwatch:eu-west-1:123456789012:alarm:{NAMES.alarm}"),
    }
    service, operation, parameter, arn = tagged[kind]
    getattr(aws.client(service), operation)(**{parameter: arn, "TagKeys": [TAG]})
    removal = teardown(aws, NAMES, None, results=True, say=QUIET)
    assert any(f"the {kind} " in failure and "it stays" in failure for failure in removal.failures)
    left = aws.left()
    assert "objects" not in left and "models" in left, "the model names the bucket, so it goes last"


class Lost(DeployError):
    """A connection that broke: whether AWS has carried the request out is unknown."""


def made_by(aws: Account, mode: str, folder: Path) -> None:
    put(aws, "talks/1.flac")
    deploy(aws, batch(folder) if mode == "batch" else deployment(folder, **MADE[mode]), QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "batch"])
@pytest.mark.parametrize(("error", "moment"), [(Lost("broken"), "before"), (Lost("broken"), "after"), (KeyboardInterrupt(), "after")])
def test_a_deployment_that_fails_at_any_request_leaves_nothing(mode: str, error: BaseException, moment: str, tmp_path: Path) -> None:
    """Each request in turn fails, before or after AWS has carried it out."""
    answered: dict[int, str] = {}
    with account() as aws:
        aws.after = lambda number, _, operation: answered.update({number: operation})
        made_by(aws, mode, tmp_path)
    changing = {at: operation for at, operation in answered.items() if not operation.startswith(("head", "describe", "list", "get"))}
    assert len(changing) >= 5
    for at, operation in changing.items():
        with account() as aws:

            def fail(number: int, *_: str, at: int = at) -> None:
                if number == at:
                    raise error

            setattr(aws, moment, fail)
            with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DeployError):
                made_by(aws, mode, tmp_path)
            assert aws.left() == {"objects": ["talks/1.flac"]}, f"request {at}, {operation}"


def test_a_refusal_during_the_removal_is_told_and_the_rest_is_removed(aws: Account, tmp_path: Path) -> None:
    said: list[str] = []

    def refuse(_: int, __: str, operation: str) -> None:
        if operation == "create_endpoint":
            raise Refused("no instances of this type are left", "ResourceLimitExceeded")
        if operation == "delete_endpoint_config":
            raise Refused("AWS denies it", "AccessDenied")

    aws.before = refuse
    with pytest.raises(DeployError, match="no instances of this type"):
        deploy(aws, deployment(tmp_path), said.append)
    assert aws.left() == {"configs": [NAME]}
    assert any("AWS denies it; run `deploy.py teardown --name whisper`" in line for line in said)


def test_an_endpoint_that_transcribes_nothing_is_removed(aws: Account, tmp_path: Path) -> None:
    def refuse(_: int, __: str, operation: str) -> None:
        if operation == "invoke_endpoint":
            raise Refused("Your invocation timed out while waiting for a response from container primary.", "ModelError")

    aws.before = refuse
    with pytest.raises(DeployError, match=r"in service but transcribes nothing.*timed out.*/aws/sagemaker/Endpoints/whisper"):
        deploy(aws, deployment(tmp_path), QUIET)
    assert aws.operations.count("invoke_endpoint") == creation.PROBE_ATTEMPTS
    assert aws.left() == {}
