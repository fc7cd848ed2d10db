"""Reads recordings from S3 and writes results there, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from function_errors import AccessDenied, Missing, Replaced, SourceError, Unavailable

from whispercore.api.values import for_message
from whispercore.errors import TooLarge, WhisperError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_LINK_SECONDS = 3600
_ATTEMPTS = 3
"""For a transfer that breaks off."""


@dataclass(frozen=True, slots=True)
class Place:
    """An object's bucket and key."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @classmethod
    def of(cls, uri: str, param: str) -> Place:
        """The place that s3://BUCKET/KEY names. Raises SourceError. `param`: the field that has it."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not bucket or not key:
            raise SourceError(f"{param} must be s3://BUCKET/KEY; got {for_message(uri)}", param=param)
        return cls(bucket, key)


class Objects:
    """S3 with the rights of the function's role and in its region.

    The client is made when it is first needed, which takes half a second: a function URL needs none.
    """

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config
        from botocore.session import get_session

        return get_session().create_client("s3", config=Config(retries={"mode": "standard", "max_attempts": _ATTEMPTS}))

    def read(self, place: Place, max_bytes: int, *, version: str = "", etag: str = "") -> tuple[bytes, Mapping[str, str]]:
        """The bytes of an object, and its metadata.

        `version`, `etag`: of the content that is meant, when known. Raises TooLarge beyond `max_bytes`, AccessDenied,
        Missing, Replaced when the object has other content by now, and Unavailable.
        """
        meant = {name: value for name, value in {"VersionId": version, "IfMatch": etag}.items() if value}
        for attempt in range(_ATTEMPTS):
            with _errors(place, "s3:GetObjectVersion" if version else "s3:GetObject", last=attempt == _ATTEMPTS - 1):
                found = self._client.get_object(Bucket=place.bucket, Key=place.key, **meant)
                if found["ContentLength"] > max_bytes:
                    found["Body"].close()
                    size = f"{place} has {found['ContentLength']:,} bytes"
                    raise TooLarge(f"{size}, at most {max_bytes:,} ({max_bytes / 2**20:g} MB) are accepted", param="file")
                return found["Body"].read(), found["Metadata"]
        raise AssertionError("the last attempt returns or raises")

    def metadata(self, place: Place) -> Mapping[str, str] | None:
        """The metadata of an object; None when it does not exist, or when the role may not know."""
        from botocore.exceptions import ClientError  # here and below: the import is a part of the half second

        try:
            found: Mapping[str, str] = self._client.head_object(Bucket=place.bucket, Key=place.key)["Metadata"]
        except ClientError as error:
            if _status(error) in (403, 404):  # without s3:ListBucket S3 answers 403 in place of 404
                return None
            raise _translated(error, place, "s3:GetObject") from error
        return found

    def write(self, place: Place, body: bytes, content_type: str, metadata: Mapping[str, str]) -> None:
        """Write an object, complete or not at all. Raises as `read`."""
        with _errors(place, "s3:PutObject", last=True):
            self._client.put_object(Bucket=place.bucket, Key=place.key, Body=body, ContentType=content_type, Metadata=dict(metadata))

    def delete(self, place: Place) -> None:
        """Delete an object; one that does not exist is no error. Raises as `read`."""
        with _errors(place, "s3:DeleteObject", last=True):
            self._client.delete_object(Bucket=place.bucket, Key=place.key)

    def link(self, place: Place) -> str:
        """An address at which anyone can get the object, for an hour at most."""
        address: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": place.bucket, "Key": place.key}, ExpiresIn=_LINK_SECONDS
        )
        return address


@contextmanager
def _errors(place: Place, right: str, *, last: bool) -> Iterator[None]:
    """Raise boto's errors as this function's. Errors worth another try are passed over unless it was the `last` one."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except WhisperError:
        raise
    except (ClientError, BotoCoreError, OSError) as error:
        translated = _translated(error, place, right)
        if last or not isinstance(translated, Unavailable):
            raise translated from error


def _translated(error: Exception, place: Place, right: str) -> WhisperError:
    from botocore.exceptions import ClientError, NoCredentialsError

    name = for_message(str(place))
    if isinstance(error, NoCredentialsError):
        return AccessDenied("the function has no credentials: it needs a role")
    if not isinstance(error, ClientError):
        hint = "a function in a VPC needs a gateway endpoint to S3"
        return Unavailable(f"{name}: S3 does not answer, or the transfer broke off ({type(error).__name__}); {hint}")
    code, told = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    if code == "NoSuchBucket":
        return Missing(f"there is no bucket {for_message(place.bucket)}")
    if code in ("NoSuchKey", "NoSuchVersion") or (code == "404" and right == "s3:GetObject"):
        return Missing(f"there is no object {name}")
    if _status(error) == 412:
        return Replaced(f"{name} has been overwritten since the event was sent: its new content has an event of its own")
    if code == "InvalidObjectState":
        return SourceError(f"{name} is archived: restore it first", code="archived")
    if _status(error) in (401, 403):
        missing = " (S3 says the same of an object that does not exist, to a role without s3:ListBucket)" if "Get" in right else ""
        return AccessDenied(f"the function may not use {name}: its role needs {right} on it{missing}; S3 says: {code} {told}".strip())
    if _status(error) >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling"):
        return Unavailable(f"{name}: S3 answers {code} {told}".strip())
    return SourceError(f"{name}: S3 answers {code} {told}".strip())


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status
