"""IAM policies of least rights: for the role that SageMaker takes on, and for the user of deploy.py."""

from __future__ import annotations

from typing import Any

from deploy.sagemaker.deployment import Names

Statement = dict[str, Any]

TRUST: dict[str, Any] = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
"""Who may take on the role."""


def role_policy(names: Names, bucket: str, repository: str, inputs: str = "") -> dict[str, Any]:
    """What the role may do: read the archive and recordings, write transcripts, pull the image, log, announce.

    `repository`: the ARN of the image's ECR repository. `inputs`: bucket and prefix of a batch's recordings.
    """
    readable = [f"arn:aws:s3:::{bucket}/{names.prefix}*"]
    buckets = [f"arn:aws:s3:::{bucket}"]
    if inputs:
        readable.append(f"arn:aws:s3:::{inputs}*")
        buckets.append(f"arn:aws:s3:::{inputs.partition('/')[0]}")
    return _document(
        _allow("s3:GetObject", on=readable),
        _allow("s3:PutObject", on=[f"arn:aws:s3:::{bucket}/{prefix}*" for prefix in names.results]),
        _allow("s3:ListBucket", on=sorted(set(buckets))),
        _allow("ecr:GetAuthorizationToken", on=["*"]),
        _allow("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", on=[repository]),
        _allow("cloudwatch:PutMetricData", on=["*"]),
        _allow(
            *("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
            on=["arn:aws:logs:*:*:log-group:/aws/sagemaker/*"],
        ),
        _allow("sns:Publish", on=[f"arn:aws:sns:*:*:{names.name}"]),
    )


def user_policy(names: Names, bucket: str, role: str, inputs: str = "") -> dict[str, Any]:
    """What the user of deploy.py needs. tests/deploy/sagemaker holds it against the requests that are really sent."""
    name, own = names.name, f"arn:aws:s3:::{bucket}/{names.prefix}*"
    buckets = {bucket, inputs.partition("/")[0]} - {""}
    kinds = ("model", "endpoint", "endpoint-config")
    managed = [f"arn:aws:sagemaker:*:*:{kind}/{name}" for kind in kinds] + [f"arn:aws:sagemaker:*:*:transform-job/{name}-*"]
    return _document(
        _allow(
            *("sagemaker:CreateModel", "sagemaker:DescribeModel", "sagemaker:DeleteModel"),
            *("sagemaker:CreateEndpointConfig", "sagemaker:DescribeEndpointConfig", "sagemaker:DeleteEndpointConfig"),
            *("sagemaker:CreateEndpoint", "sagemaker:DescribeEndpoint", "sagemaker:DeleteEndpoint"),
            *("sagemaker:CreateTransformJob", "sagemaker:DescribeTransformJob", "sagemaker:StopTransformJob"),
            *("sagemaker:AddTags", "sagemaker:ListTags"),
            *("sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointAsync"),
            on=managed,
        ),
        _allow(
            *("sagemaker:ListTransformJobs", "sns:ListTopics", "cloudwatch:DescribeAlarms"),
            *("application-autoscaling:DescribeScalableTargets", "application-autoscaling:DescribeScalingPolicies"),
            on=["*"],  # IAM knows no narrower resource for these
        ),
        _allow("iam:PassRole", on=[role], condition={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}),
        _allow(
            *("s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"),
            on=sorted(f"arn:aws:s3:::{each}" for each in buckets),
        ),
        _allow(
            *("s3:GetObject", "s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject", "s3:DeleteObjectVersion"),
            "s3:AbortMultipartUpload",
            on=[own],
        ),
        _allow(
            *("application-autoscaling:RegisterScalableTarget", "application-autoscaling:DeregisterScalableTarget"),
            *("application-autoscaling:PutScalingPolicy", "application-autoscaling:DeleteScalingPolicy"),
            "application-autoscaling:TagResource",
            on=["arn:aws:application-autoscaling:*:*:scalable-target/*"],
            condition={"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}},
        ),
        # Application Auto Scaling makes its own role when an account scales SageMaker for the first time.
        _allow(
            "iam:CreateServiceLinkedRole",
            on=["arn:aws:iam::*:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*"],
            condition={"StringEquals": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"}},
        ),
        # Application Auto Scaling makes the alarms of target tracking, named TargetTracking-…, with the user's rights.
        _allow(
            *("cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms", "cloudwatch:TagResource", "cloudwatch:ListTagsForResource"),
            on=[f"arn:aws:cloudwatch:*:*:alarm:{names.alarm}", f"arn:aws:cloudwatch:*:*:alarm:TargetTracking-endpoint/{name}/*"],
        ),
        _allow(
            *("sns:CreateTopic", "sns:TagResource", "sns:Subscribe", "sns:DeleteTopic", "sns:ListTagsForResource"),
            on=[f"arn:aws:sns:*:*:{name}"],
        ),
        _allow("logs:DeleteLogGroup", on=[f"arn:aws:logs:*:*:log-group:/aws/sagemaker/Endpoints/{name}*"]),
    )


def _allow(*actions: str, on: list[str], condition: dict[str, Any] | None = None) -> Statement:
    statement = {"Effect": "Allow", "Action": sorted(actions), "Resource": on}
    return statement | ({"Condition": condition} if condition else {})


def _document(*statements: Statement) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}
