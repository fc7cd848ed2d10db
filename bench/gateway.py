"""What the gateway adds: `python -m bench gateway`. A clip and an hour of audio by four roads, in turn.

The engine is the fake one, which decodes nothing, so that what is left is reading and serving. The roads: the core called
in this process, the gateway over the core (--inprocess), TorchServe, and the gateway before TorchServe.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from whispercore.engines.fake import FakeEngine
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings

from . import results, speech
from .load import Connection
from .report import gateway as report
from .results import Spread, spread
from .server import Server, inprocess, ours
from .work import HEADERS, clips, options

ROUNDS, CALLS, HOURS = 5, 40, 3
HOUR = 3600
FAKE = {"WHISPER_ENGINE": "fake", "WHISPER_MODEL": "nano"}
Road = Callable[[bytes], float]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Measures, saves the result and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m bench gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of few calls, to try the harness; not saved among the results")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results")
    arguments = parser.parse_args(argv)
    folder = arguments.results or (Path("build/bench/quick") if arguments.quick else results.RESULTS)
    rounds, calls, hours = (1, 3, 1) if arguments.quick else (ROUNDS, CALLS, HOURS)
    origin = results.provenance()
    settings = {"engine": "fake", "rounds": rounds, "calls": calls, "hours": hours}
    results.save(folder, "gateway", origin, settings, measure(rounds, calls, hours))
    if folder == results.RESULTS:
        report.update()
    return 0


def measure(rounds: int, calls: int, hours: int) -> dict[str, Any]:
    """For each road the milliseconds of a clip, those it takes longer than the core, and the seconds of an hour."""
    with ExitStack() as stack:
        transcriber = stack.enter_context(Transcriber(Settings(), engine=FakeEngine()))
        alone, behind = stack.enter_context(inprocess(FAKE)), stack.enter_context(ours(FAKE))
        alone.wait_until_ready(clips()[0], HEADERS)
        behind.wait_until_ready(clips()[0], HEADERS)
        roads = {
            "core": _core(transcriber),
            "inprocess": _http(stack, alone, alone.port),
            "torchserve": _http(stack, behind, behind.port),
            "gateway": _http(stack, behind, behind.gateway_port),
        }
        clip = _medians(roads, clips(), rounds, calls)
        hour = {name: spread(road(speech.long_recording(HOUR, seed=seed)) for seed in range(hours)) for name, road in roads.items()}
    return {
        "clip_ms": {name: spread(1000 * seconds for seconds in medians) for name, medians in clip.items()},
        "overhead_ms": {name: _over(clip[name], clip["core"]) for name in clip if name != "core"},
        "hour_s": hour,
    }


def _medians(roads: dict[str, Road], recordings: Sequence[bytes], rounds: int, calls: int) -> dict[str, list[float]]:
    """The median of each round, after one call to warm up."""
    medians: dict[str, list[float]] = {name: [] for name in roads}
    for _ in range(rounds):
        for name, road in roads.items():
            seconds = [road(recordings[number % len(recordings)]) for number in range(calls + 1)][1:]
            medians[name].append(statistics.median(seconds))
    return medians


def _over(medians: Sequence[float], core: Sequence[float]) -> Spread:
    return spread(1000 * (one - other) for one, other in zip(medians, core, strict=True))


def _core(transcriber: Transcriber) -> Road:
    def call(recording: bytes) -> float:
        began = time.perf_counter()
        transcriber.submit(recording, options(), probe=True).result()
        return time.perf_counter() - began

    return call


def _http(stack: ExitStack, server: Server, port: int) -> Road:
    connection = stack.enter_context(Connection(port, server.model))
    return lambda recording: connection.post(recording, HEADERS).seconds
