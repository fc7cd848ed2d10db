"""A limit on the processor time that reading one recording may take, so that no file occupies a reader for minutes.

FFmpeg has inputs that cost far more than their size suggests. It searches its dictionary of tags linearly, so opening a
file takes time quadratic in the number of its tags. Packets that decode to nothing are never counted as sound. The time
is measured on the thread that works, so a busy machine does not refuse what an idle one accepts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import Cancelled, UnreadableAudio

FIXED_SECONDS = 5.0
"""Processor time for any file. A film of four hours takes 0.3 s to open."""
SECONDS_PER_BYTE = 1 / 20e6
"""Reading alone is 50 times faster."""
SECONDS_PER_SECOND = 0.5
"""Processor time for a second of sound. The slowest codecs need a tenth of it."""


class ReadingBudget:
    """The processor time that one recording has used and may use.

    Its two threads share it: one decodes, and one mixes and resamples.
    """

    def __init__(self, size: int, is_cancelled: Callable[[], bool] | None = None) -> None:
        """`size`: bytes of the file. `is_cancelled`: whether the transcript is not wanted any more; asked often."""
        self._fixed = FIXED_SECONDS + size * SECONDS_PER_BYTE
        self._is_cancelled = is_cancelled or (lambda: False)
        self._used = 0.0
        self._began: dict[int, float] = {}
        self.sound_seconds = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the processor time of this thread while the block runs."""
        thread = threading.get_ident()
        if thread in self._began:  # within a block that is measured already
            yield
            return
        self._began[thread] = time.thread_time()
        try:
            yield
        finally:
            self._used += time.thread_time() - self._began.pop(thread)

    def begin_copy(self) -> None:
        """In a copy of this process, whose processor time begins at zero."""
        self._began.clear()

    def charge(self, seconds: float) -> None:
        """Count processor time that a copy of this process has used."""
        self._used += seconds

    def check(self) -> None:
        """Raise UnreadableAudio when the time is used up, Cancelled when the transcript is not wanted any more."""
        if self._is_cancelled():
            raise Cancelled("the request was cancelled")
        now = time.thread_time()
        used = self._used + now - self._began.get(threading.get_ident(), now)
        if used > self._fixed + SECONDS_PER_SECOND * self.sound_seconds:
            raise UnreadableAudio(
                f"reading the file took {used:.0f} s of processor time for {self.sound_seconds:.1f} s of sound: it has too many tags, "
                "or packets without sound; convert it (ffmpeg -i FILE -map_metadata -1 out.flac) and send the result"
            )
