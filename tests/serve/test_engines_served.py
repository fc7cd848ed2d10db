"""Every engine behind the real server: selected by WHISPER_ENGINE, named in the ready line, and transcribing over
HTTP."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, words
from tests.serve.server import Server
from whispercore.catalogue import ENGINES

Start = Callable[..., Server]


def installed(name: str) -> str:
    """`name` if the engine's package is installed; otherwise the test is skipped."""
    if not find_spec(ENGINES[name].module):
        pytest.skip(f"engine {name} is not installed: pip install -r requirements-{name}.txt")
    return name


@pytest.mark.parametrize("name", [name for name, entry in ENGINES.items() if entry.package])
def test_it_transcribes(start: Start, name: str) -> None:
    server = start(WHISPER_ENGINE=installed(name), WHISPER_DTYPE="float32", WHISPER_THREADS="1", WHISPER_BATCH_SIZE="2").wait_until_ready()
    for fact in (f"engine {name}", "model nano", "device cpu", "precision float32", "threads 1", "batch 2"):
        assert f"{fact}, " in server.output.replace(";", ",")
    reply = requests.post(server.url, data=(SAMPLES / "timer.flac").read_bytes(), timeout=120)
    assert (reply.status_code, words(reply.json()["text"])) == (200, words(TRANSCRIPTS["timer.flac"]))
    assert server.stop() == 0


def without(package: str, folder: Path) -> Path:
    """A copy of the tests' environment without one package, made of symbolic links."""
    if not (configuration := Path(sys.prefix) / "pyvenv.cfg").is_file():
        pytest.skip("the tests do not run in a virtual environment, which could be copied")
    packages = Path(sysconfig.get_path("purelib"))
    copy = folder / packages.relative_to(sys.prefix)
    copy.mkdir(parents=True)
    for path in packages.iterdir():
        if path.name != package:
            (copy / path.name).symlink_to(path)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    shutil.copy(configuration, folder)
    return folder


def test_a_missing_package_is_an_error_at_the_start(start: Start, tmp_path: Path) -> None:
    server = start(WHISPER_ENGINE=installed("jax"), WHISPER_VENV=str(without("jax", tmp_path / "venv")))
    assert server.wait_until_over(120) == 1, server.output
    line = server.output.splitlines()[-1]
    assert "engine 'jax' cannot be imported" in line and "pip install -r requirements-jax.txt" in line
