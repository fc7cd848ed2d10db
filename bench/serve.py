"""Serving under load: our server compared with other ways to serve the same weights. `python -m bench serve`, or this file.

One command starts every contender, sends the same recordings to all of them in turn, round by round, and prints how many times as fast
our server is. The loads: 10 s clips, 1, 8 and 32 at once; one long file; clips during the long file; requests at random times.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: the path has this folder instead of the package's
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "src")]

import argparse
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from threading import Thread
from typing import Any

import torch
from rich.console import Console

from bench import results, speech
from bench.contenders import BATCHING, CORE, LIBRARIES, NAMES, OURS, PLAIN, SEVERAL_ONLY, Alone, Contender, Served, Setup, served
from bench.load import LoadError, Work, open_loop
from bench.report import plot
from bench.report import serve as report
from bench.results import spread
from bench.work import CLIP_SECONDS, HEADERS
from whispercore.devices import decoding_threads
from whispercore.settings import Settings

Log = Callable[[str], None]
"""Prints a line of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The loads and their sizes.

    `patience`: seconds that a load of clips should take; slow contenders get fewer clips.
    """

    rounds: int = 3
    concurrencies: tuple[int, ...] = (1, 8, 32)
    long_seconds: int = 600
    long_rounds: int = 2
    rates: tuple[float, ...] = (0.25, 0.5, 1.0)
    arrivals: int = 20
    patience: float = 12.0


@dataclass(slots=True)
class Measured:
    """The measurements of one contender, round by round."""

    clips: dict[int, list[Work]] = field(default_factory=dict)
    long: list[Work] = field(default_factory=list)

    def clips_per_second(self, together: int) -> list[float]:
        """Throughput of every round."""
        return [len(work.seconds) / work.wall for work in self.clips.get(together, ())]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when our server failed or decoded another number of tokens than requested."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the contenders, too
    folder = arguments.results or results.RESULTS
    for size in arguments.model:
        log = partial(_log, console, size)
        setup = _setup(size, arguments)
        origin = results.provenance()
        try:
            settings, result = measure(setup, _plan(arguments), arguments.contenders, log)
        except (LoadError, RuntimeError) as error:
            log(str(error))
            return 1
        path = results.save(folder, f"serve-{size}", origin, settings, result)
        console.print(plot.serve(path), markup=False)
        print(path.read_text() if arguments.json else report.table(json.loads(path.read_text())))
    if folder == results.RESULTS:
        report.update()
    return 0


def _log(console: Console, size: str, line: str) -> None:
    console.print(f"{size}: {line}", markup=False)


def measure(setup: Setup, plan: Plan, names: Sequence[str], log: Log) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and result.

    A contender that fails is recorded as missing with its reason; a failure of our server is raised.
    """
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        contenders = start(setup, names, stack, missing, log)
        measured = {name: Measured() for name in contenders}
        loads = Loads(contenders, measured, missing, log)
        for number in range(plan.rounds):
            for together in plan.concurrencies:
                loads.clips(together, number, plan)
            if number < plan.long_rounds:
                loads.long(number, plan)
        servers = [contender for contender in contenders.values() if isinstance(contender, Served) and contender.name not in missing]
        latencies = {server.name: mixed(server, plan, log) for server in servers}
        arrivals = {server.name: arrive(server, plan, log) for server in servers}
    settings = {
        "model": f"{setup.size}, random weights",
        "device": setup.device,
        "threads": setup.threads,
        "tokens": setup.tokens,
        "clip_seconds": CLIP_SECONDS,
        "plan": asdict(plan),
    }
    return settings, {"contenders": summary(measured, plan), "missing": missing, "mixed": latencies, "arrivals": arrivals}


def start(setup: Setup, names: Sequence[str], stack: ExitStack, missing: dict[str, str], log: Log) -> dict[str, Contender]:
    """Start the contenders one after the other and warm each up with a clip.

    Contenders that fail are added to `missing`.
    """
    running: dict[str, Contender] = {}
    warm_up = speech.clips(1, CLIP_SECONDS, seed=999)
    for name in names:
        try:
            running[name] = _started(name, setup, stack, warm_up[0])
            speed = running[name].load(warm_up, 1).wall
            log(f"{name}: ready, {speed:.2f} s for a clip")
        except (LoadError, RuntimeError) as error:
            running.pop(name, None)
            if name == OURS:
                raise
            missing[name] = _reason(error)
            log(f"{name}: left out, {missing[name]}")
    return running


