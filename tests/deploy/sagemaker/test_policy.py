"""The policies are complete and hold no right too many: each is compared with the requests that are really sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from moto.sagemaker.models import FakeTransformJob

from deploy.sagemaker.creation import deploy
from deploy.sagemaker.invocation import Invocation, invoke
from deploy.sagemaker.policy import role_policy, user_policy
from deploy.sagemaker.removal import teardown
from tests.deploy.sagemaker.account import BUCKET, NAME, NAMES, QUIET, ROLE, Account, born, deployment

S3_RIGHTS = {
    "head_bucket": ["ListBucket"],
    "list_objects_v2": ["ListBucket"],
    "list_object_versions": ["ListBucketVersions"],
    "list_multipart_uploads": ["ListBucketMultipartUploads"],
    "upload_file": ["PutObject", "PutObjectTagging", "AbortMultipartUpload"],
    "head_object": ["GetObject"],
    "get_object": ["GetObject"],
    "delete_objects": ["DeleteObject", "DeleteObjectVersion"],
    "abort_multipart_upload": ["AbortMultipartUpload"],
}
"""S3's rights have other names than its operations (IAM's Service Authorization Reference)."""
IMPLIED = {
    "iam:PassRole": "CreateModel hands the role to SageMaker",
    "iam:CreateServiceLinkedRole": "the first autoscaling of an account",
    "sagemaker:AddTags": "Tags of CreateModel, CreateEndpoint, …",
    "application-autoscaling:TagResource": "Tags of RegisterScalableTarget",
    "cloudwatch:TagResource": "Tags of PutMetricAlarm",
    "sns:TagResource": "Tags of CreateTopic",
}


def actions(policy: dict[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def rights(service: str, operation: str) -> set[str]:
    if service == "s3":
        return {f"s3:{right}" for right in S3_RIGHTS[operation]}
    name = "".join(part.title() for part in operation.split("_"))
    return {f"{'sagemaker' if service == 'sagemaker-runtime' else service}:{name}"}


def test_the_users_policy_has_what_is_needed_and_nothing_else(aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3, recording = aws.client("s3"), tmp_path / "a.flac"
    recording.write_bytes(b"sound")
    s3.put_object(Bucket=BUCKET, Key="talks/1.flac", Body=b"sound")
    for changes in ({"max_instances": 2}, {"mode": "async", "notify": True, "email": "someone@example.com"}):
        deploy(aws, deployment(tmp_path, **changes), QUIET)
        mode = changes.get("mode", "realtime")
        invoke(aws, Invocation(name=NAME, mode=mode, file=recording, options={}, bucket=BUCKET), QUIET)
        s3.create_multipart_upload(Bucket=BUCKET, Key=f"whisper/{NAME}/input/1")
        aws.client("logs").create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{NAME}")
        assert teardown(aws, NAMES, None, results=True, say=QUIET).failures == ()
    born(monkeypatch, FakeTransformJob, transform_job_status="InProgress")
    deploy(aws, deployment(tmp_path, mode="batch", inputs=f"s3://{BUCKET}/talks/"), QUIET, detach=True)
    teardown(aws, NAMES, None, results=True, say=QUIET)
    needed = set().union(*(rights(service, operation) for service, operation, _ in aws.requests))
    allowed = actions(user_policy(NAMES, BUCKET, ROLE))
    assert needed - allowed == set(), "missing in the policy"
    assert allowed - needed == IMPLIED.keys(), "in the policy, and not needed"


@pytest.mark.parametrize("policy", [user_policy(NAMES, BUCKET, ROLE, "talks/2026/"), role_policy(NAMES, BUCKET, "repo", "talks/2026/")])
def test_no_right_is_wider_than_the_deployment(policy: dict[str, Any]) -> None:
    """Every resource names the deployment, its bucket or the recordings, unless IAM knows no narrower one for the action."""
    unbounded = {
        *("ecr:GetAuthorizationToken", "cloudwatch:PutMetricData", "cloudwatch:DescribeAlarms", "sns:ListTopics"),
        *("sagemaker:ListTransformJobs", "application-autoscaling:DescribeScalableTargets"),
        "application-autoscaling:DescribeScalingPolicies",
    }
    for statement in policy["Statement"]:
        assert not any("*" in action for action in statement["Action"])
        if statement["Resource"] == ["*"]:
            assert set(statement["Action"]) <= unbounded
        elif "Condition" not in statement:
            own = (NAME, BUCKET, "talks", "repo", "/aws/sagemaker/")
            assert all(any(part in resource for part in own) for resource in statement["Resource"]), statement


def test_the_policies_fit_into_iam() -> None:
    """At most 6,144 characters without white space, for a managed policy."""
    for policy in (user_policy(NAMES, BUCKET, ROLE, "talks/"), role_policy(NAMES, BUCKET, "repo", "talks/")):
        assert len(json.dumps(policy, separators=(",", ":"))) <= 6144


def test_the_role_cannot_delete_anything() -> None:
    assert not [action for action in actions(role_policy(NAMES, BUCKET, "repo")) if "Delete" in action]
