"""Every engine behind the real server: chosen by one variable, printed at the start, asked for a transcript over HTTP."""

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

Start = Callable[..., Server]

PACKAGES = {
    "openai": "whisper",
    "torch": "torch",
    "ct2": "ctranslate2",
    "hf": "transformers",
    "jax": "jax",
    "onnx": "onnx",
    "sherpa": "sherpa_onnx",
}
"""A package of each engine's own."""


def installed(name: str) -> str:
    """`name`, when the packages of its engine are here."""
    if not find_spec(PACKAGES[name]):
        pytest.skip(f"engine {name} is not installed: pip install -r requirements-{name}.txt")
    return name


@pytest.mark.parametrize("name", PACKAGES)
def test_it_transcribes(start: Start, name: str) -> None:
    server = start(WHISPER_ENGINE=installed(name), WHISPER_DTYPE="float32", WHISPER_THREADS="1", WHISPER_BATCH_SIZE="2").wait_until_ready()
    for told in (f"engine {name}", "model nano", "device cpu", "precision float32", "threads 1", "batch 2"):
        assert f"{told}, " in server.said.replace(";", ",")
    reply = requests.post(server.url, data=(SAMPLES / "timer.flac").read_bytes(), timeout=120)
    assert (reply.status_code, words(reply.json()["text"])) == (200, words(TRANSCRIPTS["timer.flac"]))
    assert server.stop() == 0


def without(package: str, folder: Path) -> Path:
    """The tests' environment but for a package; symbolic links, so made in no time."""
    if not (configured := Path(sys.prefix) / "pyvenv.cfg").is_file():
        pytest.skip("the tests do not run in a virtual environment, of which another could be made")
    here = Path(sysconfig.get_path("purelib"))
    there = folder / here.relative_to(sys.prefix)
    there.mkdir(parents=True)
    for each in here.iterdir():
        if each.name != package:
            (there / each.name).symlink_to(each)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    shutil.copy(configured, folder)
    return folder


def test_a_missing_package_is_told_before_anything_is_served(start: Start, tmp_path: Path) -> None:
    server = start(WHISPER_ENGINE=installed("jax"), WHISPER_VENV=str(without("jax", tmp_path / "venv")))
    assert server.wait_until_over(120) == 1, server.said
    line = server.said.splitlines()[-1]
    assert "engine 'jax' cannot be imported" in line and "pip install -r requirements-jax.txt" in line
