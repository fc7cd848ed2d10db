"""Removes a deployment: every resource by its name, if it carries the deployment's tag. Each step may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from deploy.sagemaker.api import Api
from deploy.sagemaker.deployment import BUCKET_TAG, TAG, Names
from deploy.sagemaker.failure import DeployError, Missing, Refused
from deploy.sagemaker.storage import delete_objects, objects

POLL_SECONDS = 15.0
_UNDER_WAY = ("Creating", "Updating", "SystemUpdating", "RollingBack")
"""States of an endpoint in which AWS refuses to delete it (aws/amazon-sagemaker-examples issue 3432)."""
_STOPPABLE = ("InProgress", "Stopping")


@dataclass(frozen=True, slots=True)
class Removal:
    """What a teardown has left in place. `failures`: reasons, one line each. `kept`: the transcripts, as s3://…."""

    failures: tuple[str, ...]
    kept: tuple[str, ...]


def teardown(api: Api, names: Names, bucket: str | None, *, results: bool, say: Callable[[str], None]) -> Removal:
    """Remove everything but the transcripts; with `results` those too.

    `bucket`: None for the one that the model names in a tag. A failure does not keep the later steps from running.
    Raises DeployError when the model of that name was made by something else: then nothing is removed.
    """
    model = _model(api, names)
    bucket = bucket or (model or {}).get(BUCKET_TAG)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("autoscaling", lambda: remove_scaling(api, names)),
        ("endpoint", lambda: remove_endpoint(api, names, say)),
        ("endpoint configuration", lambda: remove_endpoint_config(api, names)),
        ("transform job", lambda: stop_transform_jobs(api, names)),
        ("topic", lambda: remove_topic(api, names)),
    ]
    if model:
        steps.append(("log", lambda: _remove_log(api, names)))
    if bucket:
        keep = () if results else names.results
        steps.append((f"objects in {bucket}", lambda: delete_objects(api, bucket, names.prefix, keep=keep)))
    failures = [failure for title, step in steps if (failure := _failure(title, step))]
    if not failures:
        # The model names the bucket, so it is the last to go: a teardown that was cut short can be repeated.
        failures = [failure for failure in [_failure("model", lambda: remove_model(api, names))] if failure]
    if not bucket:
        say("no model names the bucket: give --bucket to remove what may be left there")
    kept = () if results or not bucket else tuple(_kept(api, bucket, names))
    return Removal(tuple(failures), kept)


def _failure(title: str, step: Callable[[], None]) -> str | None:
    """Run a step. Returns the reason when it fails."""
    try:
        step()
    except DeployError as error:
        return f"{title}: {error}"
    return None


def remove_scaling(api: Api, names: Names) -> None:
    """The scaling policies with their alarms, the scalable target, and the alarm for the first instance."""
    _endpoint_status(api, names)  # raises when the endpoint, and so its target, is something else's
    service, target = "application-autoscaling", names.scalable
    for policy in api(service, "describe_scaling_policies", **target).get("ScalingPolicies", []):
        api(service, "delete_scaling_policy", **target, PolicyName=policy["PolicyName"])
    found = {name: value for name, value in target.items() if name != "ResourceId"} | {"ResourceIds": [target["ResourceId"]]}
    if api(service, "describe_scalable_targets", **found).get("ScalableTargets"):
        api(service, "deregister_scalable_target", **target)
    for alarm in api("cloudwatch", "describe_alarms", AlarmNames=[names.alarm]).get("MetricAlarms", []):
        _require_tag(api("cloudwatch", "list_tags_for_resource", ResourceARN=alarm["AlarmArn"])["Tags"], names, "alarm")
        api("cloudwatch", "delete_alarms", AlarmNames=[names.alarm])


def remove_endpoint(api: Api, names: Names, say: Callable[[str], None]) -> None:
    """The endpoint, which is what costs money. Waits until it can be deleted, and then until it is gone."""
    status = _endpoint_status(api, names)
    if status in _UNDER_WAY:
        say(f"the endpoint is {status}, and AWS deletes it only after that: waiting, because it costs money until then")
    while status in _UNDER_WAY:
        api.pause(POLL_SECONDS)
        status = _endpoint_status(api, names)
    if status is None:
        return
    if status != "Deleting":
        with suppress(Missing):
            api("sagemaker", "delete_endpoint", EndpointName=names.name)
    while _endpoint_status(api, names):
        api.pause(POLL_SECONDS)


