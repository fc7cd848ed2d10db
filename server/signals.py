"""Ctrl-C and SIGTERM, counted: the first asks for a clean stop, the second for one at once."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from types import FrameType


class StopSignals:
    """Installs itself for SIGINT, SIGTERM and, without nohup, SIGHUP."""

    def __init__(self) -> None:
        self.count = 0
        # Not a threading.Event: a handler runs in the thread that waits, and would wait for ever for the event's lock, which that holds.
        self._news, self._bell = socket.socketpair()
        for end in (self._news, self._bell):
            end.setblocking(False)
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
        if select.select([self._news], [], [], seconds)[0]:
            self._news.recv(4096)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        with contextlib.suppress(BlockingIOError):  # rung often enough
            self._bell.send(b"1")
