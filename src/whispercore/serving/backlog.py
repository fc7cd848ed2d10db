"""The queue of windows, fair by request.

Weighted fair queueing (Demers, Keshav and Shenker, 1989) with one greedy window as the unit of
work; a wider search counts as more, so its request gets its next turn later. The virtual time advances
by one over the number of requests in the queue, and a new request starts at the current virtual time. A clip's only
window therefore goes into the next batch, however many windows of a long file are queued, and a stream of clips cannot
starve the file.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ..errors import WhisperError
from ..types import Decoded, Window

Outcome = Decoded | WhisperError
OnOutcome = Callable[[Outcome], None]


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request as the queue sees it.

    `next_start`: the virtual start of its next window. `submitted`: its windows so far. `queued`: those that have not
    been taken. `cancelled`: its windows are dropped. `more_coming`: it will submit more windows within a moment,
    because its recording is being read.
    """

    next_start: float = 0.0
    submitted: int = 0
    queued: int = 0
    cancelled: bool = False
    more_coming: bool = False


@dataclass(frozen=True, slots=True, order=True)
class QueuedWindow:
    """A window in the queue, ordered by its virtual start.

    Of equal starts the request with the fewest windows so far goes first, then the window that arrived first.
    """

    virtual_start: float
    number_in_request: int
    arrival: int
    window: Window = field(compare=False)
    request: QueuedRequest = field(compare=False)
    on_outcome: OnOutcome = field(compare=False)


class Backlog:
    """Queued windows, one heap for each batch key: windows with equal keys may share a batch.

    Not thread-safe: the scheduler's lock guards it. `requests`: the number of requests that have windows in the queue.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._queues: dict[Hashable, list[QueuedWindow]] = {}
        self._arrivals = itertools.count()
        self._virtual_time = 0.0

    def __len__(self) -> int:
        """The number of windows in the queue."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def more_coming(self) -> bool:
        """Whether a request with windows in the queue will submit more within a moment."""
        return any(
            queued.request.more_coming and not queued.request.cancelled  # a cancelled request submits nothing any more
            for queue in self._queues.values()
            for queued in queue
        )

    def push(self, key: Hashable, request: QueuedRequest, window: Window, on_outcome: OnOutcome) -> None:
        """Add a request's next window."""
        start = max(self._virtual_time, request.next_start)
        queued = QueuedWindow(start, request.submitted, next(self._arrivals), window, request, on_outcome)
        heapq.heappush(self._queues.setdefault(key, []), queued)
        request.next_start = start + window.decoding.cost
        request.submitted += 1
        request.queued += 1
        self.requests += request.queued == 1

    def next_key(self) -> Hashable | None:
        """The batch key of the window that is next in order; None when the queue is empty."""
        return min(self._queues, key=lambda key: self._queues[key][0], default=None)

    def pop(self, key: Hashable, limit: int) -> list[QueuedWindow]:
        """Up to `limit` windows with this key, in order. Windows of cancelled requests are dropped."""
        queue = self._queues.get(key, [])
        popped: list[QueuedWindow] = []
        while queue and len(popped) < limit:
            queued = self._pop_first(queue)
            if not queued.request.cancelled:
                popped.append(queued)
        if not queue:
            self._queues.pop(key, None)
        return popped

    def _pop_first(self, queue: list[QueuedWindow]) -> QueuedWindow:
        queued = heapq.heappop(queue)
        self._virtual_time = max(self._virtual_time, queued.virtual_start) + 1.0 / self.requests
        queued.request.queued -= 1
        self.requests -= queued.request.queued == 0
        return queued
