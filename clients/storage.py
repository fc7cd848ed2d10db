"""Where the recordings of a batch lie and where its results go: folders, lists of recordings, S3 prefixes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from failures import RequestFailed
from recordings import AUDIO_SUFFIXES

S3 = "s3://"
LIST_SUFFIXES = (".jsonl", ".txt")
"""Lists of recordings: lines of JSON with the field `audio`, or an address on each line."""
LIST_FIELDS = ("audio", "path", "file")
REQUESTS = 16
"""Questions about single objects of S3 that are asked at once."""
ATTEMPTS, PAUSE_SECONDS = 3, 1.0
"""Downloads of an object that breaks off, and the pause after the first; it doubles."""
BLOCK_BYTES = 1 << 20
CONNECTION, ACCESS_DENIED, MISSING, CHANGED, NOT_SAVED = "connection", "access_denied", "missing", "changed", "not_saved"
"""Kinds of failures."""
_KINDS = {
    **dict.fromkeys(("NoSuchKey", "404", "NoSuchBucket", "NotFound"), MISSING),
    **dict.fromkeys(("AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"), ACCESS_DENIED),
    **dict.fromkeys(("PreconditionFailed", "412"), CHANGED),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of a batch.

    `name`: its path below the input, with forward slashes; results are named after it. `address`: an absolute path or
    s3://BUCKET/KEY. `size`: bytes, -1 when there is no such file. `version`: the ETag of S3, or the time of the last
    change in ns: a recording with another size or version has changed.
    """

    name: str
    address: str
    size: int
    version: str

    @property
    def is_remote(self) -> bool:
        """Whether it lies in S3."""
        return self.address.startswith(S3)


# The input


def find_recordings(address: str) -> list[Recording]:
    """The recordings in a folder, in a list, below an S3 prefix, or the one at `address`, by name.

    Raises RequestFailed when the place cannot be read, or has none.
    """
    if address.startswith(S3):
        found = _in_bucket(address)
    else:
        path = Path(address).absolute()
        if path.is_dir():
            found = _in_folder(path)
        elif not path.exists():
            raise RequestFailed(MISSING, f"no such file or folder: {address}")
        else:
            found = _in_list(path) if path.suffix.lower() in LIST_SUFFIXES else [_described(str(path), path.parent)]
    if not found:
        raise RequestFailed(MISSING, f"no recordings in {address}: they are known by their extensions, as .mp3")
    by_name = {recording.name: recording for recording in found}
    if twice := next((one for one in found if by_name[one.name] != one), None):
        raise RequestFailed(
            "bad_list", f"{twice.address} and {by_name[twice.name].address} would have the same results: transcribe them apart"
        )
    return [by_name[name] for name in sorted(by_name)]


def _is_recording(name: str) -> bool:
    """Whether a file's name has the extension of a recording. Hidden files are uploads under way, as by rsync."""
    path = PurePosixPath(name)
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def _in_folder(folder: Path) -> list[Recording]:
    def refuse(error: OSError) -> None:
        raise RequestFailed(ACCESS_DENIED, f"cannot list {error.filename}: {error.strerror}")

    files = (Path(place) / name for place, _, names in os.walk(folder, onerror=refuse) for name in names if _is_recording(name))
    return [_described(str(file), folder) for file in files]


def _in_list(path: Path) -> list[Recording]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestFailed("bad_list", f"cannot read {path}: {error}") from None
    addresses = []
    for number, line in enumerate(lines, start=1):
        if text := line.strip():
            address = _listed(text, f"{path}, line {number}") if path.suffix.lower() == ".jsonl" else text
            addresses.append(address if address.startswith(S3) else str(path.parent / address))
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(lambda address: _described(address, path.parent), addresses))


def _listed(text: str, place: str) -> str:
    """The address in a line of JSON."""
    try:
        fields = json.loads(text)
        return next(str(fields[name]) for name in LIST_FIELDS if name in fields)
    except (ValueError, TypeError, StopIteration):
        raise RequestFailed("bad_list", f'{place}: expected a line as {{"audio": "talks/a.mp3"}}; got {text:.80}') from None


def _described(address: str, folder: Path) -> Recording:
    """The recording at an address, named by its path below `folder`, else by its whole address."""
    if address.startswith(S3):
        return _described_object(address)
    path = os.path.normpath(address)
    below = os.path.relpath(path, folder)
    name = path.lstrip("/") if below.startswith("..") else below
    try:
        status = Path(path).stat()
    except OSError:  # fetching it reports the error
        return Recording(name, path, -1, "")
    return Recording(name, path, status.st_size, str(status.st_mtime_ns))


def _described_object(address: str) -> Recording:
    bucket, _, key = address.removeprefix(S3).partition("/")
    try:
        with _explained(address):
            head = _client().head_object(Bucket=bucket, Key=key)
    except RequestFailed:  # fetching it reports the error
        return Recording(f"{bucket}/{key}", address, -1, "")
    return Recording(f"{bucket}/{key}", address, head["ContentLength"], head["ETag"].strip('"'))


def _in_bucket(address: str) -> list[Recording]:
    bucket, _, prefix = address.removeprefix(S3).partition("/")
    folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    found = []
    with _explained(address):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                key = item["Key"]
                if _is_recording(key) and (key == prefix or key.startswith(folder)):
                    name = key.removeprefix(folder) if key.startswith(folder) else PurePosixPath(key).name
                    found.append(Recording(name, f"{S3}{bucket}/{key}", item["Size"], item["ETag"].strip('"')))
    return found


