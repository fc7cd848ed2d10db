"""Which connections of a port carry something just now: the kernel knows, TorchServe does not tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ESTABLISHED, _CLOSE_WAIT = "01", "08"


def busy_connections(port: int) -> int:
    """Connections to the local `port` with bytes that were sent and not yet taken, in either direction."""
    return sum(queued > 0 for queued in _queues(port))


def _queues(port: int) -> Iterator[int]:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            rows = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, local, _, state, queues, *_ = row.split()
            if state in (_ESTABLISHED, _CLOSE_WAIT) and int(local.rpartition(":")[2], 16) == port:
                sending, _, receiving = queues.partition(":")
                yield int(sending, 16) + int(receiving, 16)
