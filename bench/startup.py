"""Start-up: seconds from the command to the first reply, everything set up before; ours and the plain handler's in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .plan import Plan
from .results import spread
from .server import Readiness, Server, ours, plain
from .work import HEADERS, ROOT, checkpoint, environment

SAMPLE = ROOT / "samples" / "timer.flac"


def measure(plan: Plan, tell: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and result. Both run the nano model; serve.sh's first start, which may set things up, does not count."""
    variables = environment("nano", tokens=0)
    first_reply(ours(variables))
    readiness: dict[str, list[Readiness]] = {"whisper": [], "plain": []}
    for number in range(plan.starts):
        readiness["whisper"].append(first_reply(ours(variables)))
        readiness["plain"].append(first_reply(plain(checkpoint("nano"), tokens=0)))
        tell(f"start {number + 1} of {plan.starts}: " + ", ".join(f"{name} {seen[-1].reply:.1f} s" for name, seen in readiness.items()))
    return {"model": "nano", "starts": plan.starts}, {name: _summary(seen) for name, seen in readiness.items()}


def first_reply(server: Server) -> Readiness:
    """Wait for a server's first reply, then stop it."""
    with server:
        return server.wait_until_ready(SAMPLE.read_bytes(), HEADERS)


def _summary(seen: list[Readiness]) -> dict[str, Any]:
    return {"ping_seconds": spread(one.ping for one in seen), "reply_seconds": spread(one.reply for one in seen)}
