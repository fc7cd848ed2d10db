"""Log lines: what a client sends begins no line of its own."""

from __future__ import annotations

import logging
import sys

import pytest

from whispercore.torchserve.log_lines import LineFormatter, one_line


def formatted(message: str, *arguments: object, error: bool = False) -> str:
    try:
        raise ValueError(str(arguments))
    except ValueError:
        information = sys.exc_info() if error else None
    record = logging.LogRecord("core", logging.INFO, __file__, 1, message, arguments, information)
    return LineFormatter(logging.Formatter("%(message)s")).format(record)


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x00"])
def test_a_message_is_one_line(line_break: str) -> None:
    text = formatted("refused: unknown field '%s'", f"x{line_break}[METRICS]a.Count:1")
    assert len(text.splitlines()) == 1 and text.isprintable()
    assert text.startswith("refused: unknown field 'x")


def test_plain_messages_stay_as_they_are() -> None:
    assert formatted("request %s: %.1f s of 日本語", "a-1", 2.5) == "request a-1: 2.5 s of 日本語"
    assert one_line("a\tb\x1b[31m") == r"a\tb\x1b[31m"


def test_the_lines_of_a_traceback_are_continuations() -> None:
    first, *others = formatted("failed%.0s", "\n[PID]1", error=True).split("\n")
    assert first == "failed" and len(others) >= 3
    assert all(line.startswith("  | ") for line in others)
