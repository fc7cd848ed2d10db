"""Reads the log since this start for two facts: what the worker serves, and why it could not start."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import IO

from whispercore.torchserve import handshake

from .locking import lock_file

TRACEBACK_SECONDS = 2.0
"""How long after the worker's death the last line of its traceback may take to appear in the log."""

LOCK_FILE = ".lock"
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)\b")


def own_folder(folder: Path, port: int) -> tuple[Path, IO[str] | None]:
    """The folder for this server's log, and the lock on it, which is held until it is closed.

    When another server writes its log into `folder`, a folder in it, named by the inference `port`: the lines of two servers in one file
    could not be told apart.
    """
    for candidate in (folder, folder / str(port)):
        candidate.mkdir(parents=True, exist_ok=True)
        if lock := lock_file(candidate / LOCK_FILE):
            return candidate, lock
    return folder / str(port), None


class WorkerLog:
    """The log file that config/log4j2.xml describes: one JSON object a line. Lines from before the creation are skipped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._died_at: float | None = None
        self.engine_description = ""
        """The engine and its settings on this machine, as the worker logged them. Empty until `failure` has read that line."""

    def failure(self) -> str | None:
        """Read the new lines. Returns the reason why the worker cannot start, as one line, or None while there is none."""
        for message in self._new_messages():
            if reason := self._reason(message):
                return reason
        if self._died_at is not None and time.monotonic() - self._died_at > TRACEBACK_SECONDS:
            return f"the worker cannot start: see {self.path}"
        return None

    def _reason(self, message: str) -> str | None:
        if message.startswith(handshake.CANNOT_START):
            return message
        if description := handshake.served(message):
            self.engine_description = description
        if message.startswith("Failed to load model"):
            return f"TorchServe cannot load whisper.mar: see {self.path}"
        if message.startswith("Backend worker process died"):
            self._died_at = time.monotonic()
        elif self._died_at is not None and _ERROR_LINE.match(message):
            # The last line of a traceback names the error.
            return f"the worker cannot start: {message}; see {self.path}"
        elif self._died_at is None and message.startswith("Retry worker"):
            return f"the worker was killed while it started; is there too little memory? See {self.path}"
        return None

    def _new_messages(self) -> list[str]:
        """The messages of the complete lines written since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [_message(line) for line in complete.splitlines()]


def _message(line: bytes) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