# Reading a recording


@contextmanager
def fetched(recording: Recording) -> Iterator[Path]:
    """The recording as a file on this machine, the same from the beginning to the end of the block.

    Raises RequestFailed when it is not there, must not be read, or has changed since it was found: then it is perhaps
    still being uploaded.
    """
    if not recording.is_remote:
        _check_unchanged(recording)
        yield Path(recording.address)
        _check_unchanged(recording)
        return
    with tempfile.TemporaryDirectory(prefix="whisper-batch-") as folder:
        path = Path(folder) / PurePosixPath(recording.address).name
        _download(recording, path)
        yield path


def _check_unchanged(recording: Recording) -> None:
    try:
        status = Path(recording.address).stat()
        with Path(recording.address).open("rb"):
            pass
    except FileNotFoundError:
        raise RequestFailed(MISSING, f"there is no file {recording.address}") from None
    except OSError as error:
        raise RequestFailed(ACCESS_DENIED, f"cannot read {recording.address}: {error.strerror}") from None
    if (status.st_size, str(status.st_mtime_ns)) != (recording.size, recording.version):
        raise _changed(recording)


def _changed(recording: Recording) -> RequestFailed:
    return RequestFailed(
        CHANGED, f"{recording.address} has changed since the batch began: is it still being uploaded? Run again when it is whole"
    )


def _download(recording: Recording, path: Path) -> None:
    """Write the object into `path`, with further attempts when the connection breaks. Raises RequestFailed."""
    bucket, _, key = recording.address.removeprefix(S3).partition("/")
    condition = {"IfMatch": recording.version} if recording.version else {}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _explained(recording.address), path.open("wb") as file:
                for block in _client().get_object(Bucket=bucket, Key=key, **condition)["Body"].iter_chunks(BLOCK_BYTES):
                    file.write(block)
            return
        except RequestFailed as error:
            if error.kind == CHANGED:
                raise _changed(recording) from None
            if error.kind != CONNECTION or attempt == ATTEMPTS:
                raise
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))


@cache
def _client() -> Any:
    """The client for S3, whose keys, region and endpoint are those that AWS's own tools use. Raises RequestFailed."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise RequestFailed("no_package", "addresses of S3 need boto3: pip install boto3") from None
    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}, max_pool_connections=2 * REQUESTS))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Errors of S3 as RequestFailed."""
    _client()  # here, because without boto3 the imports below fail
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        reason = "there is no such bucket" if code == "NoSuchBucket" else error.response["Error"].get("Message") or code
        raise RequestFailed(_KINDS.get(code, CONNECTION), f"{address}: {reason} ({code})") from None
    except (NoCredentialsError, PartialCredentialsError):
        raise RequestFailed(ACCESS_DENIED, f"{address}: no keys for S3: set AWS_PROFILE, or give the machine a role") from None
    except (BotoCoreError, OSError) as error:
        raise RequestFailed(CONNECTION, f"{address}: {error}") from None


# The output


class Place(Protocol):
    """A place for results, by name. All methods raise RequestFailed."""

    address: str

    def names(self) -> set[str]:
        """All names that are there."""

    def read(self, name: str) -> bytes:
        """The content of a name; empty when there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write the whole content, or nothing."""


def open_place(address: str) -> Place:
    """The place at an address, created if it is a folder. Raises RequestFailed when nothing can be written there."""
    if address.startswith(S3):
        return Bucket(address)
    folder = Path(address).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestFailed(NOT_SAVED, f"cannot write into {folder}: {error.strerror}") from None
    return Folder(folder)


class Folder:
    """A folder of this machine, or one that all machines share."""

    def __init__(self, path: Path) -> None:
        self.address, self.path = str(path), path

    def names(self) -> set[str]:
        """The paths of all files, below the folder."""
        return {file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file()}

    def read(self, name: str) -> bytes:
        """The content of a file."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RequestFailed(ACCESS_DENIED, f"cannot read {self.path / name}: {error.strerror}") from None

    def write(self, name: str, content: bytes) -> None:
        """Write a file under a temporary name, and rename it when it is whole."""
        if {"", ".", ".."} & set(name.split("/")):  # a key of S3 may have such parts
            raise RequestFailed(NOT_SAVED, f"{name} is no name for a file below {self.path}: rename the recording")
        path = self.path / name
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            raise RequestFailed(NOT_SAVED, f"cannot write {path}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)


class Bucket:
    """A prefix of S3. An object appears when it is whole."""

    def __init__(self, address: str) -> None:
        bucket, _, prefix = address.removeprefix(S3).partition("/")
        self.address, self._bucket, self._prefix = address, bucket, prefix and f"{prefix.rstrip('/')}/"

    def names(self) -> set[str]:
        """The keys of all objects, below the prefix."""
        with _explained(self.address):
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            return {item["Key"].removeprefix(self._prefix) for page in pages for item in page.get("Contents", ())}

    def read(self, name: str) -> bytes:
        """The content of an object."""
        try:
            with _explained(f"{S3}{self._bucket}/{self._prefix}{name}"):
                content: bytes = _client().get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
                return content
        except RequestFailed as error:
            if error.kind == MISSING:
                return b""
            raise

    def write(self, name: str, content: bytes) -> None:
        """Put an object."""
        with _explained(f"{S3}{self._bucket}/{self._prefix}{name}"):
            _client().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)
