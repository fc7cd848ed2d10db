"""The progress bars of recordings, on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from upload import megabytes

NAME_LETTERS = 32
LINE_SECONDS = 30.0
"""Time between two lines of a batch's progress where there is no terminal."""


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
        label = f"file {number} of {count}: {_short(name)}" if count > 1 else _short(name)
        self._progress = _bars(shown)
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
        self._show(_position(seconds, duration, elapsed), seconds, duration)

    def hidden(self) -> AbstractContextManager[None]:
        """Hide the bar while something is printed, as both may use the same terminal."""
        return _hidden(self._progress)

    def _show(self, status: str, done: float, total: float | None) -> None:
        self._progress.update(self._task, completed=done, total=total, status=status)


class ProgressBars:
    """A bar for each recording under way, and one for all. Draws nothing unless `shown`.

    `sizes`: the bytes of each recording, by its number. The time left in all follows from the bytes that are done.
    """

    def __init__(self, sizes: Mapping[int, int], *, shown: bool) -> None:
        self._sizes, self._total = sizes, sum(sizes.values())
        self._progress = _bars(shown)
        self._tasks: dict[int, TaskID] = {}
        self._shares: dict[int, float] = {}
        self._done = 0
        self._began = time.monotonic()
        self._all = self._progress.add_task("", total=self._total or None, status="", visible=len(sizes) > 1)

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def transcribed(self, recording: int, name: str, seconds: float, duration: float | None, elapsed: float) -> None:
        """Show how many seconds of a recording are transcribed, `elapsed` seconds after its begin."""
        if recording not in self._tasks:
            self._tasks[recording] = self._progress.add_task(_short(name), total=None, status="")
        self._progress.update(self._tasks[recording], completed=seconds, total=duration, status=_position(seconds, duration, elapsed))
        self._shares[recording] = seconds / duration if duration else 0.0
        self._show_all()

    def done(self, recording: int) -> None:
        """Remove the bar of a recording that has ended."""
        if recording in self._tasks:
            self._progress.remove_task(self._tasks.pop(recording))
        self._shares[recording] = 1.0
        self._done += 1
        self._show_all()

    def hidden(self) -> AbstractContextManager[None]:
        """Hide the bars while something is printed."""
        return _hidden(self._progress)

    def _show_all(self) -> None:
        ready = sum(share * self._sizes.get(recording, 0) for recording, share in self._shares.items())
        elapsed = time.monotonic() - self._began
        left = f"{clock(elapsed * (self._total - ready) / ready)} left" if ready else ""
        self._progress.update(self._all, completed=ready, description=f"{self._done} of {len(self._sizes)} recordings", status=left)


class BatchProgress:
    """The progress of a batch: a bar in a terminal, elsewhere a line now and then. Thread-safe.

    `count`, `size`: recordings and their bytes, by which the time left is estimated.
    """

    def __init__(self, count: int, size: int, *, shown: bool) -> None:
        self._count, self._size, self._shown = count, size, shown
        self._progress = _bars(shown and sys.stderr.isatty())
        self._task = self._progress.add_task("", total=size or None, status="")
        self._lock = threading.Lock()
        self._began = self._told = time.monotonic()
        self._done, self._failed, self._bytes, self._audio = 0, 0, 0, 0.0

    def __enter__(self) -> BatchProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def done(self, size: int, audio: float, *, failed: bool) -> None:
        """Count a recording of `size` bytes and `audio` seconds."""
        with self._lock:
            self._done += 1
            self._failed += failed
            self._bytes += max(0, size)
            self._audio += audio
            elapsed = time.monotonic() - self._began
            is_known = self._bytes > self._size / 100
            left = f", {clock(elapsed * (self._size - self._bytes) / self._bytes)} left" if is_known else ""
            status = f"{self._audio / 3600:.1f} h, {self._audio / elapsed:.1f} x real time, {self._failed} failed{left}"
            text = f"{self._done} of {self._count} recordings"
            self._progress.update(self._task, completed=self._bytes, description=text, status=status)
            if self._shown and self._progress.disable and time.monotonic() > self._told + LINE_SECONDS:
                self._told = time.monotonic()
                print(f"{text}: {status}", file=sys.stderr, flush=True)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the bar while something is printed."""
        with self._lock, _hidden(self._progress):
            yield


def _short(name: str) -> str:
    return name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"


def _bars(shown: bool) -> Progress:
    texts = [TextColumn(form, markup=False) for form in ("{task.description}", "{task.fields[status]}")]
    columns = (SpinnerColumn(), texts[0], BarColumn(bar_width=24), texts[1])
    # Without these settings rich would send the client's standard output to standard error.
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown, redirect_stdout=False, redirect_stderr=False)


@contextmanager
def _hidden(progress: Progress) -> Iterator[None]:
    sys.stdout.flush()
    progress.stop()
    yield
    sys.stdout.flush()
    progress.start()


def _position(seconds: float, duration: float | None, elapsed: float) -> str:
    """How far a recording is, its speed, and the time left."""
    parts = [f"{clock(seconds)} of {clock(duration)}" if duration else clock(seconds)]
    if seconds > 0 and elapsed > 0:
        speed = seconds / elapsed
        parts.append(f"{speed:.1f} x real time")
        if duration:
            parts.append(f"{clock(max(0.0, duration - seconds) / speed)} left")
    return ", ".join(parts)
