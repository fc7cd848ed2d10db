"""Autoscaling: a real-time endpoint by its open requests, an asynchronous one by its queue, and from zero to one."""

from __future__ import annotations

from deploy.sagemaker.api import Api
from deploy.sagemaker.deployment import Deployment

COOL_DOWN_SECONDS = 300
_TARGET_SHARE = 0.5
"""Of the requests that an instance works on at once: more than this on average, and an instance is added."""


def scale(api: Api, deployment: Deployment) -> None:
    """Let the number of instances follow the load. An asynchronous endpoint without work has none."""
    scalable, zero = deployment.names.scalable, deployment.mode == "async"
    api(
        "application-autoscaling",
        "register_scalable_target",
        **scalable,
        MinCapacity=0 if zero else deployment.instances,
        MaxCapacity=max(deployment.max_instances, deployment.instances),
        Tags={tag["Key"]: tag["Value"] for tag in deployment.names.tags},
    )
    metric = _backlog(deployment) if zero else _concurrency()
    api(
        "application-autoscaling",
        "put_scaling_policy",
        **scalable,
        PolicyName=f"{deployment.name}-load",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": max(1.0, deployment.open_requests * _TARGET_SHARE),
            "ScaleInCooldown": COOL_DOWN_SECONDS,
            "ScaleOutCooldown": COOL_DOWN_SECONDS,
            **metric,
        },
    )
    if zero:
        _start_from_zero(api, deployment)


def _concurrency() -> dict[str, object]:
    """Open requests, because recordings differ in length: their number a minute says little about the load."""
    return {"PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantConcurrentRequestsPerModelHighResolution"}}


def _backlog(deployment: Deployment) -> dict[str, object]:
    return {"CustomizedMetricSpecification": {"MetricName": "ApproximateBacklogSizePerInstance", **_metric_of(deployment)}}


def _metric_of(deployment: Deployment) -> dict[str, object]:
    return {
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": deployment.name}],
        "Statistic": "Average",
    }


def _start_from_zero(api: Api, deployment: Deployment) -> None:
    """The backlog per instance is undefined without instances, so a policy of its own starts the first one.

    https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
    """
    policy = api(
        "application-autoscaling",
        "put_scaling_policy",
        **deployment.names.scalable,
        PolicyName=f"{deployment.name}-from-zero",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": COOL_DOWN_SECONDS,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
        },
    )
    api(
        "cloudwatch",
        "put_metric_alarm",
        AlarmName=deployment.names.alarm,
        AlarmDescription=f"Requests wait and {deployment.name} has no instance",
        MetricName="HasBacklogWithoutCapacity",
        **_metric_of(deployment),
        Period=60,
        EvaluationPeriods=2,
        DatapointsToAlarm=2,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
        AlarmActions=[policy["PolicyARN"]],
        Tags=deployment.names.tags,
    )
