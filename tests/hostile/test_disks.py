"""Disks that fill up while the server runs: transcription needs none, and goes on. A worker that must start waits for room."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.conftest import Figure, Start
from tests.hostile.load import TIMER, ended, good_after, seconds_until, under_load
from tests.serve.server import Server

pytestmark = [pytest.mark.serve, pytest.mark.slow]
SIZE = "300m"
"""Of the small disk: serve.sh wants 200 MB."""
REQUESTS = 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because sockets lie in TEMP."""
    with tempfile.TemporaryDirectory(prefix="disk-") as name:
        yield Path(name)


def on_small_disk(folder: Path) -> tuple[str, ...]:
    """The beginning of a command whose process sees a small file system in `folder`, and no other process does."""
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", f'mount -t tmpfs -o size={SIZE} tmpfs {folder} && exec "$@"', "sh")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("mounting in a user namespace is not allowed, so there is no small file system to fill")
    return prefix


def seen_by(server: Server, folder: Path) -> Path:
    """The folder as the server sees it."""
    return Path(f"/proc/{server.process.pid}/root{folder}")


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """The block runs while the disk of the folder has no byte left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    assert not os.statvfs(folder).f_bavail
    yield
    filler.unlink()


def answered(server: Server) -> int:
    """How many of `REQUESTS` good requests, all at once, are answered."""
    with under_load(server) as load:
        return sum(request.result().is_good for request in load.send(REQUESTS, TIMER))


def test_a_full_temporary_folder(start: Start, folder: Path, figure: Figure) -> None:
    server = start(prefix=on_small_disk(folder), TEMP=str(folder))
    door = server.gateway("gateway")
    with full(seen_by(server, folder)):
        good, refusal = answered(server), ended(door)
        (worker,) = server.processes("model_service_worker")
        os.kill(worker, signal.SIGKILL)
        seconds_until(lambda: worker not in server.processes("model_service_worker"), time.monotonic())
    began = time.monotonic()
    recovered = good_after(door, began)
    figure(
        f"TEMP full: {good} of {REQUESTS} requests to TorchServe answered; the gateway, which stores uploads there, says {refusal.status}; "
        f"a worker killed meanwhile answers {recovered:.1f} s after there is room"
    )
    assert good == REQUESTS
    assert refusal.status == 503 and "storage_full" in refusal.text


def test_a_full_log_disk(start: Start, folder: Path, figure: Figure) -> None:
    server = start(prefix=on_small_disk(folder), LOG_LOCATION=str(folder))
    seen = seen_by(server, folder)
    with full(seen):
        good = answered(server)
        size = (seen / "whisper.log").stat().st_size
    began = time.monotonic()
    while (seen / "whisper.log").stat().st_size == size and time.monotonic() - began < 60:
        ended(server)
    figure(f"log disk full: {good} of {REQUESTS} requests answered; the log goes on {time.monotonic() - began:.1f} s after there is room")
    assert good == REQUESTS
    assert (seen / "whisper.log").stat().st_size > size
