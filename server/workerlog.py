"""The log since this start, read for two things: what the worker serves, and why it could not start."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

TRACEBACK_SECONDS = 2.0

_SERVES = re.compile(r"whispercore \S+ serves (.*)")
_REFUSED = "whisper cannot start: "
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)\b")


class WorkerLog:
    """What config/log4j2.xml writes to LOG_LOCATION, one JSON object a line. Make it before TorchServe starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._died_at: float | None = None
        self.serves = ""
        """The engine, and what was chosen for this machine, when `failure` has come across it."""

    def failure(self) -> str | None:
        """The reason as one line; None while nothing tells of one."""
        for message in self._news():
            if reason := self._reason(message):
                return reason
        if self._died_at is not None and time.monotonic() - self._died_at > TRACEBACK_SECONDS:
            return f"the worker cannot start: see {self.path}"
        return None

    def _reason(self, message: str) -> str | None:
        if message.startswith(_REFUSED):
            return message
        if told := _SERVES.match(message):
            self.serves = told[1]
        if message.startswith("Failed to load model"):
            return f"TorchServe cannot load whisper.mar: see {self.path}"
        if message.startswith("Backend worker process died"):
            self._died_at = time.monotonic()
        elif self._died_at is not None and _ERROR_LINE.match(message):
            # The traceback's last line.
            return f"the worker cannot start: {message}; see {self.path}"
        elif self._died_at is None and message.startswith("Retry worker"):
            return f"the worker was killed while it started; is there too little memory? See {self.path}"
        return None

    def _news(self) -> list[str]:
        """Messages of the whole lines written since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [_message(line) for line in whole.splitlines()]


def _message(line: bytes) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
