"""The names that the launcher (`server/`) and the worker (`handler/`) share.

This file imports nothing heavy, because the launcher loads no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

API_VERSION = "1.0"
"""A part of every URL, /predictions/whisper/1.0/v1/audio/transcriptions. Releases of the software do not change it."""
OPEN_REQUESTS_FILE = "WHISPER_OPEN_REQUESTS_FILE"
"""Environment variable: the file in which the worker writes its `OpenRequests`."""
CLOSING_FILE = "WHISPER_CLOSING_FILE"
"""Environment variable: the file that the launcher creates so that the worker refuses new requests."""
HEALTH_FILE = "WHISPER_HEALTH_FILE"
"""Environment variable: the file in which the worker writes when it last decoded a window, and the time of its longest batch."""
NOT_READY_FILE = "WHISPER_NOT_READY_FILE"
"""Environment variable: the file that the launcher creates while its watchdog's test has failed."""
WATCHDOG_TOKEN = "WHISPER_WATCHDOG_TOKEN"
"""Environment variable: what the launcher's watchdog sends with its test, so that no client can go ahead of the queue."""
SPOOL_DIR = "WHISPER_SPOOL_DIR"
"""Environment variable: the folder in which the gateway puts the uploads for the worker."""
CLIENT_HEADER = "x-whisper-client"
"""The header in which the gateway names the client, for the queue's fairness. It drops a client's own."""
CANNOT_START = "whisper cannot start: "
"""The beginning of the line in which the worker logs why it cannot start."""
_SERVES = re.compile(r"whispercore \S+ serves (.*)")


def _two_fields(text: str) -> tuple[str, str]:
    """The fields of a line that is complete. Raises ValueError for any other: the worker is still writing it."""
    first, second = text.removesuffix("\n").split(" ")
    if not text.endswith("\n"):
        raise ValueError(text)
    return first, second


class OpenRequests(NamedTuple):
    """What the worker writes into `OPEN_REQUESTS_FILE`: their number, and whether it has begun to refuse new ones."""

    number: int = 0
    refuses: bool = False

    def __str__(self) -> str:
        return f"{self.number} {'refuses' if self.refuses else 'accepts'}\n"

    @classmethod
    def parse(cls, text: str) -> OpenRequests:
        """Raises ValueError for a line that is not complete."""
        number, state = _two_fields(text)
        return cls(int(number), state == "refuses")


class WorkerHealth(NamedTuple):
    """What the worker writes into `HEALTH_FILE`.

    `last_success`: time.monotonic of the last window that was decoded, which on Linux is one clock for all processes.
    `longest_batch`: seconds of the longest batch lately.
    """

    last_success: float = -math.inf
    longest_batch: float = 0.0

    def __str__(self) -> str:
        return f"{self.last_success:.3f} {self.longest_batch:.3f}\n"

    @classmethod
    def parse(cls, text: str) -> WorkerHealth:
        """Raises ValueError for a line that is not complete."""
        last_success, longest_batch = _two_fields(text)
        return cls(float(last_success), float(longest_batch))


def serves_line(version: str, engine: Mapping[str, object]) -> str:
    """The line that the worker logs when the engine is loaded: "whispercore 1.2 serves engine ct2, device cpu, …".

    `engine`: the engine's `describe()`.
    """
    return f"whispercore {version} serves {', '.join(f'{name} {value}' for name, value in engine.items())}"


def served(line: str) -> str | None:
    """The engine's description in a line of `serves_line`; None for any other line of the log."""
    match = _SERVES.match(line)
    return match[1] if match else None
