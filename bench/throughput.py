"""Throughput: closed loops of 1, 8 and 32 requests against our server and the plain handler in turn, equal work, equal cores."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from .load import Load, Reply, closed_loop
from .plan import Plan
from .results import spread
from .server import Server, ours, plain
from .work import CLIP_SECONDS, HEADERS, TOKENS, checkpoint, clips, environment, in_process, options

VERBOSE = HEADERS | {"X-Whisper-Response-Format": "verbose_json"}


def measure(plan: Plan, tell: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and result, by concurrency. The ratio is of the two servers' rounds that follow each other."""
    variables = environment(plan.throughput_size)
    described = check_work(variables)
    with ours(variables) as whisper, plain(checkpoint(plan.throughput_size), TOKENS) as contender:
        for server in (whisper, contender):
            server.wait_until_ready(clips()[0], HEADERS)
        result = {str(concurrency): compare(whisper, contender, concurrency, plan, tell) for concurrency in plan.concurrencies}
    settings = {"model": f"{plan.throughput_size}, random weights", "tokens": TOKENS, "clip_seconds": CLIP_SECONDS, "engine": described}
    return settings | {"rounds": plan.throughput_rounds}, result


def check_work(variables: dict[str, str]) -> dict[str, Any]:
    """What the engine runs on. Raises RuntimeError when it does not decode the tokens it is told to."""
    transcriber, engine = in_process(variables)
    with transcriber:
        for job in [transcriber.submit(clip, options()) for clip in clips()]:
            job.result()
        described = engine.describe()
    if set(engine.tokens) != {TOKENS}:
        raise RuntimeError(f"{TOKENS} tokens were to be decoded from every window; it was {sorted(set(engine.tokens))}")
    return described


def compare(whisper: Server, contender: Server, concurrency: int, plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Rounds at one concurrency, in turn."""
    loads: dict[str, list[Load]] = {"whisper": [], "plain": []}
    for number in range(plan.throughput_rounds):
        loads["whisper"].append(run(whisper, concurrency, plan.requests(concurrency, patient=False), number))
        loads["plain"].append(run(contender, concurrency, plan.requests(concurrency, patient=True), number))
        rates = ", ".join(f"{name} {CLIP_SECONDS * seen[-1].requests_per_second:.1f}" for name, seen in loads.items())
        tell(f"{concurrency} at once, round {number + 1} of {plan.throughput_rounds}: {rates} s of audio per second")
    ratios = [ours.requests_per_second / theirs.requests_per_second for ours, theirs in zip(loads["whisper"], loads["plain"], strict=True)]
    return {"ratio": spread(ratios)} | {name: _summary(seen) for name, seen in loads.items()}


def run(server: Server, concurrency: int, requests: int, seed: int) -> Load:
    """One round; the replies are looked at after the clock has stopped."""
    load = closed_loop(server.port, server.model, clips(), VERBOSE, concurrency=concurrency, requests=requests, seed=seed)
    for reply in load.replies:
        check_reply(server.model, reply)
    return load


def check_reply(model: str, reply: Reply) -> None:
    """Raise RuntimeError unless the reply holds the tokens of one window: all of them, timestamps left out in ours."""
    content = json.loads(reply.body)
    if model == "plain":
        right = content["tokens"] == [TOKENS]
    else:
        right = TOKENS // 2 < sum(len(segment["tokens"]) for segment in content["segments"]) <= TOKENS
    if not right:
        raise RuntimeError(f"{model} did not decode {TOKENS} tokens: {reply.body[:300]!r}")


def _summary(loads: list[Load]) -> dict[str, Any]:
    latencies = [[reply.seconds for reply in load.replies] for load in loads]
    return {
        "requests": sum(len(load.replies) for load in loads),
        "requests_per_second": spread(load.requests_per_second for load in loads),
        "audio_per_second": spread(CLIP_SECONDS * load.requests_per_second for load in loads),
        "latency_median_seconds": spread(statistics.median(seconds) for seconds in latencies),
        "latency_worst_seconds": spread(max(seconds) for seconds in latencies),
    }
