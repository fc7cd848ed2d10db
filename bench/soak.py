"""The memory of every process over thousands of requests: `python -m bench soak`. A leak or an unbounded cache shows as a
slope over the second half.

`--requests 20000 --seconds 0.5 1` sends many short clips, which wear the paths of a request more than the engine's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from . import results, speech
from .load import closed_loop
from .report import plot
from .report import serve as report
from .server import Front, Server, ours
from .work import environment

REQUESTS, WARMUP, TOLERANCE = 2000, 200, 0.02
"""The number of requests, the number after which memory must be flat, and the tolerance for flat."""
SAMPLES, TOGETHER = 100, 4
"""How often memory is measured, and requests at once."""
SECONDS = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Lengths of the clips; no two clips are the same."""
HEADERS = {"Content-Type": "audio/flac"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Measures, saves the result and its plot, and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--front", choices=get_args(Front), default="gateway", help="what the requests reach; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=SECONDS, metavar="S", help="lengths of the clips in turn; default: %(default)s"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results, from which docs/measured.md is generated")
    arguments = parser.parse_args(argv)
    folder, origin = arguments.results or results.RESULTS, results.provenance()
    settings = {"model": "nano", "requests": arguments.requests, "warmup": WARMUP, "tolerance": TOLERANCE}
    settings |= {"clip_seconds": arguments.seconds, "front": arguments.front}
    with ours(environment("nano", tokens=0), arguments.front) as server:
        server.wait_until_ready(speech.clips(1, 1.0, seed=1)[0], HEADERS)
        measured = soak(server, arguments.requests, arguments.seconds)
    path = results.save(folder, "serve-memory", origin, settings, summary(measured))
    print(plot.memory(path))
    if folder == results.RESULTS:
        report.update()
    return 0


def soak(server: Server, requests: int, seconds: Sequence[float]) -> list[tuple[int, dict[str, float]]]:
    """(requests answered, resident megabytes by process), a hundred times in equal steps."""
    measured = [(0, server.memory())]
    step = max(TOGETHER, requests // SAMPLES)
    for first in range(0, requests, step):
        numbers = range(first, min(first + step, requests))
        clips = [speech.clips(1, seconds[number % len(seconds)], seed=number)[0] for number in numbers]
        closed_loop(server.port, server.model, clips, HEADERS, concurrency=min(TOGETHER, len(clips)))
        measured.append((numbers.stop, server.memory()))
    return measured


def summary(measured: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, Any]:
    """The memory of the process that transcribes: after the warm-up, its lowest and highest value from then on and the largest
    relative change. Then the figures of every process."""
    role = "worker" if "worker" in measured[0][1] else "gateway"
    worker = [(number, memory[role]) for number, memory in measured]
    later = [megabytes for number, megabytes in worker if number >= WARMUP] or [worker[-1][1]]
    drift = max(abs(megabytes - later[0]) for megabytes in later) / later[0]
    figures = {"after_warmup_mb": later[0], "low_mb": min(later), "high_mb": max(later), "last_mb": later[-1]}
    roles = [role for role in measured[0][1] if all(role in memory for _, memory in measured)]
    processes = {role: slope([(number, memory[role]) for number, memory in measured]) for role in roles}
    return figures | {"drift": round(drift, 4), "measured": worker, "processes": processes}


def slope(measured: Sequence[tuple[int, float]]) -> dict[str, float]:
    """The memory of one process at the start, halfway and at the end, and by how many megabytes it grows in 1,000
    requests, by linear regression over the second half."""
    half = [(number, megabytes) for number, megabytes in measured if 2 * number >= measured[-1][0]]
    grows = statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 1 else 0.0
    return {"start_mb": measured[0][1], "half_mb": half[0][1], "end_mb": half[-1][1], "mb_per_1000": round(1000 * grows, 3)}
