"""Many recordings through one `Transcriber`: as many open at once as fill its batches."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from whispercore.audio.parts import Part
from whispercore.audio.source import Source
from whispercore.options import Options
from whispercore.serving.job import Job
from whispercore.serving.transcriber import Transcriber
from whispercore.types import WINDOW_SECONDS, Transcript

MAX_OPEN = 64
"""Recordings open at once, at most. Each holds an open file and some seconds of sound."""
BATCHES = 2
"""Recordings are opened until the windows that are left of them fill this many batches."""
BYTES_PER_SECOND = 16_000
"""Of a recording whose duration is unknown: an mp3 of 128 kbit/s."""
POLL_SECONDS = 0.2
"""The longest time between two looks at the progress."""

T = TypeVar("T")
Fetch = Callable[[T], AbstractContextManager[Source | Part]]
"""Gives the sound of an item, and lets go of it at the end."""


@dataclass(frozen=True, eq=False)
class Running(Generic[T]):
    """A recording under way. `began`: time.monotonic. `size`: bytes."""

    item: T
    job: Job
    began: float
    size: int
    files: ExitStack = field(default_factory=ExitStack)

    @property
    def windows_left(self) -> int:
        """An estimate of the windows that are not decoded yet."""
        progress = self.job.progress
        duration = progress.duration or self.size / BYTES_PER_SECOND
        return max(1, math.ceil((duration - progress.seconds) / WINDOW_SECONDS))


@dataclass(frozen=True)
class Ended(Generic[T]):
    """A recording that is done: its transcript, or the error. `seconds`: from its begin."""

    item: T
    transcript: Transcript | None
    error: Exception | None
    seconds: float


def transcribed(
    transcriber: Transcriber,
    items: Iterable[T],
    fetch: Fetch[T],
    options: Options,
    *,
    size: Callable[[T], int] = lambda item: 0,
    on_wait: Callable[[Sequence[Running[T]]], None] = lambda running: None,
) -> Iterator[Ended[T]]:
    """Each item's outcome as soon as it is known. `fetch` may raise any exception: that item fails.

    `size`: an item's bytes. `on_wait` is called several times a second with the recordings under way. When the caller
    stops asking, those are cancelled.
    """
    news = threading.Event()
    running: list[Running[T]] = []
    waiting = iter(items)
    full = BATCHES * sum(engine.max_batch for engine in transcriber.engines)
    limit = min(MAX_OPEN, transcriber.settings.max_open_requests)
    exhausted = False
    try:
        while running or not exhausted:
            while not exhausted and len(running) < limit and sum(one.windows_left for one in running) < full:
                try:
                    item = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                began, files = time.monotonic(), ExitStack()
                try:
                    source = files.enter_context(fetch(item))
                    running.append(Running(item, transcriber.submit(source, options, on_news=news.set), began, size(item), files))
                except Exception as error:
                    files.close()
                    yield Ended(item, None, error, time.monotonic() - began)
            if running:
                news.wait(POLL_SECONDS)
                news.clear()
                on_wait(running)
            for one in [one for one in running if one.job.ended]:
                running.remove(one)
                one.files.close()
                yield Ended(one.item, one.job.transcript, one.job.error, time.monotonic() - one.began)
    finally:
        for one in running:
            one.job.cancel()
            one.files.close()