def _started(name: str, setup: Setup, stack: ExitStack, clip: bytes) -> Contender:
    if name in LIBRARIES:
        alone = Alone(name, setup)
        stack.callback(alone.stop)
        alone.wait_until_ready()
        return alone
    contender = stack.enter_context(served(name, setup))
    contender.server.wait_until_ready(clip, HEADERS)
    return contender


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


@dataclass(frozen=True, slots=True)
class Loads:
    """Loads that are sent to every contender in turn. The order of contenders changes with the round."""

    contenders: Mapping[str, Contender]
    measured: dict[str, Measured]
    missing: dict[str, str]
    log: Log

    def clips(self, together: int, number: int, plan: Plan) -> None:
        """A round of clips. All contenders get the same clips in the same order; slow ones get fewer."""
        supply: list[bytes] = []
        for name in self._turns(number):
            if not self._worthwhile(name, together, plan):
                continue
            count = self._count(name, together, plan)
            while len(supply) < count:
                supply.extend(speech.clips(1, CLIP_SECONDS, seed=10_000 * together + 100 * number + len(supply)))
            work = self._attempt(name, supply[:count], together)
            if work:
                self.measured[name].clips.setdefault(together, []).append(work)
                self._report(name, f"{together} at once, round {number + 1}", CLIP_SECONDS * count, work)

    def long(self, number: int, plan: Plan) -> None:
        """A round of one long file."""
        recording = speech.long_recording(plan.long_seconds, seed=number)
        for name in self._turns(number):
            if name in SEVERAL_ONLY:
                continue
            if work := self._attempt(name, [recording], 1):
                self.measured[name].long.append(work)
                self._report(name, f"{plan.long_seconds / 60:g} min, round {number + 1}", plan.long_seconds, work)

    def _turns(self, number: int) -> list[str]:
        names = [name for name in self.contenders if name not in self.missing]
        return names[number % len(names) :] + names[: number % len(names)]

    def _worthwhile(self, name: str, together: int, plan: Plan) -> bool:
        """Whether to measure this number at once: always for ours; not for a contender without batches, nor for a very
        slow one."""
        rate = None if name in (OURS, CORE) else self._rate(name)
        useless = together > plan.concurrencies[0] and name not in (*BATCHING, PLAIN)
        return not useless and (rate is None or together <= 5 * plan.patience * rate)

    def _rate(self, name: str) -> float | None:
        """The highest throughput of any load so far, in clips a second."""
        works = [work for works in self.measured[name].clips.values() for work in works]
        return max((len(work.seconds) / work.wall for work in works), default=None)

    def _count(self, name: str, together: int, plan: Plan) -> int:
        """The number of clips for about `patience` seconds: a whole number of batches."""
        clips = plan.patience * (self._rate(name) or 0.3)
        return max(1, round(clips / together)) * together

    def _attempt(self, name: str, recordings: Sequence[bytes], together: int) -> Work | None:
        contender = self.contenders[name]
        try:
            before = contender.processor_seconds()
            work = contender.load(recordings, together)
            return replace(work, processor=contender.processor_seconds() - before)
        except (LoadError, RuntimeError) as error:
            if name == OURS:
                raise
            self.missing[name] = _reason(error)
            self.log(f"{name}: left out, {self.missing[name]}")
            return None

    def _report(self, name: str, load: str, seconds: float, work: Work) -> None:
        self.log(f"{load}: {name} {seconds / work.wall:.1f} s of audio a second, {work.windows} windows")


def summary(measured: dict[str, Measured], plan: Plan) -> dict[str, Any]:
    """Every contender's throughput and latency, and how many times as fast ours is, round by round."""
    ours = measured[OURS]
    figures: dict[str, Any] = {}
    for name, contender in measured.items():
        figures[name] = {"clips": {}, "long": _long(contender, ours, plan)}
        for together in plan.concurrencies:
            rates, our_rates = contender.clips_per_second(together), ours.clips_per_second(together)
            compared = rates or contender.clips_per_second(plan.concurrencies[0])
            if not our_rates or not compared:
                continue
            ratios = [our_rate / rate for our_rate, rate in zip(our_rates, compared, strict=False)]
            entry: dict[str, Any] = {"ratio": spread(ratios), "audio_per_second": spread(CLIP_SECONDS * rate for rate in compared)}
            if rates:
                works = contender.clips[together]
                entry["latency_median_seconds"] = spread(statistics.median(work.seconds) for work in works)
                entry["processor_seconds"] = spread(work.processor / len(work.seconds) for work in works)
                entry["clips"] = sum(len(work.seconds) for work in works)
            figures[name]["clips"][str(together)] = entry
    return figures


