"""The function over the fake engine, with S3 in memory, and the path of its files: `lambda` is no name of a package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws
from moto.moto_api._internal.models import moto_api_backend

from tests.unit.doubles import Recorder
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
FILES = ROOT / "deploy" / "lambda"
sys.path.insert(0, str(FILES))

from s3_objects import Objects  # noqa: E402  # after the path
from transcription_function import Function  # noqa: E402

REGION = "eu-central-1"
MAX_AUDIO_BYTES = 1 << 20


@dataclass
class Context:
    """Lambda's context object: `seconds` are left."""

    seconds: float = 900.0
    aws_request_id: str = "request-1"

    def get_remaining_time_in_millis(self) -> int:
        return round(self.seconds * 1000)


@pytest.fixture
def context() -> Context:
    return Context()


@pytest.fixture
def engine() -> Recorder:
    return Recorder()


@pytest.fixture
def make(engine: Recorder, s3: Any) -> Iterator[Callable[..., Function]]:
    """Makes functions with variables of the environment, over one transcriber."""
    with Transcriber(Settings(max_audio_bytes=MAX_AUDIO_BYTES), engine=engine) as transcriber:
        yield lambda **environ: Function(environ, transcriber)


@pytest.fixture
def function(make: Callable[..., Function]) -> Function:
    return make()


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """boto3's client for an S3 in memory. Making one takes half a second.

    It ends with the module: moto forgets nothing while any of its mocks is active, so other tests would see these buckets.
    """
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        with mock_aws():
            yield boto3.client("s3")


@pytest.fixture
def s3(client: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client, for an S3 with the empty buckets `recordings` and `results`. The function uses it too."""
    moto_api_backend.reset()
    for bucket in ("recordings", "results"):
        client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    monkeypatch.setattr(Objects, "_client", client)
    return client
