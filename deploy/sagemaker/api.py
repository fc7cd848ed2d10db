"""AWS's API as one function, which sends a request, or in a dry run prints it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy.sagemaker.failure import DeployError, Missing, translated

_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 5})
# A second attempt would transcribe a recording twice. Of a resource whose first request has got lost it would report that the resource
# exists already, which then looks like something else's. A container has 60 s to answer, so the socket needs more (botocore's description
# of InvokeEndpoint).
_ONCE = Config(retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=70)


class Api(Protocol):
    """`api(service, operation, **parameters)` is one request, by boto3's names. Returns its response.

    `Body` of a response is bytes. Raises DeployError, and its kinds Refused and Missing when AWS has answered so.
    """

    def __call__(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """One request."""

    def pause(self, seconds: float) -> None:
        """Wait before asking again."""


class Aws:
    """Sends the requests, with the credentials that boto3 finds."""

    def __init__(self, region: str | None) -> None:
        """`region`: None for the one that boto3 finds in the environment or its files."""
        self._session = boto3.Session(region_name=region)
        self._clients: dict[tuple[str, bool], Any] = {}

    def __call__(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """One request."""
        try:
            client = self._client(service, once=operation.startswith(("create", "invoke")))
            response: dict[str, Any] = getattr(client, operation)(**parameters) or {}
            if hasattr(response.get("Body"), "read"):
                response["Body"] = response["Body"].read()
            return response
        except S3UploadFailedError as error:
            cause = error.__context__
            raise translated(cause, service, operation) if isinstance(cause, ClientError) else DeployError(str(error)) from error
        except (ClientError, BotoCoreError) as error:
            raise translated(error, service, operation) from error

    def pause(self, seconds: float) -> None:
        """Wait before asking again."""
        time.sleep(seconds)

    def _client(self, service: str, *, once: bool) -> Any:
        """A client of boto3's. `once`: requests are not repeated."""
        if (service, once) not in self._clients:
            self._clients[service, once] = self._session.client(service, config=_ONCE if once else _CONFIG)
        return self._clients[service, once]


class DryRun:
    """Prints the requests as JSON and sends nothing, so it needs no account.

    Answers are made up: what has been created is there and ready, and with `found` everything is there at first.
    """

    def __init__(self, tags: list[dict[str, str]], *, found: bool) -> None:
        """`tags`: what every resource is said to carry."""
        self._tags, self._found = tags, found
        self._made: dict[str, bool] = {}
        self._uploaded = 0

    def __call__(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """Print one request."""
        json.dump({f"{service}.{operation}": parameters}, sys.stdout, indent=2, default=_described)
        print()
        verb, _, resource = operation.partition("_")
        if verb in ("create", "delete"):
            self._made[resource] = verb == "create"
        if verb == "describe" and not self._made.get(resource, self._found):
            raise Missing(f"{service} {operation}: not there", "DryRun")
        if operation == "upload_file":
            self._uploaded = Path(parameters["Filename"]).stat().st_size
        return _Answer(
            EndpointStatus="InService",
            TransformJobStatus="Completed",
            Tags=self._tags,
            ContentLength=self._uploaded,
            Body=b"<the reply>\n",
            Contents=[{"Key": "<a recording>", "Size": 1_000_000}],
            TransformJobSummaries=[{"TransformJobName": f"{self._tags[0]['Value']}-20260101000000"}],
            Topics=[{"TopicArn": f"arn:aws:sns:<region>:<account>:{self._tags[0]['Value']}"}],
            OutputLocation="s3://<bucket>/<output>",
            ScalingPolicies=[{"PolicyName": "<a policy>"}],
            ScalableTargets=[{}],
            MetricAlarms=[{"AlarmArn": "<arn>"}],
            Versions=[{"Key": "<key>", "VersionId": "<version>"}],
        )

    def pause(self, _: float) -> None:
        """Nothing is waited for."""


class _Answer(dict[str, Any]):
    """A response in which every other entry has its own name as its value."""

    def __missing__(self, name: str) -> str:
        return f"<{name}>"


def _described(value: object) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes | bytearray) else str(value)
