"""The windows that wait, and whose turn it is.

Weighted fair queueing (Demers, Keshav and Shenker, 1989) with one window as the unit: the virtual time advances by one over the number of
requests that wait, and a new request starts at it. So a clip's only window goes into the next batch however many windows a long file has
waiting, and a stream of clips cannot starve the file.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ..errors import WhisperError
from ..types import Decoded, Window

Done = Callable[["Decoded | WhisperError"], None]


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place in the queue: its next window's virtual start, the windows asked for and waiting, whether it still wants them.

    `being_read`: it will ask for more within a moment.
    """

    next_start: float = 0.0
    asked: int = 0
    waiting: int = 0
    cancelled: bool = False
    being_read: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A window in the queue, ordered by its virtual start; of equals, the request's that has asked for least, then the first to come."""

    virtual_start: float
    nth: int
    arrival: int
    window: Window = field(compare=False)
    ticket: Ticket = field(compare=False)
    done: Done = field(compare=False)


class Backlog:
    """Entries by the key of those that may share a batch. Not thread-safe: the scheduler's lock guards it."""

    def __init__(self) -> None:
        self.requests = 0
        self._queues: dict[Hashable, list[Entry]] = {}
        self._arrivals = itertools.count()
        self._virtual_time = 0.0

    def __len__(self) -> int:
        """Windows that wait; of `requests` different requests."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def being_read(self) -> bool:
        """Whether a request whose windows wait is still being read."""
        return any(entry.ticket.being_read and not entry.ticket.cancelled for queue in self._queues.values() for entry in queue)

    def push(self, key: Hashable, ticket: Ticket, window: Window, done: Done) -> None:
        """A request's next window."""
        start = max(self._virtual_time, ticket.next_start)
        heapq.heappush(self._queues.setdefault(key, []), Entry(start, ticket.asked, next(self._arrivals), window, ticket, done))
        ticket.next_start = start + 1.0
        ticket.asked += 1
        ticket.waiting += 1
        self.requests += ticket.waiting == 1

    def first(self) -> Hashable | None:
        """The key of the entry whose turn it is, None when none waits."""
        return min(self._queues, key=lambda key: self._queues[key][0], default=None)

    def take(self, key: Hashable, most: int) -> list[Entry]:
        """Up to `most` entries of a key, in their turn; those that nobody wants any more are dropped."""
        queue = self._queues.get(key, [])
        taken: list[Entry] = []
        while queue and len(taken) < most:
            entry = self._pop(queue)
            if not entry.ticket.cancelled:
                taken.append(entry)
        if not queue:
            self._queues.pop(key, None)
        return taken

    def _pop(self, queue: list[Entry]) -> Entry:
        entry = heapq.heappop(queue)
        self._virtual_time = max(self._virtual_time, entry.virtual_start) + 1.0 / self.requests
        entry.ticket.waiting -= 1
        self.requests -= entry.ticket.waiting == 0
        return entry
