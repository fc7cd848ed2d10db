"""The lanes of an engine: the batches that it decodes at the same time, each on a part of its cores."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..engines import Engine, ParallelEngine
from .backlog import QueuedRequest
from .turns import Turn

WAIT_FOR_REQUESTS = 0.05
"""Share of a batch's time. After a batch of several requests the engine waits this long at most until as many requests
have windows again: clients that ask again after each reply come a moment apart, and the first one's window would be
decoded alone. With 0.02 eight clips at once made batches of 4.0 to 5.7 windows on a busy machine; with 0.05 they made
5.7, the most that 40 clips can make."""


@dataclass(frozen=True, slots=True)
class LastBatch:
    """A batch that has ended. `requests`: those that it served. `ended`: time.monotonic. `seconds`: how long it took."""

    requests: frozenset[QueuedRequest] = frozenset()
    ended: float = 0.0
    seconds: float = 0.0

    @property
    def answered_until(self) -> float:
        """The time until which its clients are expected to ask again."""
        return self.ended + WAIT_FOR_REQUESTS * self.seconds


class Lanes:
    """The lanes of one engine. The scheduler's lock guards them.

    Most engines have one. `free`: the lanes that decode nothing. `latest`: the batch that has ended last.
    """

    def __init__(self, engine: Engine, turn: Turn | None) -> None:
        """`turn`: at the engine's device, when several models share it."""
        self.engine, self.turn = engine, turn
        self.count, self._any_width = (engine.lanes, engine.any_width) if isinstance(engine, ParallelEngine) else (1, False)
        self.free = self.count
        self.latest = LastBatch()
        self._ended: list[LastBatch] = []

    @property
    def batch_limit(self) -> int:
        """The most windows of a lane's batch."""
        return max(1, self.engine.max_batch // self.count)

    def take(self, windows: int) -> int:
        """Occupy lanes for a batch, when so many windows are queued. Returns its width: all free lanes for a lone window.

        The batch stands for the clients of the oldest one that has ended: those are not waited for any more.
        """
        width = self.free // min(self.free, windows)
        if width < self.count and not self._any_width:
            width = 1
        self.free -= width
        now = time.monotonic()
        self._ended = [last for last in self._ended[1:] if last.answered_until > now]
        return width

    def give_back(self, width: int, last: LastBatch) -> None:
        """Free the lanes of a batch that has ended."""
        self.free += width
        self.latest = last
        self._ended.append(last)

    def requests_expected_until(self, waiting: int) -> float:
        """The time until which the engine waits for requests, of which so many have windows queued; 0.0 when enough have.

        After a batch its clients are likely to ask again.
        """
        now = time.monotonic()
        expected = [last for last in self._ended if last.answered_until > now]
        if waiting >= len({request for last in expected for request in last.requests}):
            return 0.0
        return max(last.answered_until for last in expected)
