"""The queue of windows, fair in two levels: first between clients, then between the requests of a client.

Hierarchical fair queueing (Bennett and Zhang, 1996; Goyal, Guo and Vin, 1996): each client has a queue of its own, and
the clients stand in a queue whose unit of work is the next window of a client. Both levels are weighted fair queueing
(Demers, Keshav and Shenker, 1989) by virtual start times, with one greedy window as the unit; a wider search counts as
more, so its next turn comes later.

The virtual time of a level advances by one over the number of its members that wait, and a member that was idle starts
at the current virtual time. A clip's only window therefore goes into the next batch, however many windows of a long
file or of another client are queued, and a stream of clips cannot starve the file. A client keeps its place when it has
nothing queued for a moment, so a client that sends one request after the other gets no more than its share.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ..errors import WhisperError
from ..types import Decoded, Window

WATCHDOG = "\0watchdog"
"""The client whose windows and steps of reading go before those of all others. No header can hold this name."""
Outcome = Decoded | WhisperError
OnOutcome = Callable[[Outcome], None]
FIRST = -math.inf
"""The virtual start of the watchdog's turns."""
SPARE_CLIENTS = 64
"""Idle clients that are remembered in any case."""
_Order = tuple[float, int, int]
"""A virtual start; of equal ones the member with the fewest turns so far goes first, then the one that came first."""


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request as the queue sees it.

    `client`: whose request it is; "" when clients are not told apart. `next_start`: the virtual start of its next
    window. `submitted`: its windows so far. `queued`: those that have not been taken. `cancelled`: its windows are
    dropped. `more_coming`: it will submit more windows within a moment, because its recording is being read.
    """

    client: str = ""
    next_start: float = 0.0
    submitted: int = 0
    queued: int = 0
    cancelled: bool = False
    more_coming: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class QueuedWindow:
    """A window in the queue, and its place among the windows of its client."""

    order: _Order
    window: Window
    request: QueuedRequest
    on_outcome: OnOutcome


@dataclass(slots=True, eq=False)
class _Client:
    """The windows of one client, one heap for each batch key.

    `order`: its place among the clients, which only ever moves back. `virtual_time`: among its own requests. `requests`:
    those with windows queued. `windows`: those queued, without the `cancelled` ones that are still in the heaps.
    """

    order: _Order
    virtual_time: float
    requests: int = 0
    windows: int = 0
    cancelled: int = 0
    heaps: dict[Hashable, list[tuple[_Order, QueuedWindow]]] = field(default_factory=dict)

    def start_at(self, virtual_time: float) -> None:
        """Its next turn comes at this virtual time, if that is later than its place."""
        start, turns, number = self.order
        if start > FIRST:
            self.order = max(start, virtual_time), turns, number

    def heap(self, key: Hashable) -> list[tuple[_Order, QueuedWindow]]:
        """Its windows with this key. The first one is not cancelled; the heap is forgotten when it is empty."""
        heap = self.heaps[key]
        while heap and heap[0][1].request.cancelled:
            heapq.heappop(heap)
            self.cancelled -= 1
        if not heap:
            del self.heaps[key]
        return heap

    def drop_cancelled(self) -> None:
        """Free the samples of cancelled windows."""
        for heap in self.heaps.values():
            heap[:] = [item for item in heap if not item[1].request.cancelled]
            heapq.heapify(heap)
        self.cancelled = 0


class Backlog:
    """Queued windows. Windows with equal batch keys may share a batch.

    Not thread-safe: the scheduler's lock guards it. A push and a pop take time logarithmic in the numbers of clients and
    of the client's windows.
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        self._busy_clients = 0
        self._virtual_time = 0.0
        self._latest = 0.0
        self._arrivals = itertools.count()
        self._windows = 0
        self._waiting: dict[QueuedRequest, None] = {}
        # For each batch key the clients with such windows. A turn for another key moves a client back here too: its
        # entry gets its new place when it comes to the top.
        self._turns: dict[Hashable, list[tuple[_Order, _Client]]] = {}

    def __len__(self) -> int:
        """The number of windows in the queue, without those of cancelled requests."""
        return self._windows

    @property
    def requests(self) -> int:
        """The number of requests that have windows in the queue."""
        return len(self._waiting)

    @property
    def more_coming(self) -> bool:
        """Whether a request with windows in the queue will submit more within a moment."""
        return any(request.more_coming for request in self._waiting)

    @property
    def clips(self) -> int:
        """The number of requests whose only window waits."""
        return sum(request.submitted == 1 and not request.more_coming for request in self._waiting)

    @property
    def has_longer(self) -> bool:
        """Whether a request that had a window before has another in the queue: of a longer recording, or a retry."""
        return any(request.submitted > 1 for request in self._waiting)

    def push(self, key: Hashable, request: QueuedRequest, window: Window, on_outcome: OnOutcome) -> None:
        """Add a request's next window."""
        client = self._client(request.client)
        start = max(client.virtual_time, request.next_start)
        queued = QueuedWindow((start, request.submitted, next(self._arrivals)), window, request, on_outcome)
        request.next_start = start + window.decoding.cost
        self._latest = max(self._latest, request.next_start)
        request.submitted += 1
        request.queued += 1
        if request.queued == 1:
            self._waiting[request] = None
            client.requests += 1
        if not client.windows:
            self._busy_clients += 1
            client.start_at(self._virtual_time)
        client.windows += 1
        self._windows += 1
        if key not in client.heaps:
            client.heaps[key] = []
            heapq.heappush(self._turns.setdefault(key, []), (client.order, client))
        heapq.heappush(client.heaps[key], (queued.order, queued))

    def next_key(self) -> Hashable | None:
        """The batch key of the window that is next in order; None when the queue is empty."""
        if len(self._turns) == 1:  # the usual case
            (key,) = self._turns
            return key if self._next_client(key) else None
        tops = {key: (client.order, client.heaps[key][0][0]) for key in list(self._turns) if (client := self._next_client(key))}
        return min(tops, key=lambda key: tops[key], default=None)

    def pop(self, key: Hashable, limit: int) -> list[QueuedWindow]:
        """Up to `limit` windows with this key, in order."""
        popped: list[QueuedWindow] = []
        while len(popped) < limit and (client := self._next_client(key)):
            popped.append(self._pop_from(client, key))
        return popped

    def cancel(self, request: QueuedRequest) -> None:
        """Drop a request's windows."""
        request.cancelled = True
        if not request.queued:
            return
        client = self._clients[request.client]
        client.cancelled += request.queued
        client.windows -= request.queued
        self._windows -= request.queued
        request.queued = 0
        self._forget_waiting(client, request)
        if client.cancelled > client.windows:  # then the time of dropping them is no more than that of having queued them
            client.drop_cancelled()

    def _client(self, name: str) -> _Client:
        client = self._clients.get(name)
        if client is None:
            if len(self._clients) > 2 * self._busy_clients + SPARE_CLIENTS:
                self._forget_idle_clients()
            start = FIRST if name == WATCHDOG else self._virtual_time
            # Its requests may have had windows before it was forgotten: no start of theirs is later than `_latest`.
            client = self._clients[name] = _Client((start, 0, next(self._arrivals)), self._latest)
        return client

    def _next_client(self, key: Hashable) -> _Client | None:
        """The client whose turn is next, of those with windows of this key."""
        turns = self._turns.get(key, [])
        while turns:
            order, client = turns[0]
            if not client.heap(key):
                heapq.heappop(turns)
            elif order != client.order:
                heapq.heapreplace(turns, (client.order, client))
            else:
                return client
        self._turns.pop(key, None)
        return None

    def _pop_from(self, client: _Client, key: Hashable) -> QueuedWindow:
        (window_start, *_), queued = heapq.heappop(client.heaps[key])
        client.virtual_time = max(client.virtual_time, window_start) + 1.0 / client.requests
        client_start, turns, number = client.order
        self._virtual_time = max(self._virtual_time, client_start) + 1.0 / self._busy_clients
        client.order = client_start + queued.window.decoding.cost, turns + 1, number
        client.windows -= 1
        self._windows -= 1
        queued.request.queued -= 1
        self._forget_waiting(client, queued.request)
        return queued

    def _forget_waiting(self, client: _Client, request: QueuedRequest) -> None:
        """Note that a request, and perhaps its client, has no window in the queue any more."""
        if not request.queued:
            del self._waiting[request]
            client.requests -= 1
        self._busy_clients -= not client.windows

    def _forget_idle_clients(self) -> None:
        """Forget the clients that would get no other place if they were new."""
        kept = {name: client for name, client in self._clients.items() if client.heaps or client.order[0] > self._virtual_time}
        self._clients = kept
