"""Turns at a device that several models share: one batch of one model after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Place:
    """A thread's place in the queue."""

    owner: object
    has_turn: bool = False


class Turn:
    """A lock that is given in the order in which it was asked for, and that several threads of one owner hold together.

    The threads of a model's scheduler hold it during a batch. So models that have work alternate, and the threads of two
    engines do not compete for the same cores. With one model it is always free, and costs microseconds.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[_Place] = []
        self._owner: object = None
        self._holders = 0

    @property
    def is_wanted(self) -> bool:
        """Whether another thread waits for this turn to end."""
        return bool(self._waiting)

    @contextmanager
    def held_by(self, owner: object) -> Iterator[None]:
        """Hold the turn, together with the owner's other threads that wait for it, or that hold it while no thread waits."""
        with self._changed:
            place = _Place(owner)
            self._waiting.append(place)
            self._give()
            self._changed.wait_for(lambda: place.has_turn)
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self._give()

    def _give(self) -> None:
        """Give the turn to all waiting threads of the owner that asked first, if it is free or that owner's already."""
        if not self._waiting or (self._holders and self._waiting[0].owner is not self._owner):
            return
        self._owner = self._waiting[0].owner
        for place in self._waiting:
            place.has_turn = place.owner is self._owner
        self._holders += sum(place.has_turn for place in self._waiting)
        self._waiting = [place for place in self._waiting if not place.has_turn]
        self._changed.notify_all()
