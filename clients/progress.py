"""The progress bar of a recording, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from upload import megabytes

NAME_LETTERS = 32


def clock(seconds: float) -> str:
    """Seconds as text: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressBar:
    """The bar of a recording, from the first byte sent to the transcript. It disappears when the recording is done.

    The recording is `number` of `count`. Draws nothing unless `shown`.
    """

    def __init__(self, name: str, number: int, count: int, *, shown: bool) -> None:
        short = name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"
        label = f"file {number} of {count}: {short}" if count > 1 else short
        texts = [TextColumn(form, markup=False) for form in ("{task.description}", "{task.fields[status]}")]
        columns = (SpinnerColumn(), texts[0], BarColumn(bar_width=24), texts[1])
        # Without these settings rich would send the client's standard output to standard error.
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not shown, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._progress.add_task(label, total=None, status="")
        self._sent_at: float | None = None

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def extracted(self, seconds: float, duration: float | None) -> None:
        """Show how many seconds of the sound track are extracted."""
        of = f" of {clock(duration)}" if duration else ""
        self._show(f"extracting the sound track, {clock(seconds)}{of}", seconds, duration)

    def sent(self, done: int, total: int) -> None:
        """Show how many bytes are sent."""
        if done < total:
            self._show(f"sending, {megabytes(done)} of {megabytes(total)}", done, total)
        else:
            self._sent_at = time.monotonic()
            self._show("sent, waiting for the server", 0, None)

    def transcribed(self, seconds: float, duration: float | None) -> None:
        """Show how many seconds of the recording are transcribed."""
        elapsed = time.monotonic() - (self._sent_at or time.monotonic())
        parts = [f"{clock(seconds)} of {clock(duration)}" if duration else clock(seconds)]
        if seconds > 0 and elapsed > 0:
            speed = seconds / elapsed
            parts.append(f"{speed:.1f} x real time")
            if duration:
                parts.append(f"{clock(max(0.0, duration - seconds) / speed)} left")
        self._show(", ".join(parts), seconds, duration)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the bar while something is printed, as both may use the same terminal."""
        sys.stdout.flush()
        self._progress.stop()
        yield
        sys.stdout.flush()
        self._progress.start()

    def _show(self, status: str, done: float, total: float | None) -> None:
        self._progress.update(self._task, completed=done, total=total, status=status)
