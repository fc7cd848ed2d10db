"""Before the server goes: wait until every request it has taken is answered. TorchServe itself would reset them all."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass

from configuration import Address
from connections import busy_connections
from readiness import wake_worker
from signals import StopSignals
from torchserve import TorchServe

POLL_SECONDS = 0.1
# Nothing to do for so long counts as nothing to do: a request between two of the places looked at shows up in one of them again.
QUIET_SECONDS = 0.5
WAKE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Work:
    """What is unfinished, by where it is."""

    open: int
    queued: int
    moving: int

    @property
    def any(self) -> bool:
        """Whether there is some."""
        return bool(self.open or self.queued or self.moving)

    def __str__(self) -> str:
        return f"{self.open} open, {self.queued} queued, {self.moving} being sent"


def drain(server: TorchServe, stop: StopSignals) -> Work | None:
    """Wait until all is answered; what was not, when the grace period is over, TorchServe has gone or a second signal came.

    Requests that come meanwhile are answered too, but refused in the second half of the period: a stream of them must come to an end,
    and whoever still sends then would only be refused.
    """
    grace = server.configuration.grace_seconds
    began = quiet_at = woken_at = time.monotonic()
    while True:
        now, work = time.monotonic(), unfinished(server)
        refusing = now - began > grace / 2
        if refusing:
            server.refuse_new_requests()
        busy = work.open > 0 if refusing else work.any
        quiet_at = now if busy else quiet_at
        if now - quiet_at >= QUIET_SECONDS:
            return None
        if now - began > grace or stop.impatient or not server.alive:
            return work if busy else None
        if work.open and now - woken_at >= WAKE_SECONDS:
            woken_at = now
            wake_worker(server.configuration.inference)
        stop.wait(POLL_SECONDS)


def unfinished(server: TorchServe) -> Work:
    """Requests in the worker, requests in TorchServe's queue, and connections on which a body or a reply is on its way."""
    configuration = server.configuration
    return Work(server.open_requests, _queued(configuration.management), busy_connections(configuration.inference.port))


def _queued(management: Address) -> int:
    """Requests that TorchServe has taken and not yet given to the worker."""
    connection = http.client.HTTPConnection(management.reachable_host, management.port, timeout=5)
    try:
        connection.request("GET", "/models/whisper")
        return sum(int(model["jobQueueStatus"]["pendingRequests"]) for model in json.loads(connection.getresponse().read()))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return 0
    finally:
        connection.close()
