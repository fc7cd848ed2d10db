"""Downloads a file over HTTP: resumed after a cut connection, its hash verified, published under its name when
complete."""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

BLOCK = 1 << 16
"""Bytes per write: the most that a cut connection can lose."""
CONTACT_SECONDS = 6.0
"""How long a server may take to begin its answer, including the DNS look-up."""
TIMEOUT_SECONDS = (4.0, 20.0)
"""Time-outs of connecting and of reading."""
ATTEMPTS = 5
FIRST_ATTEMPTS = 3
"""Attempts at a server that has sent nothing of the file yet."""
LINE_SECONDS = 20.0
"""Time between two lines of progress when there is no terminal for a progress bar."""
_LARGE_BYTES = 10_000_000
"""Only files above this size get lines of progress."""
GIT_DIGITS, SHA256_DIGITS = 40, 64
"""Hexadecimal digits of git's hash of a blob (SHA-1) and of SHA-256."""


class DownloadFailed(Exception):
    """The download failed. The message says what to do."""


class Blocked(DownloadFailed):
    """The disk is full, the folder cannot be written, or the name is taken: another source would not help."""


class ConnectionCut(Exception):
    """The connection ended before the file did: another attempt may help."""


def fetch_file(url: str, target: Path, expected: str, pause: float, progress: Progress, headers: Mapping[str, str]) -> None:
    """Download `target`, which appears when it is complete and its hash is `expected`.

    An interrupted download stays in a .part and is resumed, also within this call, `pause` seconds after the connection
    was cut. Raises DownloadFailed.
    """
    part = target.with_name(f"{target.name}.part")
    _fetch(url, part, pause, progress, headers)
    actual = digest(part, expected, progress)
    if actual != expected:
        part.unlink()
        raise DownloadFailed(f"{target.name} arrived damaged (hash {actual[:12]}…, not {expected[:12]}…) and was deleted: run again")
    publish(part, target)


def publish(part: Path, target: Path) -> None:
    """Rename a complete file or folder to `target`, readable for all users whatever the umask."""
    for path in [part, *part.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    part.replace(target)


def _fetch(url: str, part: Path, pause: float, progress: Progress, headers: Mapping[str, str]) -> None:
    """Download the rest of `part`, with further attempts after a cut connection."""
    task, began, attempt = progress.add_task(part.name.removesuffix(".part"), total=None), time.monotonic(), 1
    size_before = _size(part)
    while True:
        try:
            _append(url, part, progress, task, headers)
            break
        except ConnectionCut as error:
            if attempt == (ATTEMPTS if _size(part) > size_before else FIRST_ATTEMPTS):
                raise DownloadFailed(f"{url}: {error}; run the same command again to continue") from None
            time.sleep(pause)
            attempt += 1
    if progress.disable and _size(part) > _LARGE_BYTES:
        say(progress, f"fetched {part.name.removesuffix('.part')}: {_size(part) / 1e6:.0f} MB in {time.monotonic() - began:.0f} s")


def _append(url: str, part: Path, progress: Progress, task: TaskID, headers: Mapping[str, str]) -> None:
    """One request for the rest of `part`.

    Raises ConnectionCut when it ends early, DownloadFailed when the server is unreachable.
    """
    have = _size(part)
    headers = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with open_url(url, headers) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # the part is complete, or of another file: the hash shows which
            check(response)
            restarts = response.status_code != requests.codes.partial_content  # the server ignores Range
            if restarts and 0 < int(response.headers.get("Content-Length", 0)) < have:
                raise DownloadFailed(f"{url}: the server answers with less than has arrived already: it is not the file")
            _write(response, part, 0 if restarts else have, progress, task)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise ConnectionCut(reason(error)) from None


def open_url(url: str, headers: Mapping[str, str]) -> requests.Response:
    """The response, its body unread. Raises DownloadFailed for a server that cannot be reached within a few seconds."""
    answers = queue.SimpleQueue[requests.Response | Exception]()

    def ask() -> None:
        try:
            answers.put(requests.get(url, headers=dict(headers), stream=True, timeout=TIMEOUT_SECONDS))
        except Exception as error:  # raised in the waiting thread
            answers.put(error)

    # DNS look-ups have no time limit of their own: https://github.com/psf/requests/issues/2651
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONTACT_SECONDS)
    except queue.Empty:
        answer = requests.ConnectTimeout()
    if isinstance(answer, requests.ConnectionError | requests.Timeout):
        raise DownloadFailed(f"{url}: {reason(answer)}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def check(response: requests.Response) -> None:
    """Raise ConnectionCut for a busy server, DownloadFailed for any other error status and for a web page."""
    if response.status_code >= 500 or response.status_code == requests.codes.too_many_requests:
        raise ConnectionCut(f"the server answers {response.status_code}")
    if response.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        advice = "is the name right? A model behind a gate needs its terms accepted there, and HF_TOKEN"
        raise DownloadFailed(f"{response.url}: the server answers {response.status_code}; {advice}")
    if not response.ok:
        advice = "is the name right, or the server's address?"
        raise DownloadFailed(f"{response.url}: the server answers {response.status_code} {response.reason}; {advice}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadFailed(f"{response.url}: a web page comes instead of the file: does the network want you to log in?")


def _write(response: requests.Response, part: Path, have: int, progress: Progress, task: TaskID) -> None:
    """Write the response's body into `part` from byte `have` on."""
    length = int(response.headers.get("Content-Length", 0))
    free = shutil.disk_usage(part.parent).free
    if length > free:
        raise Blocked(f"{part.parent} has {free / 1e9:.1f} GB free, {length / 1e9:.1f} GB are needed: free some, or use --dir")
    progress.update(task, completed=have, total=have + length if length else None)
    printed = time.monotonic()
    if progress.disable and length > _LARGE_BYTES:
        say(progress, f"fetching {part.name.removesuffix('.part')}: {length / 1e6:.0f} MB from {urlsplit(response.url).hostname}")
    with part.open("ab") as file:
        file.truncate(have)
        for block in response.iter_content(BLOCK):
            file.write(block)
            progress.advance(task, len(block))
            if progress.disable and time.monotonic() - printed > LINE_SECONDS:
                printed = time.monotonic()
                say(progress, f"{file.tell() / 1e6:.0f} of {(have + length) / 1e6:.0f} MB")
        if file.tell() < have + length:
            raise ConnectionCut(f"the connection ended after {file.tell()} of {have + length} bytes")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def digest(path: Path, expected: str, progress: Progress) -> str:
    """The file's hash in hexadecimal: of the kind of `expected`, which is git's of a blob if it has 40 digits, else
    SHA-256."""
    size = path.stat().st_size
    task = progress.add_task(f"checking {path.name.removesuffix('.part')}", total=size)
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if len(expected) == GIT_DIGITS else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            progress.advance(task, len(block))
    return digest.hexdigest()


def reason(error: requests.RequestException) -> str:
    """An error of requests in a few words."""
    if isinstance(error, requests.Timeout):
        return f"no answer within {CONTACT_SECONDS:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted: is the connection intercepted? REQUESTS_CA_BUNDLE names further certificates"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not let it through: check HTTPS_PROXY"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return "no connection: check the network (HTTPS_PROXY is honoured), or fetch the file elsewhere and put it there"


def say(progress: Progress, line: str) -> None:
    """Print a line on standard error, above the progress bars."""
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def open_progress(quiet: bool) -> Progress:
    """The progress bars on standard error; none if `quiet`."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet)
