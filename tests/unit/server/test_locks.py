"""The lock files, checked without a network: each one satisfies its requirements file, and all agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ROOT / "locks"
DEVICE = re.compile("torch|triton|nvidia-.*|cuda-.*")
"""Packages whose build depends on the device: server/lock.sh leaves them out."""
ENVIRONMENT = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "platform_system": "Linux"}
LOCKED = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+) \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def requirements_files() -> list[Path]:
    files = [*ROOT.glob("requirements*.txt"), ROOT / "clients" / "requirements.txt", *ROOT.glob("deploy/**/requirements*.txt")]
    return sorted(files)


def setup(command: str) -> str:
    """What a command prints that has sourced server/setup.sh."""
    script = f'ROOT={ROOT}; . "$ROOT/server/setup.sh"; {command}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def lock_of(file: Path) -> Path:
    return Path(setup(f"lock_of {file.relative_to(ROOT)}"))


def locked(lock: Path) -> dict[str, str]:
    """The version of each package in a lock file. The file has nothing but versions with hashes."""
    text = lock.read_text()
    assert LOCKED.sub("", text) == "", f"{lock.name} has other lines"
    return {match["name"]: match["version"] for match in LOCKED.finditer(text)}


def required(text: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return [item for item in requirements if item.marker is None or item.marker.evaluate(ENVIRONMENT)]


@pytest.mark.parametrize("file", requirements_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_lock_satisfies_its_requirements(file: Path) -> None:
    versions = locked(lock_of(file))
    for item in required(file.read_text()):
        if not DEVICE.fullmatch(item.name):
            assert item.specifier.contains(versions[canonicalize_name(item.name)], prereleases=True), f"run server/lock.sh: {item}"
    assert not [name for name in versions if DEVICE.fullmatch(name)]


def test_java_is_locked() -> None:
    (package,) = required(setup('echo "$JAVA_PACKAGE"'))
    assert package.specifier.contains(locked(LOCKS / "java.txt")[package.name])


def test_every_lock_belongs_to_a_requirements_file() -> None:
    assert {path.name for path in LOCKS.iterdir()} == {lock_of(file).name for file in requirements_files()} | {"java.txt"}


def test_a_package_has_one_version_in_all_locks() -> None:
    versions = defaultdict[str, set[str]](set)
    for lock in LOCKS.iterdir():
        for name, version in locked(lock).items():
            versions[name].add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_another_python_is_refused(tmp_path: Path) -> None:
    """The environment's Python is a stand-in that says 3.9."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)
    bash = shutil.which("bash")
    assert bash
    script = f'ROOT={ROOT}; . "$ROOT/server/setup.sh"; WHISPER_LOCKED=1 pip_locked {tmp_path} all requirements.txt'
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "WHISPER_LOCKED=1 needs Python 3.11" in done.stderr
