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
    """Wait until all is answered; what was not, when the grace period is over, TorchServe has gone or a second signal came."""
    asked_at = time.monotonic()
    deadline = asked_at + server.configuration.grace_seconds
    quiet_since = None
    while True:
        now, work = time.monotonic(), unfinished(server)
        if work.open and now - asked_at >= WAKE_SECONDS:
            asked_at = now
            wake_worker(server.configuration.inference)
        if not work.any:
            quiet_since = quiet_since or now
            if now - quiet_since >= QUIET_SECONDS:
                return None
        else:
            quiet_since = None
        if now > deadline or stop.impatient or not server.alive:
            return work if work.any else None
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
