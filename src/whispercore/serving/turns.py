"""Turns at a device that several models share: one batch of one model after the other."""

from __future__ import annotations

import threading


class Turn:
    """A lock that is given in the order in which it was asked for: a ticket lock (Mellor-Crummey and Scott, 1991).

    The scheduler of each model holds it during a batch. So models that have work alternate by batch, and the threads of
    two engines do not compete for the same cores. With one model it is always free, and costs a microsecond.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket = 0
        self._serving = 0

    @property
    def is_wanted(self) -> bool:
        """Whether another thread waits for this turn to end."""
        return self._next_ticket - self._serving > 1

    def __enter__(self) -> None:
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._changed.wait_for(lambda: self._serving == ticket)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()
