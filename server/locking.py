"""Locks between processes: a file, locked as long as it is open."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def lock_file(path: Path) -> IO[str] | None:
    """Open and lock a file until it is closed or this process ends. None when another process holds the lock, or without permission."""
    try:
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return file
