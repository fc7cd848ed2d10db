"""Whether the host keeps a fast device busy: `python -m bench host`. No GPU is needed: engine `torch` runs on a paced device.

The device (`paced.PacedDevice`) takes the times that an H200 takes, slowed down so that two cores stand for the sixteen
that served it. The ceiling is the engine fed from memory. Every other load goes through the core: reading, detecting
voices, scheduling, text. Each load gives its seconds of audio per second, its share of the ceiling, its launches
(admissions) and the processor seconds that an hour of audio costs, by kind of thread. Three loads come over HTTP: the gateway
runs in the core's process, as with `serve.sh --inprocess`, and the client in another one.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from whispercore.audio.recording import read_samples
from whispercore.options import Options
from whispercore.serving.backlog import QueuedRequest
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.torchserve.handshake import CLIENT_HEADER
from whispercore.types import SAMPLE_RATE, Decoding, Samples, Window

from . import datasets, results, served, speech
from .paced import SIZE, SLOWDOWN, PacedEngine
from .report import host as report
from .work import SCRATCH, encode, options

HOUR, TEN_MINUTES, WINDOW, CLIP = 3600, 600, 30, 10
ROUNDS = 3
READING = ("reader", "decoder", "vad")
"""The names of the threads that read recordings begin with these words."""
PIECES = 48
"""Different windows, and different clips."""
CLIPS_AT_ONCE = {1: 6, 8: 32, 32: 96, 128: 256}
"""Clips at once, and how many in all."""


@dataclass(slots=True)
class Cost:
    """What a load took: `seconds` of wall time, processor seconds by kind, admissions, windows, and the device's own seconds.

    `latencies`: of the load's clips, or of those that ran beside it. `audio`: seconds of audio.
    """

    audio: float = 0.0
    seconds: float = 0.0
    processor: dict[str, float] = field(default_factory=dict)
    launches: int = 0
    windows: int = 0
    device: float = 0.0
    latencies: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Measures, saves the result among those of other runs, and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m bench host", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="now", help="the run's name in the result and the table, such as `before` (default: now)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--slowdown", type=float, default=SLOWDOWN, help="the device's, against an H200 (default: %(default)g)")
    parser.add_argument("--loads", nargs="+", default=NAMES, choices=NAMES, metavar="LOAD", help=", ".join(NAMES))
    parser.add_argument("--results", type=Path, metavar="DIR", default=results.RESULTS)
    arguments = parser.parse_args(argv)
    origin = results.provenance()
    measured = measure(arguments.loads, arguments.rounds, arguments.slowdown)
    run = {"provenance": origin, "rounds": arguments.rounds, "slowdown": arguments.slowdown, "loads": measured}
    earlier = results.load(arguments.results, "host")
    runs = (earlier["result"] if earlier else {}) | {arguments.name: run}
    results.save(arguments.results, "host", origin, {"model": SIZE, "speech": _source()}, runs)
    print(report.table(cast(dict[str, Any], results.load(arguments.results, "host"))["result"]))
    if arguments.results == results.RESULTS:
        report.update()
    return 0


def measure(loads: Sequence[str], rounds: int, slowdown: float) -> dict[str, dict[str, Any]]:
    """The medians of each load over all rounds."""
    engine = PacedEngine(slowdown)
    transcriber = Transcriber(Settings(model=SIZE, client_header=CLIENT_HEADER), engine=engine)
    with served.gateway(transcriber) as url:
        transcriber.submit(pieces(CLIP)[0], options()).result()
        over_http = {name: partial(load, url) for name, load in OVER_HTTP.items()}
        costs: dict[str, list[Cost]] = {name: [] for name in loads}
        for _ in range(rounds):
            for name in loads:
                costs[name].append((LOADS | over_http)[name](engine, transcriber))
    return {name: summary(each) for name, each in costs.items()}


def summary(costs: Sequence[Cost]) -> dict[str, Any]:
    """Medians, with the processor seconds for an hour of audio."""
    kinds = costs[0].processor
    return {
        "seconds": results.spread(cost.seconds for cost in costs),
        "rtfx": results.spread(cost.audio / cost.seconds for cost in costs),
        "busy": results.spread(cost.device / cost.seconds for cost in costs),
        "launches": statistics.median(cost.launches for cost in costs),
        "windows": statistics.median(cost.windows for cost in costs),
        "processor_per_hour": {kind: results.spread(HOUR * cost.processor[kind] / cost.audio for cost in costs) for kind in kinds},
    } | ({"latency": results.spread(latency for cost in costs for latency in cost.latencies)} if costs[0].latencies else {})


@contextmanager
def measured(engine: PacedEngine, transcriber: Transcriber, audio: float) -> Iterator[Cost]:
    """Measure what the block costs."""
    cost, counters = Cost(audio), transcriber.scheduler.counters
    launches, windows, device = engine.device.launches, counters.windows, engine.device.seconds
    before, began = processor_seconds(), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - began
    after = processor_seconds()
    cost.processor = {kind: max(0.0, after[kind] - before[kind]) for kind in after}
    cost.launches, cost.windows = engine.device.launches - launches, counters.windows - windows
    cost.device = engine.device.seconds - device


def processor_seconds() -> dict[str, float]:
    """Of this process and its children so far: `reading` (threads and processes), the `engine`'s thread, `outcomes`, and `others`."""
    spent = {"reading": 0.0, "engine": 0.0, "outcomes": 0.0}
    for thread in threading.enumerate():
        kind = "reading" if thread.name.startswith(READING) else {"scheduler-0": "engine", "outcomes": "outcomes"}.get(thread.name)
        if kind and thread.native_id:
            spent[kind] += _thread_seconds(thread.native_id)
    others = time.process_time() - sum(spent.values())
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            # of processes that have ended, too: copies of a reader
            spent["reading"] += times.user + times.system + times.children_user + times.children_system
    return spent | {"others": others}


