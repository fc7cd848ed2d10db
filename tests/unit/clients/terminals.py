"""A client with a terminal as its standard error."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

CLIENTS = Path(__file__).resolve().parents[3] / "clients"


def on_a_terminal(*arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """transcribe.py with a terminal of 120 columns as its standard error."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    command = [sys.executable, str(CLIENTS / "transcribe.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    return process, ours


def read_until(terminal: int, wanted: str, seconds: float = 30) -> str:
    """What has appeared on the terminal once `wanted` has."""
    said, deadline = "", time.monotonic() + seconds
    while wanted not in said:
        assert time.monotonic() < deadline, f"{wanted!r} did not appear in {said!r}"
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                said += os.read(terminal, 65536).decode(errors="replace")
            except OSError as error:  # the program has ended
                raise AssertionError(f"{wanted!r} did not appear in {said!r}") from error
    return said
