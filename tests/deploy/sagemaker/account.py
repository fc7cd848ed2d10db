"""A made-up AWS account: moto answers in place of AWS, and records the requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from moto import mock_aws
from moto.sagemaker.models import sagemaker_backends

from deploy.sagemaker.api import Aws
from deploy.sagemaker.deployment import Deployment, Names

REGION, BUCKET, NAME = "eu-west-1", "recordings", "whisper"
NAMES = Names(NAME)
ROLE = "arn:aws:iam::123456789012:role/whisper"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/whisper:cpu"
REPLY = b'{"text":"Set a timer for five minutes."}'
SESSION = boto3.Session("none", "none", region_name=REGION)
"""One for all tests: each new session reads its descriptions of the services again, half a second for each."""


def QUIET(_: str) -> None:
    """Prints nothing."""


class Account(Aws):
    """Records each request. `before` is called with its number, service and operation; `after` when it is done.

    Waiting takes no time. It calls `on_pause`, and fails after many times, so that no test waits for ever.
    """

    def __init__(self) -> None:
        super().__init__(REGION)
        self._session = SESSION
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.pauses = 0
        self.before: Callable[[int, str, str], None] = lambda *_: None
        self.after: Callable[[int, str, str], None] = lambda *_: None
        self.on_pause: Callable[[], None] = lambda: None

    def __call__(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]:
        self.requests.append((service, operation, parameters))
        number = len(self.requests)
        self.before(number, service, operation)
        with self._stand_in(service, operation, parameters):
            response = super().__call__(service, operation, **parameters)
        self.after(number, service, operation)
        return response

    @contextmanager
    def _stand_in(self, service: str, operation: str, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Botocore's stubber answers what moto cannot: a body that is not text, and StopTransformJob. It checks the request, too."""
        if operation not in ("invoke_endpoint", "stop_transform_job"):
            yield
            return
        answer: dict[str, Any] = {}
        if operation == "invoke_endpoint":
            answer = {"Body": StreamingBody(BytesIO(REPLY), len(REPLY)), "ContentType": "application/json"}
        else:
            jobs = sagemaker_backends["123456789012"][REGION].transform_jobs
            jobs[parameters["TransformJobName"]].transform_job_status = "Stopped"
        with Stubber(self._client(service, once=operation.startswith("invoke"))) as stubber:
            stubber.add_response(operation, answer)
            yield

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        assert self.pauses < 1000, "waits for ever"
        self.on_pause()

    def client(self, service: str) -> Any:
        """Boto3's client, for what is not under test."""
        return SESSION.client(service)

    @property
    def operations(self) -> list[str]:
        return [operation for _, operation, _ in self.requests]

    def parameters(self, operation: str) -> dict[str, Any]:
        """Of the last request of this operation."""
        return next(parameters for _, made, parameters in reversed(self.requests) if made == operation)

    def left(self) -> dict[str, list[Any]]:
        """Everything in the account that could cost money, by kind; only kinds of which there is something."""
        sagemaker, scaling = self.client("sagemaker"), self.client("application-autoscaling")
        s3 = self.client("s3")
        jobs = sagemaker.list_transform_jobs()["TransformJobSummaries"]
        found = {
            "models": [model["ModelName"] for model in sagemaker.list_models()["Models"]],
            "configs": [config["EndpointConfigName"] for config in sagemaker.list_endpoint_configs()["EndpointConfigs"]],
            "endpoints": [endpoint["EndpointName"] for endpoint in sagemaker.list_endpoints()["Endpoints"]],
            "jobs": [job["TransformJobName"] for job in jobs if job["TransformJobStatus"] == "InProgress"],
            "targets": scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"],
            "policies": scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"],
            "alarms": [alarm["AlarmName"] for alarm in self.client("cloudwatch").describe_alarms()["MetricAlarms"]],
            "topics": self.client("sns").list_topics()["Topics"],
            "logs": self.client("logs").describe_log_groups()["logGroups"],
            "objects": [item["Key"] for item in s3.list_object_versions(Bucket=BUCKET).get("Versions", [])],
            "uploads": s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []),
        }
        return {kind: things for kind, things in found.items() if things}


@contextmanager
def account() -> Iterator[Account]:
    """An account with one empty bucket."""
    with mock_aws():
        made = Account()
        made.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield made


def deployment(folder: Path, **changes: Any) -> Deployment:
    """A deployment with a small archive in `folder`."""
    archive = folder / "model.tar.gz"
    archive.write_bytes(b"weights")
    usual: dict[str, Any] = {
        "name": NAME,
        "region": REGION,
        "mode": "realtime",
        "form": "container",
        "image": IMAGE,
        "role": ROLE,
        "bucket": BUCKET,
        "instance_type": "ml.c5.2xlarge",
        "archive": archive,
    }
    return Deployment(**usual | changes)


def born(monkeypatch: pytest.MonkeyPatch, kind: type, **attributes: Any) -> None:
    """Let moto's resources of this kind have these attributes from the beginning."""
    made = kind.__init__  # type: ignore[misc]

    def make(self: Any, *arguments: Any, **keywords: Any) -> None:
        made(self, *arguments, **keywords)
        for name, value in attributes.items():
            setattr(self, name, value)

    monkeypatch.setattr(kind, "__init__", make)
