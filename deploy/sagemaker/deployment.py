"""One deployment: what the user asks for, the names of its resources, and the requests that describe them to AWS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.sagemaker.failure import DeployError
from deploy.sagemaker.limits import LIMITS, SERVER_BYTES, Mode
from deploy.sagemaker.model_archive import Form

VARIANT = "AllTraffic"
TAG = "whisper-deployment"
"""The tag of every resource. Its value is the name of the deployment."""
BUCKET_TAG = "whisper-bucket"
"""A tag of the model, so that a teardown finds the bucket."""
_NAME = re.compile(r"[a-z0-9](-?[a-z0-9]){0,39}")
_ROLE = re.compile(r"arn:(aws[\w-]*):iam::(\d{12}):role/\S+")
# Requests that are open at once on an instance. This repository's image batches them; AWS's containers take one after the other.
_OPEN_REQUESTS: Mapping[Form, int] = {"container": 16, "pytorch": 1, "huggingface": 1}
_START_SECONDS = 1800
"""To fetch a large model from S3, and then to install packages, convert it and pass the health check."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a deployment's resources. Model, endpoint, its configuration and the topic are all called `name`."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DeployError(f"'{self.name}' cannot be a name: small letters, digits and single hyphens between them, at most 40")

    @property
    def tags(self) -> list[dict[str, str]]:
        """The tag of every resource."""
        return [{"Key": TAG, "Value": self.name}]

    @property
    def prefix(self) -> str:
        """Of every key in the bucket."""
        return f"whisper/{self.name}/"

    @property
    def inputs(self) -> str:
        """The prefix of recordings that `invoke` uploads. They are removed when the reply has arrived."""
        return f"{self.prefix}input/"

    @property
    def results(self) -> tuple[str, str]:
        """The prefixes of the transcripts and of the errors that SageMaker writes."""
        return f"{self.prefix}output/", f"{self.prefix}failure/"

    def new_job(self) -> str:
        """A name for a transform job. AWS never takes the same one twice."""
        return f"{self.name}-{datetime.now(timezone.utc):%Y%m%d%H%M%S}"

    def is_job(self, job: str) -> bool:
        """Whether `job` has a name that `new_job` makes."""
        return re.fullmatch(rf"{re.escape(self.name)}-\d{{14}}", job) is not None

    @property
    def scalable(self) -> dict[str, str]:
        """The endpoint's instances, for Application Auto Scaling."""
        return {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{self.name}/variant/{VARIANT}",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        }

    @property
    def alarm(self) -> str:
        """The alarm that starts the first instance of an asynchronous endpoint that has scaled to zero."""
        return f"{self.name}-has-backlog"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What `deploy` makes. `archive`: model.tar.gz on this machine; None for the weights in the image.

    `settings`: WHISPER_ variables of the server, without the prefix. `inputs`: the recordings of a batch, s3://….
    `content_type`: of a batch, with its options.
    """

    name: str
    region: str
    mode: Mode
    form: Form
    image: str
    role: str
    bucket: str
    instance_type: str
    archive: Path | None = None
    instances: int = 1
    max_instances: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    notify: bool = False
    email: str | None = None
    inputs: str = ""
    content_type: str = "application/octet-stream"
    accept: str = "application/json"

    def __post_init__(self) -> None:
        if not _ROLE.fullmatch(self.role):
            raise DeployError(f"'{self.role}' is no role: --role takes arn:aws:iam::ACCOUNT:role/NAME, see `deploy.py policy`")
        if self.form != "container" and self.archive is None:
            raise DeployError(f"form {self.form} needs --archive: `deploy.py build --form {self.form}` makes it")
        if self.instances < 1 or self.max_instances < 1:
            raise DeployError("--instances and --max-instances must be at least 1; an asynchronous endpoint goes to zero by itself")
        if self.notify and self.mode != "async":
            raise DeployError("--notify and --email are for --mode async: the other modes announce nothing")
        if self.mode == "batch" and not self.inputs.startswith("s3://"):
            raise DeployError("--mode batch needs --input s3://BUCKET/PREFIX/, the folder of the recordings")

    @property
    def names(self) -> Names:
        """The names of the resources."""
        return Names(self.name)

    @property
    def archive_key(self) -> str:
        """The archive's key in the bucket."""
        return f"{self.names.prefix}model.tar.gz"

    @property
    def topic(self) -> str:
        """The ARN that the SNS topic will have: SNS makes it of the name."""
        found = _ROLE.fullmatch(self.role)
        assert found, "checked in __post_init__"
        return f"arn:{found[1]}:sns:{self.region}:{found[2]}:{self.name}"

    @property
    def scales(self) -> bool:
        """Whether the number of instances changes by itself."""
        return self.mode == "async" or (self.mode == "realtime" and self.max_instances > self.instances)

    @property
    def open_requests(self) -> int:
        """Requests that an instance works on at once."""
        return _OPEN_REQUESTS[self.form]

    def model(self) -> dict[str, Any]:
        """CreateModel."""
        tags = [*self.names.tags, {"Key": BUCKET_TAG, "Value": self.bucket}]
        container: dict[str, Any] = {"Image": self.image, "Environment": self.environment()}
        if self.archive:
            container["ModelDataUrl"] = f"s3://{self.bucket}/{self.archive_key}"
        return {"ModelName": self.name, "PrimaryContainer": container, "ExecutionRoleArn": self.role, "Tags": tags}

    def environment(self) -> dict[str, str]:
        """The container's environment variables: those of AWS's toolkit, and the server's settings, which win."""
        limits = LIMITS[self.mode]
        body = str(max(limits.payload_bytes, SERVER_BYTES * 4 // 3 + 65_536))  # base64 in JSON is a third larger
        seconds = str(limits.seconds)
        settings = {f"WHISPER_{name}": value for name, value in self.settings.items()}
        if self.form == "container":
            return settings
        # One worker: a second one would load the model again, and the first uses every core or the GPU already.
        toolkit = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
        if self.form == "pytorch":
            toolkit |= {"SAGEMAKER_MODEL_SERVER_TIMEOUT": seconds, "TS_DEFAULT_STARTUP_TIMEOUT": str(_START_SECONDS)}
            return toolkit | {"TS_MAX_REQUEST_SIZE": body, "TS_MAX_RESPONSE_SIZE": body, **settings}
        toolkit |= {"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": seconds}
        return toolkit | {"MMS_MAX_REQUEST_SIZE": body, "MMS_MAX_RESPONSE_SIZE": body, **settings}

    def endpoint_config(self) -> dict[str, Any]:
        """CreateEndpointConfig."""
        variant = {
            "VariantName": VARIANT,
            "ModelName": self.name,
            "InstanceType": self.instance_type,
            "InitialInstanceCount": self.instances,
            "ModelDataDownloadTimeoutInSeconds": _START_SECONDS,
            "ContainerStartupHealthCheckTimeoutInSeconds": _START_SECONDS,
        }
        config = {"EndpointConfigName": self.name, "ProductionVariants": [variant], "Tags": self.names.tags}
        return config | ({"AsyncInferenceConfig": self._asynchronous()} if self.mode == "async" else {})

    def _asynchronous(self) -> dict[str, Any]:
        output, failure = (f"s3://{self.bucket}/{prefix}" for prefix in self.names.results)
        places: dict[str, Any] = {"S3OutputPath": output, "S3FailurePath": failure}
        if self.notify:
            places["NotificationConfig"] = {"SuccessTopic": self.topic, "ErrorTopic": self.topic}
        return {"OutputConfig": places, "ClientConfig": {"MaxConcurrentInvocationsPerInstance": self.open_requests}}

    def endpoint(self) -> dict[str, Any]:
        """CreateEndpoint."""
        return {"EndpointName": self.name, "EndpointConfigName": self.name, "Tags": self.names.tags}

    def transform_job(self, job: str, largest: int) -> dict[str, Any]:
        """CreateTransformJob, one request for each recording. `largest`: bytes of the largest recording."""
        megabytes = -(-largest // 1_000_000)
        return {
            "TransformJobName": job,
            "ModelName": self.name,
            "MaxPayloadInMB": megabytes,
            # AWS multiplies the two and allows 100 MB.
            "MaxConcurrentTransforms": max(1, min(self.open_requests, LIMITS["batch"].payload_bytes // 1_000_000 // megabytes)),
            "BatchStrategy": "SingleRecord",
            "ModelClientConfig": {"InvocationsTimeoutInSeconds": LIMITS["batch"].seconds, "InvocationsMaxRetries": 1},
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": self.inputs}},
                "ContentType": self.content_type,
                "SplitType": "None",
            },
            "TransformOutput": {
                "S3OutputPath": f"s3://{self.bucket}/{self.names.results[0]}",
                "Accept": self.accept,
                "AssembleWith": "None",
            },
            "TransformResources": {"InstanceType": self.instance_type, "InstanceCount": self.instances},
            "Tags": self.names.tags,
        }
