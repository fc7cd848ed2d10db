"""The worker's memory over thousands of requests: `python -m bench soak`. A leak or an unbounded cache shows as a
slope."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import results, speech
from .load import closed_loop
from .report import plot
from .report import serve as report
from .server import Server, ours
from .work import environment

REQUESTS, WARMUP, TOLERANCE = 2000, 200, 0.02
"""The number of requests, the number after which memory must be flat, and the tolerance for flat."""
SAMPLE_EVERY, TOGETHER = 20, 4
SECONDS = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Lengths of the clips; no two clips are the same."""
HEADERS = {"Content-Type": "audio/flac"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Measures, saves the result and its plot, and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results, from which docs/measured.md is generated")
    arguments = parser.parse_args(argv)
    folder, origin = arguments.results or results.RESULTS, results.provenance()
    settings = {"model": "nano", "requests": arguments.requests, "warmup": WARMUP, "tolerance": TOLERANCE, "clip_seconds": SECONDS}
    with ours(environment("nano", tokens=0)) as server:
        server.wait_until_ready(speech.clips(1, SECONDS[0], seed=1)[0], HEADERS)
        measured = soak(server, arguments.requests)
    path = results.save(folder, "serve-memory", origin, settings, summary(measured))
    print(plot.memory(path))
    if folder == results.RESULTS:
        report.update()
    return 0


def soak(server: Server, requests: int) -> list[tuple[int, float]]:
    """(requests answered, the worker's resident megabytes) after every `SAMPLE_EVERY` requests."""
    measured = [(0, server.worker_memory())]
    for first in range(0, requests, SAMPLE_EVERY):
        clips = [speech.clips(1, SECONDS[number % len(SECONDS)], seed=number)[0] for number in range(first, first + SAMPLE_EVERY)]
        closed_loop(server.port, server.model, clips, HEADERS, concurrency=TOGETHER)
        measured.append((first + SAMPLE_EVERY, server.worker_memory()))
    return measured


def summary(measured: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """The memory after the warm-up, its lowest and highest value from then on, and the largest relative change."""
    later = [megabytes for number, megabytes in measured if number >= WARMUP] or [measured[-1][1]]
    drift = max(abs(megabytes - later[0]) for megabytes in later) / later[0]
    figures = {"after_warmup_mb": later[0], "low_mb": min(later), "high_mb": max(later), "last_mb": later[-1]}
    return figures | {"drift": round(drift, 4), "measured": measured}
