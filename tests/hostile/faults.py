"""A server whose engine and readers fail on command: a copy of the checkout in which the fake engine reads a file before each batch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.serve.server import ROOT, Server

COPIED = ("serve.sh", "server", "src", "handler", "config", "model-archiver", "clients", "samples", "gateway")
ENGINE = """

from pathlib import Path as _Path

_CONTROL = _Path({control!r})


class _Faulty(FakeEngine):
    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        while _CONTROL.read_text() == "the engine hangs":
            time.sleep(0.05)
        if _CONTROL.read_text() == "the engine raises":
            raise RuntimeError("the engine was told to fail")
        decoded = super().decode(windows)
        time.sleep({seconds} * len(windows))
        return decoded


def load(settings: Settings, device: str) -> Engine:
    if _CONTROL.read_text() == "the worker dies":
        import os

        os._exit(3)
    return _Faulty(max_batch=settings.batch_size or 8)
"""
READER = """

import time as _time
from pathlib import Path as _Path

_open_recording = open_recording


def open_recording(source, **options):
    while _Path({control!r}).read_text() == "the readers hang":
        _time.sleep(0.05)
    return _open_recording(source, **options)
"""


class Faults:
    """What goes wrong in the server; nothing at first."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self.set("")

    def set(self, fault: str) -> None:
        """`the engine hangs`, `the engine raises`, `the readers hang`, `the worker dies` (when it loads), or nothing."""
        temporary = self._control.with_suffix(".new")
        temporary.write_text(fault)
        temporary.replace(self._control)


@contextlib.contextmanager
def faulty_server(folder: Path, *, seconds_per_window: float = 0.0, **environment: str) -> Iterator[tuple[Server, Faults]]:
    """A ready server and its faults. The server may have ended by itself when the block ends."""
    root, control = folder / "checkout", folder / "fault"
    faults = Faults(control)
    root.mkdir()
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, root / name)
    for requirements in ROOT.glob("requirements*.txt"):
        shutil.copy(requirements, root)
    (root / "whisper-models").symlink_to(ROOT / "whisper-models")
    for file, patch in (("engines/fake.py", ENGINE), ("audio/recording.py", READER)):
        with (root / "src" / "whispercore" / file).open("a") as patched:
            patched.write(patch.format(control=str(control), seconds=seconds_per_window))
    server = Server(folder / "server", folder / "state", root=root, WHISPER_ENGINE="fake", **environment)
    try:
        yield server.wait_until_ready(), faults
        faults.set("")
        if server.process.poll() is None:
            server.stop()
    finally:
        server.clean_up()
