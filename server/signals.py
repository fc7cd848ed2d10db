"""Ctrl-C and SIGTERM, counted: the first asks for a clean stop, the second for one at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignals:
    """Installs itself for SIGINT, SIGTERM and, without nohup, SIGHUP."""

    def __init__(self) -> None:
        self.count = 0
        self._news = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._receive)

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.count > 0

    @property
    def impatient(self) -> bool:
        """Whether to stop without waiting for anything."""
        return self.count > 1

    def wait(self, seconds: float) -> None:
        """Wait for the next signal, or so many seconds."""
        self._news.wait(seconds)
        self._news.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._news.set()
