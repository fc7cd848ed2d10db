"""What SageMaker's three ways of inference accept, and which of them fits a recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from deploy.sagemaker.failure import DeployError

Mode = Literal["realtime", "async", "batch"]

_MODES_PAGE = "https://docs.aws.amazon.com/sagemaker/latest/dg/deploy-model-options.html"
SERVER_BYTES = 150 * 1024 * 1024
"""The default of the setting `max_audio_bytes`: what this repository's code accepts, wherever it runs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one way of inference.

    `payload_bytes`: of one request's body. `seconds`: for one request's answer. `content_type`: characters of
    Content-Type, which carries the options. `source`: where AWS documents them.
    """

    title: str
    payload_bytes: int
    seconds: int
    content_type: int
    source: str


LIMITS: Mapping[Mode, Limits] = MappingProxyType(
    {
        # The exact number of bytes is botocore's service model, as for the lengths of Content-Type. Some of AWS's later pages name 25 MB:
        # --payload-limit raises the limit.
        "realtime": Limits("real-time inference", 6_291_456, 60, 1024, _MODES_PAGE),
        "async": Limits("asynchronous inference", 1_000_000_000, 3600, 1024, _MODES_PAGE),
        "batch": Limits(
            "batch transform",
            100_000_000,
            3600,
            256,
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html",
        ),
    }
)


def check_payload(mode: Mode, name: str, size: int, *, payload_limit: int | None = None, server_limit: int = SERVER_BYTES) -> None:
    """Raise DeployError when a recording of `size` bytes cannot be sent in this mode; the message names one that fits.

    `payload_limit` replaces SageMaker's limit for the mode, `server_limit` is the endpoint's `max_audio_bytes`.
    """
    if size == 0:
        raise DeployError(f"{name} is empty: nothing was sent")
    limit = payload_limit or LIMITS[mode].payload_bytes
    if size <= min(limit, server_limit):
        return
    fitting = [other for other in LIMITS if other != mode and size <= min(LIMITS[other].payload_bytes, server_limit)]
    if size > server_limit:
        reason = f"the server's limit is {server_limit:,} bytes (setting max_audio_bytes)"
    else:
        reason = f"{LIMITS[mode].title} takes at most {limit:,}"
    larger = "send it with " + " or ".join(f"--mode {other} (up to {_megabytes(other, server_limit)} MB)" for other in fitting)
    smaller = "send its sound only: ffmpeg -i FILE -map 0:a -ac 1 -ar 16000 -c:a libopus -b:a 24k FILE.ogg makes 11 MB of an hour"
    raise DeployError(f"{name} has {size:,} bytes, {reason}; {larger if fitting else smaller}; nothing was sent")


def check_content_type(mode: Mode, content_type: str) -> None:
    """Raise DeployError for a Content-Type, with the options in it, that SageMaker does not accept."""
    limit = LIMITS[mode].content_type
    if not content_type.isascii() or len(content_type) > limit:
        raise DeployError(
            f"the options make a Content-Type of {len(content_type)} characters, {LIMITS[mode].title} takes {limit} of ASCII:"
            " send the recording as base64 in JSON, which takes options of any length"
        )


def _megabytes(mode: Mode, server_limit: int) -> int:
    return min(LIMITS[mode].payload_bytes, server_limit) // 1_000_000
