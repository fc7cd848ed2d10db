"""The npm packages of the tests, as package-lock.json names them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent
ROOT = SOURCES.parents[1]


def node_project() -> Path:
    """A copy of tests/node with its packages in the state folder; they are installed again when the lock file changes.

    Skips the test when node or npm is missing.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed: the tests with npm packages are left out")
    folder = Path(os.environ.get("WHISPER_STATE_DIR") or ROOT / "build") / "node"
    lock = folder / "package-lock.json"
    up_to_date = lock.is_file() and lock.read_bytes() == (SOURCES / "package-lock.json").read_bytes() and (folder / "node_modules").is_dir()
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    if not up_to_date:
        done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            lock.unlink()
            pytest.fail(f"npm ci failed: {done.stderr}")
    return folder
