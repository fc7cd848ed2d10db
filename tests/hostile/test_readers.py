"""Recordings on which the processes that open and read uploads crash, hang or eat memory: refused with a reason, and others are served.

No file is known that does so, so the server is a copy of the checkout in which marked files do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hostile.conftest import Figure
from tests.hostile.load import HOME, ended, good_after
from tests.serve.server import ROOT, Server, running

pytestmark = [pytest.mark.serve, pytest.mark.slow]
POISON = """

_plain = open_recording


def open_recording(source, **keywords):
    import os, signal, sys

    if "whispercore.audio." in " ".join(sys.orig_argv):  # only the processes that open uploads first, and those that read
        source.seek(0)
        head = source.read(32)
        if head.startswith(b"POISON crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        while head.startswith(b"POISON hang"):
            pass
        if head.startswith(b"POISON memory"):
            bytearray(64 << 30)
    return _plain(source, **keywords)
"""
"""What stands at the end of the copy's recording.py."""
REASONS = {"crash": "makes FFmpeg crash", "hang": "more than 5 s of processor time", "memory": "more memory than is allowed"}
LEFT_OUT = {".git", "build", "tests", "bench", "docs", "whisper-models"}
AT_ONCE = 6
LARGE, SMALL = 100_000, 20_000
"""Bytes. Large files are tried by a process that only opens them, small ones are opened by those that read."""


def poisoned(kind: str, number: int, size: int) -> bytes:
    """A file of about this size."""
    return f"POISON {kind}".encode().ljust(size + number, b"\0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server from a copy of the checkout whose FFmpeg is poisoned."""
    checkout = tmp_path_factory.mktemp("copy") / "checkout"
    shutil.copytree(ROOT, checkout, ignore=lambda folder, names: LEFT_OUT & set(names) if Path(folder) == ROOT else {"__pycache__"})
    (checkout / "whisper-models").mkdir()
    shutil.copy(ROOT / "whisper-models" / "nano.pt", checkout / "whisper-models")
    with (checkout / "src" / "whispercore" / "audio" / "recording.py").open("a") as file:
        file.write(POISON)
    folder, state = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("own-state")
    with running(folder, state, root=checkout) as server:
        yield server


@pytest.mark.parametrize(("kind", "size"), [*((kind, LARGE) for kind in REASONS), ("crash", SMALL), ("memory", SMALL)])
def test_poisoned_files(server: Server, figure: Figure, kind: str, size: int) -> None:
    """More of them at once than there are readers, from one client; another client sends a good one."""
    door = server.gateway("gateway")
    assert ended(door, HOME).is_good, "a good file of the same size is opened there, too"
    (worker,) = server.processes("model_service_worker")
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        refused = [pool.submit(ended, door, poisoned(kind, number, size)) for number in range(AT_ONCE)]
        beside = good_after(door, began)
        endings = [future.result() for future in refused]
    refused_within = max(ending.at for ending in endings) - began
    after = good_after(door, time.monotonic())
    figure(
        f"{AT_ONCE} files of {size} bytes on which FFmpeg fails ({kind}): refused within {refused_within:.1f} s, "
        f"another user's reply meanwhile after {beside:.1f} s, the next one after {after:.1f} s"
    )
    assert [ending.status for ending in endings] == [422] * AT_ONCE, endings
    assert all(REASONS[kind] in ending.text for ending in endings), endings
    assert server.processes("model_service_worker") == [worker]
    assert ended(door, HOME).is_good
