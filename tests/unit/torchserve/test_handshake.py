"""What worker and launcher tell each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whispercore.torchserve.handshake import OpenRequests, WorkerHealth, served, serves_line

ROOT = Path(__file__).parents[3]


def test_the_launcher_reads_what_the_worker_writes() -> None:
    assert served(serves_line("0.1.0", {"engine": "ct2", "threads": 2})) == "engine ct2, threads 2"


def test_other_lines_are_no_description() -> None:
    assert served("Model server started.") is None


def test_it_loads_nothing_heavy() -> None:
    script = "import sys, whispercore.torchserve.handshake; print({'numpy', 'torch', 'av'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    printed = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "set()"


def test_the_workers_health_is_read_as_it_was_written() -> None:
    health = WorkerHealth(12.5, 0.25)
    assert WorkerHealth.parse(str(health)) == health
    for half in ("", "12.5", "12.5 0.2", "12.5 \n"):
        with pytest.raises(ValueError, match=r".*"):
            WorkerHealth.parse(half)


def test_open_requests_are_read_as_they_were_written() -> None:
    for written in (OpenRequests(), OpenRequests(12), OpenRequests(0, refuses=True)):
        assert OpenRequests.parse(str(written)) == written
    for half in ("", "1", "12 ", "12 refu"):
        with pytest.raises(ValueError):
            OpenRequests.parse(half)
