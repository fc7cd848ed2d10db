"""Counts SIGINT (Ctrl-C) and SIGTERM: the first asks for a clean stop, the second for an immediate one."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from types import FrameType


class StopSignals:
    """Installs handlers for SIGINT, SIGTERM and, without nohup, SIGHUP."""

    def __init__(self) -> None:
        self.count = 0
        # Not a threading.Event: Python runs a signal handler in the main thread, which may hold the event's lock at that moment, and then
        # `set` would wait for that lock for ever. A byte in a socket wakes `select` without a lock.
        self._receiver, self._sender = socket.socketpair()
        for end in (self._receiver, self._sender):
            end.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(signal.SIGHUP, self._on_signal)

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.count > 0

    @property
    def immediate(self) -> bool:
        """Whether to stop without waiting for open requests."""
        return self.count > 1

    def wait(self, seconds: float) -> None:
        """Wait for the next signal, at most `seconds`."""
        if select.select([self._receiver], [], [], seconds)[0]:
            self._receiver.recv(4096)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        with contextlib.suppress(BlockingIOError):  # the buffer is full of earlier signals' bytes, and one is enough
            self._sender.send(b"1")
