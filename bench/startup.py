"""Start-up: seconds from the command to the first reply with everything set up before, ours and the plain handler's in
turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .plan import Plan
from .results import spread
from .server import Readiness, Server, ours, plain
from .work import HEADERS, ROOT, checkpoint, environment

SAMPLE = ROOT / "samples" / "timer.flac"


def measure(plan: Plan, log: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and result.

    Both run the nano model. The first start of serve.sh, which may set things up, is not measured.
    """
    variables = environment("nano", tokens=0)
    first_reply(ours(variables))
    readiness: dict[str, list[Readiness]] = {"whisper": [], "plain": []}
    for number in range(plan.starts):
        readiness["whisper"].append(first_reply(ours(variables)))
        readiness["plain"].append(first_reply(plain(checkpoint("nano"), tokens=0)))
        replies = ", ".join(f"{name} {starts[-1].reply:.1f} s" for name, starts in readiness.items())
        log(f"start {number + 1} of {plan.starts}: {replies}")
    return {"model": "nano", "starts": plan.starts}, {name: _summary(starts) for name, starts in readiness.items()}


def first_reply(server: Server) -> Readiness:
    """Wait for a server's first reply, then stop it."""
    with server:
        return server.wait_until_ready(SAMPLE.read_bytes(), HEADERS)


def _summary(starts: list[Readiness]) -> dict[str, Any]:
    return {"ping_seconds": spread(start.ping for start in starts), "reply_seconds": spread(start.reply for start in starts)}
