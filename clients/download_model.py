#!/usr/bin/env python3
"""Fetch one of OpenAI's Whisper checkpoints into whisper-models/, checked by its SHA-256; run again to continue a broken download.

python clients/download_model.py large-v3-turbo
python clients/download_model.py --list
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

BASE_URL = "https://openaipublic.azureedge.net/main/whisper/models"
"""Where OpenAI publishes its checkpoints, as BASE_URL/SHA256/FILE."""
SHA256 = {
    "tiny.en": "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
    "tiny": "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9",
    "base.en": "25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead",
    "base": "ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e",
    "small.en": "f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872",
    "small": "9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794",
    "medium.en": "d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f",
    "medium": "345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1",
    "large-v1": "e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a",
    "large-v2": "81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524",
    "large-v3": "e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb",
    "large-v3-turbo": "aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a",
}
ALIASES = {"large": "large-v3", "turbo": "large-v3-turbo"}
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "whisper-models"
BLOCK = 1 << 16
"""Bytes; what a cut connection loses at most."""
TIMEOUT_SECONDS = (10.0, 60.0)
ATTEMPTS = 5


class DownloadFailed(Exception):
    """The message says what to do."""


class _Cut(Exception):
    """The connection ended before the file did: worth another attempt."""


def download(name: str, folder: Path, *, base_url: str = BASE_URL, pause: float = 2.0, quiet: bool = False) -> Path:
    """The path of the checkpoint `name` in `folder`, fetched unless it is there already. Raises DownloadFailed.

    A broken connection is continued up to 5 times, `pause` seconds apart; what has arrived stays in NAME.pt.part.
    """
    name = ALIASES.get(name, name)
    if name not in SHA256:
        raise DownloadFailed(f"unknown model '{name}'; known: {', '.join((*SHA256, *ALIASES))}")
    target = folder / f"{name}.pt"
    with _progress(quiet) as progress:
        if target.exists():
            _verify(target, SHA256[name], progress)
            return target
        part = target.with_name(f"{target.name}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(f"{base_url.rstrip('/')}/{SHA256[name]}/{name}.pt", part, progress, pause)
            _verify(part, SHA256[name], progress)
            part.replace(target)
        except OSError as error:
            raise DownloadFailed(f"cannot write {part}: {error.strerror or error}") from None
    return target


def _fetch(url: str, part: Path, progress: Progress, pause: float) -> None:
    """Fill `part` from where it ends, with another attempt after a cut connection."""
    task = progress.add_task(part.name.removesuffix(".part"), total=None)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _append(url, part, progress, task)
        except _Cut as error:
            if attempt == ATTEMPTS:
                raise DownloadFailed(f"{url}: {error}; run the same command again to continue") from None
            time.sleep(pause)


def _append(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """One request for what `part` lacks. Raises _Cut when it ends early."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is lacking, or the file is another: its hash will tell
            _check(response)
            if response.status_code != requests.codes.partial_content:
                have = 0  # the server ignores Range and sends all of it
            _write(response, part, have, progress, task)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Cut(_reason(error)) from None


def _check(response: requests.Response) -> None:
    if response.status_code >= 500 or response.status_code == requests.codes.too_many_requests:
        raise _Cut(f"the server answers {response.status_code}")
    if not response.ok:
        raise DownloadFailed(f"{response.url}: the server answers {response.status_code} {response.reason}; is --base-url right?")


def _write(response: requests.Response, part: Path, have: int, progress: Progress, task: TaskID) -> None:
    """Write the answer's body into `part` from byte `have` on."""
    length = int(response.headers.get("Content-Length", 0))
    free = shutil.disk_usage(part.parent).free
    if length > free:
        raise DownloadFailed(f"{part.parent} has {free / 1e9:.1f} GB free, {length / 1e9:.1f} GB are needed: free some, or use --dir")
    progress.update(task, completed=have, total=have + length if length else None)
    with part.open("ab") as file:
        file.truncate(have)
        for block in response.iter_content(BLOCK):
            file.write(block)
            progress.advance(task, len(block))
        if file.tell() < have + length:
            raise _Cut(f"the connection ended after {file.tell()} of {have + length} bytes")


def _verify(path: Path, expected: str, progress: Progress) -> None:
    """Compare the file's hash. Raises DownloadFailed; a wrong .part is deleted, a finished file is the user's own and stays."""
    task = progress.add_task(f"checking {path.name}", total=path.stat().st_size)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            progress.advance(task, len(block))
    if digest.hexdigest() == expected:
        return
    if path.suffix != ".part":
        raise DownloadFailed(f"{path} exists and is not OpenAI's file of that name: move it away, or use --dir")
    path.unlink()
    raise DownloadFailed(
        f"{path.name} arrived damaged (SHA-256 {digest.hexdigest()[:12]}…, not {expected[:12]}…) and was deleted: run again"
    )


def _reason(error: requests.RequestException) -> str:
    """requests' error in a few words."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return "no connection: check the network (HTTPS_PROXY is honoured), or fetch the file elsewhere and put it there"


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 the checkpoint is there, 1 it is not (one line on standard error), 130 Ctrl-C. Prints the file's path."""
    parser = argparse.ArgumentParser(description="Fetch one of OpenAI's Whisper checkpoints, checked by its SHA-256.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="see --list")
    parser.add_argument("--list", action="store_true", help="the names, one a line")
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="where to put it (default: whisper-models)")
    address = os.environ.get("WHISPER_DOWNLOAD_URL", BASE_URL)
    parser.add_argument("--base-url", default=address, help="a mirror of OpenAI's folder (or WHISPER_DOWNLOAD_URL)")
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join((*SHA256, *(f"{alias} = {name}" for alias, name in ALIASES.items()))))
        return 0
    if arguments.name is None:
        parser.error("which model? --list shows the names")
    try:
        print(download(arguments.name, arguments.dir, base_url=arguments.base_url, quiet=not sys.stderr.isatty()))
    except DownloadFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
