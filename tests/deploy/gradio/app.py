"""The Gradio app as its README starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.serve.server import FOREIGN, ROOT, free_ports, wait_for


@contextmanager
def running_app(server: str, log: Path, **environment: str) -> Iterator[str]:
    """The address of an app before the server at the address `server`."""
    pytest.importorskip("gradio", reason="gradio is not installed (deploy/gradio/requirements.txt): the app is not tested")
    port = free_ports(1)[0]
    inherited = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    settings = {"WHISPER_SERVER_URL": server, "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        command = [sys.executable, "-m", "deploy.gradio.app"]
        process = subprocess.Popen(command, cwd=ROOT, env=inherited | settings | environment, stdout=file, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for(lambda: _answers(address, process), 120, "the app does not answer")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the app has ended: see its log"
    try:
        return requests.get(address, timeout=10).ok
    except requests.ConnectionError:
        return False
