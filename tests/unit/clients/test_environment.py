"""Clients that are started with any Python: they go on in serve.sh's environment, or say in one line what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = Path(__file__).resolve().parents[3] / "clients"


def checkout(place: Path) -> Path:
    """A folder with the clients alone; returns it."""
    shutil.copytree(CLIENTS, place / "checkout" / "clients", ignore=shutil.ignore_patterns("__pycache__"))
    return place / "checkout"


def python(folder: Path) -> Path:
    """An environment whose Python tells how it was called."""
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$0 $*"\n')
    program.chmod(0o755)
    (folder / ".requirements").touch()
    return program


def run(root: Path, client: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A client under a Python that has no packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "XDG_", "PYTHON"))}
    command = [sys.executable, "-S", str(root / "clients" / client), *arguments]
    return subprocess.run(command, env=kept | {"HOME": str(root)} | variables, cwd=root.parent, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "checkout/build/venv"),
        ({}, "checkout/.local/state/whisper-torchserve/venv"),
        ({"XDG_STATE_HOME": "state"}, "state/whisper-torchserve/venv"),
        ({"WHISPER_STATE_DIR": "mine"}, "mine/venv"),
        ({"WHISPER_VENV": "own"}, "own"),
    ],
)
def test_a_client_goes_on_in_the_servers_environment(tmp_path: Path, variables: dict[str, str], folder: str) -> None:
    root, program = checkout(tmp_path), python(tmp_path / folder)
    told = {name: str(tmp_path / value) for name, value in variables.items()}
    done = run(root, "download_model.py", "base", "--dir", "a folder", **told)
    assert done.stdout == f"{program} {root / 'clients' / 'download_model.py'} base --dir a folder\n", done.stderr


@pytest.mark.parametrize("unfinished", [False, True])
def test_without_one_a_line_says_how_to_get_the_package(tmp_path: Path, unfinished: bool) -> None:
    root = checkout(tmp_path)
    if unfinished:
        python(root / "build" / "venv")
        (root / "build" / "venv" / ".requirements").unlink()
    for client, package, file in (
        ("download_model.py", "requests", "clients/requirements.txt"),
        ("convert_model.py", "torch", "requirements.txt"),
    ):
        done = run(root, client, "base")
        assert done.returncode == 1
        how = f"run ./serve.sh --setup once; or, in a virtual environment: pip install -r {file}"
        assert done.stderr == f"error: {client} needs the package {package}: {how}\n"


def test_an_environment_that_lacks_the_package_is_not_entered_twice(tmp_path: Path) -> None:
    """Its Python is this one, so that it looks like another for ever."""
    root, own = checkout(tmp_path), tmp_path / "own"
    (own / "bin").mkdir(parents=True)
    (own / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (own / "bin" / "python").chmod(0o755)
    done = run(root, "download_model.py", "base", WHISPER_VENV=str(own))
    assert done.returncode == 1 and done.stderr.startswith("error: download_model.py needs the package requests")


def test_another_error_is_reported_as_ever(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "clients" / "broken.py").write_text("import environment\nenvironment.enter()\nraise ValueError('a bug')\n")
    done = run(root, "broken.py")
    assert "Traceback" in done.stderr and "ValueError: a bug" in done.stderr


def test_who_imports_a_client_stays_where_it_is(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    python(root / "build" / "venv")
    command = [sys.executable, "-c", "import sys; sys.path[:0] = ['clients']; import download_model; print('here')"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout == "here\n", done.stderr
