"""Drains the server before it stops: waits until every accepted request is answered. TorchServe itself would reset them all."""

from __future__ import annotations

import http.client
import json
import math
import time
from dataclasses import dataclass

from .configuration import Address
from .connections import busy_connections
from .frontdoor import FrontDoor
from .readiness import wake_worker
from .signals import StopSignals
from .torchserve import TorchServe

POLL_SECONDS = 0.1
# Requests are counted in three places, one after the other. One that moves from one place to the next during the count can be missed,
# but it is found by a later count within this time.
QUIET_SECONDS = 0.5
WAKE_SECONDS = 2.0
REFUSING_SECONDS = 2.0
"""How long requests that are on their way when the worker begins to refuse them are waited for: they get the reason, not a closed port."""


@dataclass(frozen=True, slots=True)
class PendingRequests:
    """Unanswered requests by where they are: in the worker, in TorchServe's queue, or on a connection that sends or receives."""

    in_worker: int
    in_queue: int
    in_transfer: int

    @property
    def total(self) -> int:
        """All of them. A request may be counted in two places."""
        return self.in_worker + self.in_queue + self.in_transfer

    def __str__(self) -> str:
        return f"{self.in_worker} open, {self.in_queue} queued, {self.in_transfer} being sent"


def drain(server: TorchServe, door: FrontDoor | None, stop: StopSignals) -> PendingRequests | None:
    """Wait until every request is answered and the gateway, which accepts none any more, has ended. Then return None.

    When the grace period is over, TorchServe has ended or a second signal has arrived, the requests that are still pending are returned.
    New requests are answered in the first half of the grace period. In the second half the worker refuses them, and soon only those that
    the worker already holds are waited for: otherwise a steady stream of requests would keep it waiting.
    """
    grace = server.configuration.grace_seconds
    began = busy_at = woken_at = time.monotonic()
    refuses_since = math.inf
    if door:
        door.terminate()
    while True:
        now, pending = time.monotonic(), pending_requests(server)
        refusing = now - began > grace / 2
        if refusing:
            server.refuse_new_requests()
        if server.open_requests.refuses:
            refuses_since = min(refuses_since, now)
        worker_is_unaware = refusing and refuses_since == math.inf
        waited_for = pending.in_worker if now - refuses_since > REFUSING_SECONDS else pending.total
        busy = waited_for > 0 or (door is not None and door.alive)
        busy_at = now if busy or worker_is_unaware else busy_at
        # The count in the worker is 0 for a moment whenever it has answered a batch. So it must stay unchanged for a while, too.
        if min(now - busy_at, server.unchanged_seconds) >= QUIET_SECONDS:
            return None
        if now - began > grace or stop.immediate or not server.alive:
            return pending if busy else None
        if (pending.in_worker or worker_is_unaware) and now - woken_at >= WAKE_SECONDS:
            woken_at = now
            wake_worker(server.configuration.inference, timeout=1.0)
        stop.wait(POLL_SECONDS)


def pending_requests(server: TorchServe) -> PendingRequests:
    """Count the unanswered requests."""
    configuration = server.configuration
    return PendingRequests(server.open_requests.number, _queued(configuration.management), busy_connections(configuration.inference.port))


def _queued(management: Address) -> int:
    """Requests that TorchServe has accepted but not yet passed to the worker; 0 when it does not answer."""
    connection = http.client.HTTPConnection(management.reachable_host, management.port, timeout=5)
    try:
        connection.request("GET", "/models/whisper")
        return sum(int(model["jobQueueStatus"]["pendingRequests"]) for model in json.loads(connection.getresponse().read()))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return 0
    finally:
        connection.close()
