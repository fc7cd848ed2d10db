"""The names that the launcher (`server/`) and the worker (`handler/`) share.

This file imports nothing heavy, because the launcher loads no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

API_VERSION = "1.0"
"""A part of every URL, /predictions/whisper/1.0/v1/audio/transcriptions. Releases of the software do not change it."""
OPEN_REQUESTS_FILE = "WHISPER_OPEN_REQUESTS_FILE"
"""Environment variable: the file in which the worker writes the number of its open requests."""
CLOSING_FILE = "WHISPER_CLOSING_FILE"
"""Environment variable: the file that the launcher creates so that the worker refuses new requests."""
SPOOL_DIR = "WHISPER_SPOOL_DIR"
"""Environment variable: the folder in which the gateway puts the uploads for the worker."""
CANNOT_START = "whisper cannot start: "
"""The beginning of the line in which the worker logs why it cannot start."""
_SERVES = re.compile(r"whispercore \S+ serves (.*)")


def serves_line(version: str, engine: Mapping[str, object]) -> str:
    """The line that the worker logs when the engine is loaded: "whispercore 1.2 serves engine ct2, device cpu, …".

    `engine`: the engine's `describe()`.
    """
    return f"whispercore {version} serves {', '.join(f'{name} {value}' for name, value in engine.items())}"


def served(line: str) -> str | None:
    """The engine's description in a line of `serves_line`; None for any other line of the log."""
    match = _SERVES.match(line)
    return match[1] if match else None
