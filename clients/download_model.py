#!/usr/bin/env python3
"""Fetch a Whisper checkpoint into whisper-models/, checked by its hashes; run again to continue a broken download.

python clients/download_model.py large-v3-turbo             # OpenAI's .pt
python clients/download_model.py large-v3-turbo --ct2       # the same, converted for CTranslate2: faster-whisper's folder
python clients/download_model.py distil-large-v3            # a name that only faster-whisper has
python clients/download_model.py OWNER/NAME                 # a repository of the Hugging Face Hub, for any engine
python clients/download_model.py large-v3-turbo --verify    # fetch nothing, check what is there
python clients/download_model.py --list
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment

environment.enter()

import requests  # noqa: E402
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
REPOSITORIES = {
    **{name: f"Systran/faster-whisper-{name}" for name in SHA256 if name != "large-v3-turbo"},
    **{name: f"Systran/faster-distil-whisper-{name[7:]}" for name in ("distil-large-v2", "distil-medium.en", "distil-small.en")},
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
"""Where on the Hugging Face Hub faster-whisper finds the model of a name, converted for CTranslate2."""
SUMS = "SHA256SUMS"
"""In a folder that was fetched, for sha256sum too."""
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "whisper-models"
BLOCK = 1 << 16
"""Bytes; what a cut connection loses at most."""
TIMEOUT_SECONDS = (10.0, 60.0)
ATTEMPTS = 5


_GIT, _SHA256 = 40, 64
"""Digits of a hash."""


class DownloadFailed(Exception):
    """The message says what to do."""


class _Cut(Exception):
    """The connection ended before the file did: worth another attempt."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to fetch from: `base_url` for OpenAI's files; `hub` for repositories, the Hugging Face Hub when empty.

    A broken connection is continued up to 5 times, `pause` seconds apart.
    """

    base_url: str = BASE_URL
    hub: str = ""
    pause: float = 2.0


def download(
    name: str, folder: Path, sources: Sources | None = None, *, ct2: bool = False, quiet: bool = False, fetch: bool = True
) -> Path:
    """The path of the checkpoint `name` in `folder`, fetched unless it is there already. Raises DownloadFailed.

    `ct2`: the one converted for CTranslate2. Without `fetch` it must be there. What has arrived of a broken download stays in a .part.
    """
    name, sources = ALIASES.get(name, name), sources or Sources()
    repository = name if "/" in name else REPOSITORIES.get(name) if ct2 or name not in SHA256 else None
    if repository is None and (ct2 or name not in SHA256):
        known = ", ".join((*SHA256, *ALIASES, *(name for name in REPOSITORIES if name not in SHA256)))
        raise DownloadFailed(f"unknown model '{name}'; known: {known}, and OWNER/NAME on the Hugging Face Hub")
    target = folder / (repository or f"{name}.pt")
    with _progress(quiet) as progress:
        try:
            if target.exists():
                _verify_whole(target, name, progress)
            elif not fetch:
                raise DownloadFailed(f"{target} is not there; get it: the same command without --verify")
            elif repository:
                _fetch_repository(repository, target, sources, progress)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                url = f"{sources.base_url.rstrip('/')}/{SHA256[name]}/{name}.pt"
                _fetch_whole(url, target, SHA256[name], sources, progress, {})
        except requests.RequestException as error:  # which is an OSError, too
            raise DownloadFailed(f"{target.name} cannot be fetched: {error}; is the server's address right?") from None
        except OSError as error:
            raise DownloadFailed(f"cannot write {error.filename or target}: {error.strerror or error}") from None
    return target


def _fetch_repository(repository: str, target: Path, sources: Sources, progress: Progress) -> None:
    """Fill the folder `target`, which appears when all of it has arrived and is what the Hub says it is."""
    hub, headers = _hub(sources.hub)
    revision, hashes = _listing(f"{hub}/api/models/{repository}/revision/main", headers)
    part = target.with_name(f".{target.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    for file, expected in hashes.items():
        if not (part / file).is_file() or _digest(part / file, expected, progress) != expected:
            _fetch_whole(f"{hub}/{repository}/resolve/{revision}/{file}", part / file, expected, sources, progress, headers)
    sums = {file: known if len(known) == _SHA256 else _digest(part / file, "", progress) for file, known in hashes.items()}
    (part / SUMS).write_text("".join(f"{digest}  {file}\n" for file, digest in sums.items()))
    part.replace(target)


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
        with requests.get(url, params={"blobs": "true"}, headers=dict(headers), timeout=TIMEOUT_SECONDS) as response:
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
    part.replace(target)


def _fetch(url: str, part: Path, sources: Sources, progress: Progress, headers: Mapping[str, str]) -> None:
    """Fill `part` from where it ends, with another attempt after a cut connection."""
    task = progress.add_task(part.name.removesuffix(".part"), total=None)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _append(url, part, progress, task, headers)
        except _Cut as error:
            if attempt == ATTEMPTS:
                raise DownloadFailed(f"{url}: {error}; run the same command again to continue") from None
            time.sleep(sources.pause)


def _append(url: str, part: Path, progress: Progress, task: TaskID, headers: Mapping[str, str]) -> None:
    """One request for what `part` lacks. Raises _Cut when it ends early."""
    have = part.stat().st_size if part.exists() else 0
    sent = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=sent, stream=True, timeout=TIMEOUT_SECONDS) as response:
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
    if response.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        advice = "is the name right? A model behind a gate needs its terms accepted there, and HF_TOKEN"
        raise DownloadFailed(f"{response.url}: the server answers {response.status_code}; {advice}")
    if not response.ok:
        advice = "is the name right, or the server's address?"
        raise DownloadFailed(f"{response.url}: the server answers {response.status_code} {response.reason}; {advice}")


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


def _verify_whole(target: Path, name: str, progress: Progress) -> None:
    """Compare what is there with the hashes known of it. Raises DownloadFailed; what is there is the user's own and stays."""
    known = {target: SHA256[name]} if target.is_file() and name in SHA256 else _sums(target)
    for path, expected in known.items():
        if not path.is_file():
            raise DownloadFailed(f"{path} is missing: move {target} away, and fetch it again")
        if _digest(path, expected, progress) != expected:
            raise DownloadFailed(f"{path} exists and is not the published file of that name: move it away, or use --dir")


def _sums(folder: Path) -> dict[Path, str]:
    sums = folder / SUMS
    if not sums.is_file():
        raise DownloadFailed(f"{folder} exists and was not fetched by this command, it has no {SUMS}: move it away, or use --dir")
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
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return "no connection: check the network (HTTPS_PROXY is honoured), or fetch the file elsewhere and put it there"


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


def _names() -> str:
    """What --list prints."""
    aliases = (f"{alias} = {name}" for alias, name in ALIASES.items())
    others = (f"{name} = {repository}" for name, repository in REPOSITORIES.items() if name not in SHA256)
    return "\n".join((*SHA256, *aliases, *others))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 the checkpoint is there, 1 it is not (one line on standard error), 130 Ctrl-C. Prints its path."""
    parser = argparse.ArgumentParser(description="Fetch a Whisper checkpoint, checked by its hashes.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="see --list; or OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("--list", action="store_true", help="the names, one a line")
    parser.add_argument("--ct2", action="store_true", help="converted for engine ct2, as faster-whisper fetches it")
    parser.add_argument("--verify", action="store_true", help="fetch nothing: check the hashes of what is there")
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="where to put it (default: whisper-models)")
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
    except DownloadFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
