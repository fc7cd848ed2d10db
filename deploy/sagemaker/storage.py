"""Files in S3: uploaded completely or not at all, listed, and removed with their older versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from deploy.sagemaker.api import Api
from deploy.sagemaker.deployment import Names
from deploy.sagemaker.failure import DeployError, Missing

_DELETED_AT_ONCE = 1000
"""Objects in one request, by S3's documentation of DeleteObjects."""


def check_bucket(api: Api, bucket: str) -> None:
    """Raise DeployError when the bucket does not exist or may not be used."""
    try:
        api("s3", "head_bucket", Bucket=bucket)
    except Missing:
        raise DeployError(f"there is no bucket '{bucket}': make it (aws s3 mb s3://{bucket}), or give another --bucket") from None


def upload(api: Api, file: Path, bucket: str, key: str, names: Names) -> None:
    """Upload a file and compare what has arrived. Raises DeployError; then nothing of it is left in the bucket."""
    size = _size(file)
    tags = urlencode({tag["Key"]: tag["Value"] for tag in names.tags})
    try:
        # boto3 aborts an upload in parts that fails, so no parts stay behind.
        api("s3", "upload_file", Filename=str(file), Bucket=bucket, Key=key, ExtraArgs={"Tagging": tags})
        arrived = api("s3", "head_object", Bucket=bucket, Key=key)["ContentLength"]
        if arrived != size or _size(file) != size:
            raise DeployError(f"{file} has {_size(file):,} bytes, {arrived:,} are in s3://{bucket}/{key}: is it still being written?")
    except BaseException:
        with suppress(DeployError):  # the reason of the first error is the one to report
            delete_objects(api, bucket, key)
        raise


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DeployError(f"{file} cannot be read: {error.strerror}") from None


def objects(api: Api, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """The objects under a prefix, each with its Key and Size."""
    token: dict[str, str] = {}
    while True:
        page = api("s3", "list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        yield from page.get("Contents", [])
        if not (next_token := page.get("NextContinuationToken")):
            return
        token = {"ContinuationToken": next_token}


def unfinished_uploads(api: Api, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Uploads in parts that have begun and not ended, each with its Key and UploadId. S3 lists no object for them."""
    marker: dict[str, Any] = {}
    while True:
        page = api("s3", "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
        yield from page.get("Uploads", [])
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def delete_objects(api: Api, bucket: str, prefix: str, *, keep: Sequence[str] = ()) -> None:
    """Delete everything under the prefix but what lies under those of `keep`: objects, older versions, unfinished uploads.

    Raises DeployError when S3 could not delete some of them.
    """
    for started in unfinished_uploads(api, bucket, prefix):
        api("s3", "abort_multipart_upload", Bucket=bucket, Key=started["Key"], UploadId=started["UploadId"])
    versions = [version for version in _versions(api, bucket, prefix) if not version["Key"].startswith(tuple(keep))]
    for first in range(0, len(versions), _DELETED_AT_ONCE):
        batch = {"Objects": versions[first : first + _DELETED_AT_ONCE], "Quiet": True}
        errors = api("s3", "delete_objects", Bucket=bucket, Delete=batch).get("Errors", [])
        if errors:
            raise DeployError(f"{len(errors)} objects stay, the first is {errors[0].get('Key')}: {errors[0].get('Message')}")


def _versions(api: Api, bucket: str, prefix: str) -> Iterator[dict[str, str]]:
    """Every version and delete marker under the prefix. A bucket without versions lists each object once."""
    marker: dict[str, Any] = {}
    while True:
        page = api("s3", "list_object_versions", Bucket=bucket, Prefix=prefix, **marker)
        for entry in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
            yield {"Key": entry["Key"], "VersionId": entry["VersionId"]}
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://BUCKET/KEY. Raises DeployError for anything else."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise DeployError(f"'{uri}' is no address in S3: s3://BUCKET/PREFIX/")
    return parts.netloc, uri.removeprefix(f"s3://{parts.netloc}").removeprefix("/")