def _thread_seconds(thread: int) -> float:
    """The processor seconds of a thread of this process, by Linux's scheduler; 0.0 when it has just ended."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        return 0.0


def ceiling(engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """The engine alone: windows from memory, twice as many as it has slots. What it computed is thrown away."""
    windows = memory_windows(2 * engine.max_batch)
    with measured(engine, transcriber, WINDOW * len(windows)) as cost:
        engine.decode_feed(_Memory(deque(windows)))
    return replace(cost, windows=len(windows))


@dataclass(frozen=True, slots=True)
class _Memory:
    """A feed of windows in memory."""

    waiting: deque[Window]

    def take(self, most: int, *, at_least: int = 1) -> list[Window]:
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))] if len(self.waiting) >= at_least else []

    def done(self, window: Window, result: object) -> None:
        pass


def scheduled(engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """The same windows through the scheduler, one request each: no recording is read, so it shows what the engine's process can do."""
    windows, answers = memory_windows(2 * engine.max_batch), threading.Semaphore(0)
    with measured(engine, transcriber, WINDOW * len(windows)) as cost:
        for window in windows:
            transcriber.scheduler.submit(QueuedRequest(), window, lambda outcome: answers.release())
        for _ in windows:
            answers.acquire()
    return cost


def memory_windows(count: int) -> list[Window]:
    """Windows of 30 s of noise, aligned as the core asks."""
    samples = np.random.default_rng(0).normal(scale=0.1, size=WINDOW * SAMPLE_RATE).astype(np.float32)
    decoding = replace(Decoding(language="en"), timestamps=False, alignment="all")
    return [Window(samples, float(WINDOW * number), decoding) for number in range(count)]


