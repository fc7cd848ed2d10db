"""A real gateway over the bundled model, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.serve.server import FOREIGN, ROOT, free_ports, wait_for

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Gateway:
    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@contextmanager
def running_gateway(folder: Path, **environment: str) -> Iterator[Gateway]:
    """Started with the variables `environment`; its files lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    inherited = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    settings = {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "WHISPER_MODEL": "nano",
        "WHISPER_ENGINE": "ct2",
        "WHISPER_DEVICE": "cpu",
        "WHISPER_STATE_DIR": str(folder),
        "WHISPER_GATEWAY_ADDRESS": url,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway"], cwd=ROOT, env=inherited | settings | environment, stdout=log, stderr=subprocess.STDOUT
        )
    gateway = Gateway(url, process)
    try:
        wait_for(lambda: _is_ready(gateway), START_SECONDS, "the gateway is not ready")
        yield gateway
    finally:
        if process.poll() is None:
            gateway.stop()


def _is_ready(gateway: Gateway) -> bool:
    assert gateway.process.poll() is None, "the gateway has ended: see its log"
    try:
        return requests.get(f"{gateway.url}/ping", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False
