"""What a transcribing command prints: transcripts, warnings, failures, a summary; and its exit status."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from progress import clock
from replies import Line
from transcript import content, is_empty, save, shortened, summary, why_empty

MAX_NAMES = 5
"""How many recordings a repeated warning names."""


class Report:
    """The output of a command for `count` recordings. `shows_bar`: standard error shows progress bars.

    Transcripts go to their files or to standard output, everything else to standard error.
    """

    def __init__(self, arguments: argparse.Namespace, count: int) -> None:
        self._arguments, self._count = arguments, count
        self.shows_bar = sys.stderr.isatty() and not (arguments.quiet or arguments.no_progress)
        self._summarizes = (self.shows_bar or arguments.verbose) and not arguments.quiet
        self._failed, self._began = 0, time.monotonic()
        self._warned: dict[str, list[Path]] = {}

    def announce(self, path: Path) -> None:
        """Name the recording whose transcript follows on standard output, if there are several."""
        if self._count > 1 and not self._arguments.quiet:
            log(f"==> {path}")

    def done(self, path: Path, output: Path | None, transcript: Line, seconds: float) -> None:
        """Save a transcript or print it, with its warnings. Raises RequestFailed when it cannot be saved.

        `seconds`: how long the transcription took.
        """
        if output:
            save(content(transcript), output)
            if not self._arguments.quiet and not self._summarizes:
                log(f"{path} -> {output}")
        elif not self._arguments.stream:
            self.announce(path)
            print(content(transcript).rstrip("\n"), flush=True)
        self._print_warnings(path, transcript)
        if self._summarizes:
            log(f"{path}{f' -> {output}' if output else ''}: {summary(transcript, seconds)}")

    def failed(self, path: Path, error: Exception) -> None:
        """Print the reason why a recording has no transcript, and count it."""
        log(f"{path}: {error}")
        self._failed += 1

    def not_tried(self, number: int, what: str) -> None:
        """Count `number` recordings that were left out after a failure. `what` happened to them."""
        log(f"the other {number} {what}")
        self._failed += number

    def finish(self) -> int:
        """Print the summary. Returns the exit status: 0 all transcribed, 1 some failed."""
        self._repeat_warnings()
        if self._summarizes and self._count > 1:
            log(f"{self._count - self._failed} of {self._count} recordings transcribed in {clock(time.monotonic() - self._began)}")
        if self._failed and self._arguments.output_dir and self._count > 1:
            log(f"{self._failed} of {self._count} failed: the same command with --skip-existing sends only those")
        return 1 if self._failed else 0

    def _print_warnings(self, path: Path, transcript: Line) -> None:
        """Print each warning once, and the reason of an empty transcript."""
        warnings, no_words = [str(warning) for warning in transcript.get("warnings") or []], is_empty(transcript)
        for warning in warnings:
            if no_words and ("no speech" in warning or "left out" in warning):
                continue  # the reason below covers it
            if warning not in self._warned:
                log(f"{path}: warning: {warning}")
            self._warned.setdefault(warning, []).append(path)
        if no_words:
            log(f"{path}: {why_empty(transcript, warnings)}")

    def _repeat_warnings(self) -> None:
        """Print which other recordings had the same warning."""
        for warning, (_, *others) in self._warned.items():
            if others:
                names = ", ".join(path.name for path in others[:MAX_NAMES]) + (", …" if len(others) > MAX_NAMES else "")
                log(f"the same warning for {len(others)} more ({names}): {shortened(warning)}")


def log(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