def _endpoint_status(api: Api, names: Names) -> str | None:
    """None when there is no endpoint. Raises DeployError for one that is not the deployment's."""
    try:
        endpoint = api("sagemaker", "describe_endpoint", EndpointName=names.name)
    except Missing:
        return None
    _check_tag(api, names, "endpoint", endpoint["EndpointArn"])
    status: str = endpoint["EndpointStatus"]
    return status


def remove_endpoint_config(api: Api, names: Names) -> None:
    """The endpoint's configuration. AWS forbids to delete it while the endpoint lives."""
    with suppress(Missing):
        config = api("sagemaker", "describe_endpoint_config", EndpointConfigName=names.name)
        _check_tag(api, names, "endpoint configuration", config["EndpointConfigArn"])
        api("sagemaker", "delete_endpoint_config", EndpointConfigName=names.name)


def remove_model(api: Api, names: Names) -> None:
    """The model: the image, the archive's place and the environment."""
    if _model(api, names) is not None:
        api("sagemaker", "delete_model", ModelName=names.name)


def _model(api: Api, names: Names) -> dict[str, str] | None:
    """The model's tags; None when there is no model. Raises DeployError for one that is not the deployment's."""
    try:
        model = api("sagemaker", "describe_model", ModelName=names.name)
    except Missing:
        return None
    tags = api("sagemaker", "list_tags", ResourceArn=model["ModelArn"])["Tags"]
    _require_tag(tags, names, "model")
    return {tag["Key"]: tag["Value"] for tag in tags}


def stop_transform_jobs(api: Api, names: Names) -> None:
    """Stop running jobs, and wait until they have stopped. Finished jobs cannot be deleted, and cost nothing."""
    for status in _STOPPABLE:
        jobs = api("sagemaker", "list_transform_jobs", NameContains=f"{names.name}-", StatusEquals=status)
        for summary in jobs.get("TransformJobSummaries", []):
            if names.is_job(summary["TransformJobName"]):
                _stop(api, names, summary["TransformJobName"])


def _stop(api: Api, names: Names, name: str) -> None:
    job = api("sagemaker", "describe_transform_job", TransformJobName=name)
    if job["TransformJobStatus"] not in _STOPPABLE:
        return
    _check_tag(api, names, "transform job", job["TransformJobArn"])
    if job["TransformJobStatus"] == "InProgress":
        api("sagemaker", "stop_transform_job", TransformJobName=name)
    while api("sagemaker", "describe_transform_job", TransformJobName=name)["TransformJobStatus"] in _STOPPABLE:
        api.pause(POLL_SECONDS)


def remove_topic(api: Api, names: Names) -> None:
    """The topic, with its subscriptions."""
    token: dict[str, str] = {}
    while True:
        page = api("sns", "list_topics", **token)
        for topic in page.get("Topics", []):
            if topic["TopicArn"].rpartition(":")[2] == names.name:
                tags = api("sns", "list_tags_for_resource", ResourceArn=topic["TopicArn"])["Tags"]
                _require_tag(tags, names, "topic")
                api("sns", "delete_topic", TopicArn=topic["TopicArn"])
        if not (next_token := page.get("NextToken")):
            return
        token = {"NextToken": next_token}


def _remove_log(api: Api, names: Names) -> None:
    """The log that SageMaker has written for the endpoint."""
    with suppress(Missing):
        api("logs", "delete_log_group", logGroupName=f"/aws/sagemaker/Endpoints/{names.name}")


def _kept(api: Api, bucket: str, names: Names) -> Iterator[str]:
    try:
        for prefix in names.results:
            yield from (f"s3://{bucket}/{item['Key']}" for item in objects(api, bucket, prefix))
    except Refused:
        return  # the bucket itself is gone, or may not be listed: deleting has reported it


def _check_tag(api: Api, names: Names, title: str, arn: str) -> None:
    _require_tag(api("sagemaker", "list_tags", ResourceArn=arn)["Tags"], names, title)


def _require_tag(tags: list[dict[str, str]], names: Names, title: str) -> None:
    """Raise DeployError when a resource of the deployment's name was made by something else."""
    if {"Key": TAG, "Value": names.name} not in tags:
        raise DeployError(f"the {title} '{names.name}' has no tag {TAG}={names.name}: something else has made it, and it stays")
