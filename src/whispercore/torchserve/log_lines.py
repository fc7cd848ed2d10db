"""Log lines of the worker, which TorchServe reads from its standard output.

TorchServe takes a line that begins with [METRICS] for a metric, and one that begins with [PID] for the worker's process
id. Messages quote what clients send, so a line break in a message must not begin a new line.
"""

from __future__ import annotations

import logging

CONTINUATION = "  | "


class LineFormatter(logging.Formatter):
    """Another formatter's output. A message is one line; the lines of a traceback are marked as continuations."""

    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        plain = logging.makeLogRecord({**record.__dict__, "msg": one_line(record.getMessage()), "args": None})
        return f"\n{CONTINUATION}".join(map(one_line, self._formatter.format(plain).splitlines()))


def one_line(text: str) -> str:
    """`text` with its control characters and line breaks, also those of Unicode, escaped."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
