"""The worker's memory over thousands of requests: `python -m bench soak`. What leaks, or is cached without end, shows as a slope."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import results, serve_plot, speech, table
from .load import closed_loop
from .server import Server, ours
from .work import environment

REQUESTS, WARMUP, TOLERANCE = 2000, 200, 0.02
"""Requests in all, those after which the memory must be flat, and what flat is."""
SAMPLE_EVERY, TOGETHER = 20, 4
SECONDS = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Of the clips: of different lengths, no two the same."""
HEADERS = {"Content-Type": "audio/flac"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Measures, keeps the result with its picture, and writes the README's table."""
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results; the README shows those")
    arguments = parser.parse_args(argv)
    folder, origin = arguments.results or results.RESULTS, results.provenance()
    settings = {"model": "nano", "requests": arguments.requests, "warmup": WARMUP, "tolerance": TOLERANCE, "clip_seconds": SECONDS}
    with ours(environment("nano", tokens=0)) as server:
        server.wait_until_ready(speech.clips(1, SECONDS[0], seed=1)[0], HEADERS)
        measured = soak(server, arguments.requests)
    path = results.save(folder, "serve-memory", origin, settings, summary(measured))
    print(serve_plot.save_memory(path))
    if folder == results.RESULTS:
        table.update_serve()
    return 0


def soak(server: Server, requests: int) -> list[tuple[int, float]]:
    """(requests answered, megabytes resident) of the worker, every few requests."""
    measured = [(0, server.worker_memory())]
    for first in range(0, requests, SAMPLE_EVERY):
        clips = [speech.clips(1, SECONDS[number % len(SECONDS)], seed=number)[0] for number in range(first, first + SAMPLE_EVERY)]
        closed_loop(server.port, server.model, clips, HEADERS, concurrency=TOGETHER)
        measured.append((first + SAMPLE_EVERY, server.worker_memory()))
    return measured


def summary(measured: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """The memory after the warm-up, the least and the most from there on, and the farthest from it as a share."""
    later = [megabytes for number, megabytes in measured if number >= WARMUP] or [measured[-1][1]]
    drift = max(abs(one - later[0]) for one in later) / later[0]
    known = {"after_warmup_mb": later[0], "low_mb": min(later), "high_mb": max(later), "last_mb": later[-1]}
    return known | {"drift": round(drift, 4), "measured": measured}