def full_windows(engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """Recordings of 30 s, 64 of them open."""
    return closed_loop(engine, transcriber, pieces(WINDOW), options(), at_once=64, count=256, seconds=WINDOW)


def hour(engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """One mp3 of an hour, with voice detection."""
    return closed_loop(engine, transcriber, [mp3(HOUR, 0)], Options(language="en"), at_once=1, count=1, seconds=HOUR)


def files(engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """Eight mp3 of ten minutes at once."""
    recordings = [mp3(TEN_MINUTES, number) for number in range(8)]
    return closed_loop(engine, transcriber, recordings, Options(language="en"), at_once=8, count=8, seconds=TEN_MINUTES)


def clips(at_once: int) -> Callable[[PacedEngine, Transcriber], Cost]:
    """Clips of 10 s, so many open at a time."""

    def load(engine: PacedEngine, transcriber: Transcriber) -> Cost:
        return closed_loop(engine, transcriber, pieces(CLIP), options(), at_once=at_once, count=CLIPS_AT_ONCE[at_once], seconds=CLIP)

    return load


def beside(engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """Clips one after the other while an hour is transcribed. The cost is that of the hour; the latencies are the clips'."""
    job = transcriber.submit(mp3(HOUR, 0), Options(language="en"))
    latencies: list[float] = []
    with measured(engine, transcriber, HOUR) as cost:
        while not job.ended:
            latencies.append(_timed(transcriber, pieces(CLIP)[len(latencies) % PIECES], options()))
    job.result()
    return replace(cost, latencies=latencies)


def closed_loop(
    engine: PacedEngine, transcriber: Transcriber, recordings: Sequence[bytes], asked: Options, *, at_once: int, count: int, seconds: int
) -> Cost:
    """`count` requests, `at_once` open at any time."""
    each = [recordings[number % len(recordings)] for number in range(count)]
    with measured(engine, transcriber, seconds * count) as cost, ThreadPoolExecutor(at_once) as callers:
        latencies = list(callers.map(lambda recording: _timed(transcriber, recording, asked), each))
    return replace(cost, latencies=latencies)


def _timed(transcriber: Transcriber, recording: bytes, asked: Options) -> float:
    began = time.perf_counter()
    transcriber.submit(recording, asked).result()
    return time.perf_counter() - began


def full_windows_over_http(url: str, engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """As `full_windows`, through the gateway."""
    return over_http(url, engine, transcriber, pieces(WINDOW), "flac", at_once=64, repeat=5, seconds=WINDOW, vad=False)


def hour_over_http(url: str, engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """As `hour`, through the gateway."""
    return over_http(url, engine, transcriber, [mp3(HOUR, 0)], "mp3", at_once=1, seconds=HOUR)


def files_over_http(url: str, engine: PacedEngine, transcriber: Transcriber) -> Cost:
    """As `files`, through the gateway."""
    recordings = [mp3(TEN_MINUTES, number) for number in range(8)]
    return over_http(url, engine, transcriber, recordings, "mp3", at_once=8, seconds=TEN_MINUTES)


def over_http(
    url: str,
    engine: PacedEngine,
    transcriber: Transcriber,
    recordings: Sequence[bytes],
    suffix: str,
    *,
    at_once: int,
    repeat: int = 1,
    seconds: int,
    vad: bool = True,
) -> Cost:
    """What requests through the gateway cost. The client's own processor time is not counted, but it takes it from the same cores."""
    with measured(engine, transcriber, seconds * len(recordings) * repeat) as cost:
        answers = served.send(url, recordings, suffix, at_once=at_once, repeat=repeat, vad=vad)
    return replace(cost, seconds=answers.seconds, latencies=answers.latencies)


@cache
def talk() -> Samples:
    """Real chapters one after the other where there are any, else sentences of the sample: 20 minutes."""
    paths = _chapters()
    samples = np.concatenate([read_samples(path) for path in paths]) if paths else speech.recording(1200, 0)
    return np.resize(samples, 1200 * SAMPLE_RATE)


def _chapters() -> list[Path]:
    folder = datasets.speech_folder() / "librispeech-chapters"
    return sorted(folder.glob("*.ogg"))


def _source() -> str:
    return "chapters of LibriSpeech" if _chapters() else "samples/home.flac"


def mp3(seconds: int, number: int) -> bytes:
    """A recording of this duration, as mp3. Made once and kept as a file."""
    path = SCRATCH / f"{'chapters' if _chapters() else 'sample'}-{seconds}-{number}.mp3"
    if not path.exists():
        speech.write_mp3(np.resize(np.roll(talk(), -number * SAMPLE_RATE * CLIP), seconds * SAMPLE_RATE), path)
    return path.read_bytes()


@cache
def pieces(seconds: int) -> list[bytes]:
    """`PIECES` different stretches of this duration, as FLAC."""
    size, starts = seconds * SAMPLE_RATE, np.linspace(0, len(talk()) - seconds * SAMPLE_RATE, PIECES).astype(int)
    return [encode(talk()[start : start + size]) for start in starts]


LOADS: dict[str, Callable[[PacedEngine, Transcriber], Cost]] = {
    "engine": ceiling,
    "scheduler": scheduled,
    "windows": full_windows,
    "hour": hour,
    "files": files,
    **{f"clips-{count}": clips(count) for count in CLIPS_AT_ONCE},
    "beside": beside,
}
OVER_HTTP: dict[str, Callable[[str, PacedEngine, Transcriber], Cost]] = {
    "http-windows": full_windows_over_http,
    "http-hour": hour_over_http,
    "http-files": files_over_http,
}
NAMES = [*LOADS, *OVER_HTTP]