def _long(contender: Measured, ours: Measured, plan: Plan) -> dict[str, Any] | None:
    if not contender.long:
        return None
    return {
        "audio_per_second": spread(plan.long_seconds / work.wall for work in contender.long),
        "ratio": spread(work.wall / our_work.wall for our_work, work in zip(ours.long, contender.long, strict=False)),
        "windows": contender.long[0].windows,
    }


def mixed(server: Served, plan: Plan, log: Log) -> dict[str, Any]:
    """Seconds of a clip on the idle server and during the long file, and the duration of the long file."""
    idle = server.load(speech.clips(4, CLIP_SECONDS, seed=501), 1).seconds
    recording, during = speech.long_recording(plan.long_seconds, seed=77), list[float]()
    long_file = Thread(target=lambda: server.load([recording], 1))
    began = time.perf_counter()
    long_file.start()
    while long_file.is_alive() and len(during) < 50:
        during += server.load(speech.clips(1, CLIP_SECONDS, seed=502 + len(during)), 1).seconds
    long_file.join()
    duration = time.perf_counter() - began
    log(f"{server.name}: a clip takes {statistics.median(idle):.2f} s, {statistics.median(during):.2f} s while the long file runs")
    return {"idle_seconds": spread(idle), "during_seconds": spread(during), "clips": len(during), "long_seconds": round(duration, 2)}


def arrive(server: Served, plan: Plan, log: Log) -> dict[str, Any]:
    """Latency of clips at random times, by their mean rate. All servers get the same times."""
    by_rate: dict[str, dict[str, float]] = {}
    for number, rate in enumerate(plan.rates):
        clips = speech.clips(plan.arrivals, CLIP_SECONDS, seed=700 + number)
        load = open_loop(server.server.port, server.server.model, clips, server.headers(clips[0]), rate=rate, seed=number)
        server.windows(load.replies)
        latency = percentiles(reply.seconds for reply in load.replies)
        by_rate[str(rate)] = latency
        log(f"{server.name}: {rate:g} clips a second: {latency}")
        if latency["p50"] > 2 * plan.patience:
            break  # the server is overloaded: higher rates only lengthen its queue
    return by_rate


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """The median, the 95th percentile by the nearest rank, and the maximum."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"p50": round(statistics.median(ordered), 3), "p95": round(p95, 3), "worst": round(ordered[-1], 3), "clips": len(ordered)}


def _setup(size: str, arguments: argparse.Namespace) -> Setup:
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Setup(size=size, device=device, threads=arguments.threads or decoding_threads(Settings()), tokens=arguments.tokens)


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        rounds=arguments.rounds,
        concurrencies=tuple(arguments.concurrency),
        long_seconds=round(3600 * arguments.hours),
        long_rounds=min(arguments.long_rounds, arguments.rounds),
        rates=tuple(arguments.rates),
        arrivals=arguments.arrivals,
        patience=arguments.patience,
    )


def _parser() -> argparse.ArgumentParser:
    defaults, gpu = Plan(), torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["large-v3-turbo", "large-v3"] if gpu else ["base"]
    parser.add_argument("--model", nargs="+", default=sizes, help=f"sizes, with random weights; here: {' '.join(sizes)}")
    parser.add_argument("--tokens", type=int, default=120 if gpu else 60, help="decoded from every window (default here: %(default)s)")
    parser.add_argument("--contenders", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="default: all; " + ", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--concurrency", type=int, nargs="+", default=defaults.concurrencies, help="clips at once (default: 1 8 32)")
    parser.add_argument("--hours", type=float, default=1.0 if gpu else 1 / 6, help="the long file (default: 1 on a GPU, 10 min on a CPU)")
    parser.add_argument("--long-rounds", type=int, default=defaults.long_rounds)
    parser.add_argument("--rates", type=float, nargs="*", default=defaults.rates, help="clips a second, at random times")
    parser.add_argument("--arrivals", type=int, default=defaults.arrivals, help="clips at each rate")
    parser.add_argument("--patience", type=float, default=defaults.patience, help="seconds that each load of clips should take")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, default=0, help="for every contender; default: the physical cores")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results, from which docs/measured.md is generated")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
