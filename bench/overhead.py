"""The overhead of serving: a 10 s clip over HTTP, compared with the same call in this process, in turn."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from whispercore.serving.transcriber import Transcriber

from .load import Connection
from .plan import Plan
from .results import spread
from .server import ours
from .work import CLIP_SECONDS, HEADERS, TOKENS, clips, environment, in_process, options


@dataclass(frozen=True, slots=True)
class Round:
    """Median seconds of a round's calls, over HTTP and in this process."""

    http: float
    call: float


def measure(plan: Plan, log: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and results by model."""
    result = {}
    for size in plan.overhead_sizes:
        result[size] = measure_model(size, plan)
        log(f"{size}: {result[size]['overhead_ms'].median:.1f} ms over {result[size]['call_ms'].median:.0f} ms")
    settings = {"clip_seconds": CLIP_SECONDS, "tokens": TOKENS, "rounds": plan.overhead_rounds, "calls": plan.overhead_calls}
    return settings, result


def measure_model(size: str, plan: Plan) -> dict[str, Any]:
    """One model's overhead, the spread of every round's difference of medians, and the duration of the call itself."""
    variables = environment(size)
    transcriber, engine = in_process(variables)
    with transcriber, ours(variables) as server:
        server.wait_until_ready(clips()[0], HEADERS)
        with Connection(server.port, server.model) as connection:
            rounds = list(compare(connection, transcriber, plan))
        description = engine.describe()
    if set(engine.tokens) != {TOKENS}:
        raise RuntimeError(f"{TOKENS} tokens were to be decoded from every window; it was {sorted(set(engine.tokens))}")
    return {
        "engine": description,
        "overhead_ms": spread(1000 * (timing.http - timing.call) for timing in rounds),
        "http_ms": spread(1000 * timing.http for timing in rounds),
        "call_ms": spread(1000 * timing.call for timing in rounds),
    }


def compare(connection: Connection, transcriber: Transcriber, plan: Plan) -> Iterator[Round]:
    """Rounds of calls both ways.

    The first call of each way is not measured: it warms caches up after the other way's calls.
    """
    recordings, clip_options = itertools.cycle(clips()), options()

    def http(recording: bytes) -> tuple[float, str]:
        reply = connection.post(recording, HEADERS)
        return reply.seconds, json.loads(reply.body)["text"]

    def call(recording: bytes) -> tuple[float, str]:
        began = time.perf_counter()
        text = transcriber.submit(recording, clip_options).result().text
        return time.perf_counter() - began, text

    for _ in range(plan.overhead_rounds):
        batch = [next(recordings) for _ in range(plan.overhead_calls + 1)]
        served, called = [http(recording) for recording in batch], [call(recording) for recording in batch]
        if [text for _, text in served] != [text for _, text in called]:
            raise RuntimeError("the server's words differ from those of the call in process: not the same work")
        yield Round(*(statistics.median(seconds for seconds, _ in calls[1:]) for calls in (served, called)))
