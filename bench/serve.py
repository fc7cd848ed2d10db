"""Serving under load: our server beside every other way to serve the same weights. `python -m bench serve`, or this file.

One command starts each contender, sends the same recordings to all in turn, round by round, and prints how many times as fast ours
is: 10 s clips, 1, 8 and 32 at once; one long file; clips while the long file runs; requests that come at random times.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a file: its folder is on the path, and the package is not
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

from bench import results, serve_plot, speech, table
from bench.contenders import BATCHING, CORE, LIBRARIES, NAMES, OURS, PLAIN, SEVERAL_ONLY, Alone, Contender, Served, Setup, served
from bench.load import LoadError, Work, open_loop
from bench.results import spread
from bench.work import CLIP_SECONDS, HEADERS
from whispercore.devices import decoding_threads
from whispercore.settings import Settings

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sent, and how often. `patience`: seconds of work in a load, by which slow contenders get fewer clips."""

    rounds: int = 3
    concurrencies: tuple[int, ...] = (1, 8, 32)
    long_seconds: int = 600
    long_rounds: int = 2
    rates: tuple[float, ...] = (0.25, 0.5, 1.0)
    arrivals: int = 20
    patience: float = 12.0


@dataclass(slots=True)
class Seen:
    """What has been measured of one contender, round by round."""

    clips: dict[int, list[Work]] = field(default_factory=dict)
    long: list[Work] = field(default_factory=list)

    def clips_per_second(self, together: int) -> list[float]:
        """Of every round."""
        return [len(work.seconds) / work.wall for work in self.clips.get(together, ())]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when ours failed or did other work than it was told to."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what it started ends with it
    folder = arguments.results or results.RESULTS
    for size in arguments.model:
        tell = partial(_tell, console, size)
        setup = _setup(size, arguments)
        origin = results.provenance()
        try:
            settings, result = measure(setup, _plan(arguments), arguments.contenders, tell)
        except (LoadError, RuntimeError) as error:
            tell(str(error))
            return 1
        path = results.save(folder, f"serve-{size}", origin, settings, result)
        console.print(serve_plot.save(path), markup=False)
        print(path.read_text() if arguments.json else table.serve_one(json.loads(path.read_text())))
    if folder == results.RESULTS:
        table.update_serve()
    return 0


def _tell(console: Console, size: str, line: str) -> None:
    console.print(f"{size}: {line}", markup=False)


def measure(setup: Setup, plan: Plan, names: Sequence[str], tell: Tell) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and result. A contender that cannot be started, or breaks, is named with its reason; ours must not."""
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        contenders = start(setup, names, stack, missing, tell)
        seen = {name: Seen() for name in contenders}
        loaded = Loads(contenders, seen, missing, tell)
        for number in range(plan.rounds):
            for together in plan.concurrencies:
                loaded.clips(together, number, plan)
            if number < plan.long_rounds:
                loaded.long(number, plan)
        servers = [one for one in contenders.values() if isinstance(one, Served) and one.name not in missing]
        waiting = {one.name: mixed(one, plan, tell) for one in servers}
        arrivals = {one.name: arrive(one, plan, tell) for one in servers}
    settings = {
        "model": f"{setup.size}, random weights",
        "device": setup.device,
        "threads": setup.threads,
        "tokens": setup.tokens,
        "clip_seconds": CLIP_SECONDS,
        "plan": asdict(plan),
    }
    return settings, {"contenders": summary(seen, plan), "missing": missing, "mixed": waiting, "arrivals": arrivals}


def start(setup: Setup, names: Sequence[str], stack: ExitStack, missing: dict[str, str], tell: Tell) -> dict[str, Contender]:
    """Every contender that can be started, warmed up by a clip; one after the other, so that each has the machine to itself."""
    running: dict[str, Contender] = {}
    warm = speech.clips(1, CLIP_SECONDS, seed=999)
    for name in names:
        try:
            running[name] = _started(name, setup, stack, warm[0])
            speed = running[name].load(warm, 1).wall
            tell(f"{name}: ready, {speed:.2f} s for a clip")
        except (LoadError, RuntimeError) as error:
            running.pop(name, None)
            if name == OURS:
                raise
            missing[name] = _reason(error)
            tell(f"{name}: left out, {missing[name]}")
    return running


def _started(name: str, setup: Setup, stack: ExitStack, clip: bytes) -> Contender:
    if name in LIBRARIES:
        alone = Alone(name, setup)
        stack.callback(alone.stop)
        alone.wait_until_ready()
        return alone
    one = stack.enter_context(served(name, setup))
    one.server.wait_until_ready(clip, HEADERS)
    return one


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


@dataclass(frozen=True, slots=True)
class Loads:
    """Loads sent to every contender in turn. The order of turns changes with the round."""

    contenders: Mapping[str, Contender]
    seen: dict[str, Seen]
    missing: dict[str, str]
    tell: Tell

    def clips(self, together: int, number: int, plan: Plan) -> None:
        """A round of clips: every contender gets clips of the round, in the same order; the slow ones fewer."""
        supply: list[bytes] = []
        for name in self._turns(number):
            if not self._worthwhile(name, together, plan):
                continue
            count = self._count(name, together, plan)
            while len(supply) < count:
                supply.extend(speech.clips(1, CLIP_SECONDS, seed=10_000 * together + 100 * number + len(supply)))
            work = self._attempt(name, supply[:count], together)
            if work:
                self.seen[name].clips.setdefault(together, []).append(work)
                self._report(name, f"{together} at once, round {number + 1}", CLIP_SECONDS * count, work)

    def long(self, number: int, plan: Plan) -> None:
        """A round of one long file."""
        recording = speech.long_recording(plan.long_seconds, seed=number)
        for name in self._turns(number):
            if name in SEVERAL_ONLY:
                continue
            if work := self._attempt(name, [recording], 1):
                self.seen[name].long.append(work)
                self._report(name, f"{plan.long_seconds / 60:g} min, round {number + 1}", plan.long_seconds, work)

    def _turns(self, number: int) -> list[str]:
        names = [name for name in self.contenders if name not in self.missing]
        return names[number % len(names) :] + names[: number % len(names)]

    def _worthwhile(self, name: str, together: int, plan: Plan) -> bool:
        """Ours always; no more at once for who takes one after the other, nor than it does in a few times `patience`."""
        rate = None if name in (OURS, CORE) else self._rate(name)
        alone = together > plan.concurrencies[0] and name not in (*BATCHING, PLAIN)
        return not alone and (rate is None or together <= 5 * plan.patience * rate)

    def _rate(self, name: str) -> float | None:
        """Clips a second, the most of any load so far."""
        works = [work for works in self.seen[name].clips.values() for work in works]
        return max((len(work.seconds) / work.wall for work in works), default=None)

    def _count(self, name: str, together: int, plan: Plan) -> int:
        """Enough clips for `patience` seconds, by what is known of the contender, and a whole number of batches."""
        wanted = plan.patience * (self._rate(name) or 0.3)
        return max(1, round(wanted / together)) * together

    def _attempt(self, name: str, recordings: Sequence[bytes], together: int) -> Work | None:
        one = self.contenders[name]
        try:
            before = one.processor_seconds()
            work = one.load(recordings, together)
            return replace(work, processor=one.processor_seconds() - before)
        except (LoadError, RuntimeError) as error:
            if name == OURS:
                raise
            self.missing[name] = _reason(error)
            self.tell(f"{name}: left out, {self.missing[name]}")
            return None

    def _report(self, name: str, what: str, seconds: float, work: Work) -> None:
        self.tell(f"{what}: {name} {seconds / work.wall:.1f} s of audio a second, {work.windows} windows")


def summary(seen: dict[str, Seen], plan: Plan) -> dict[str, Any]:
    """What came of each contender, and how many times as fast ours is, round by round."""
    ours = seen[OURS]
    found: dict[str, Any] = {}
    for name, one in seen.items():
        found[name] = {"clips": {}, "long": _long(one, ours, plan)}
        for together in plan.concurrencies:
            rates, mine = one.clips_per_second(together), ours.clips_per_second(together)
            alone = one.clips_per_second(plan.concurrencies[0])
            if not mine or not (rates or alone):
                continue
            ratios = [a / b for a, b in zip(mine, rates or alone, strict=False)]
            entry: dict[str, Any] = {"ratio": spread(ratios), "audio_per_second": spread(CLIP_SECONDS * rate for rate in rates or alone)}
            if rates:
                entry["latency_median_seconds"] = spread(statistics.median(work.seconds) for work in one.clips[together])
                entry["processor_seconds"] = spread(work.processor / len(work.seconds) for work in one.clips[together])
                entry["clips"] = sum(len(work.seconds) for work in one.clips[together])
            found[name]["clips"][str(together)] = entry
    return found


def _long(one: Seen, ours: Seen, plan: Plan) -> dict[str, Any] | None:
    if not one.long:
        return None
    return {
        "audio_per_second": spread(plan.long_seconds / work.wall for work in one.long),
        "ratio": spread(theirs.wall / mine.wall for mine, theirs in zip(ours.long, one.long, strict=False)),
        "windows": one.long[0].windows,
    }


def mixed(one: Served, plan: Plan, tell: Tell) -> dict[str, Any]:
    """A clip's seconds, alone on the server and while the long file runs there; and how long the file then takes."""
    idle = one.load(speech.clips(4, CLIP_SECONDS, seed=501), 1).seconds
    recording, during = speech.long_recording(plan.long_seconds, seed=77), list[float]()
    finished = list[Work]()
    file = Thread(target=lambda: finished.append(one.load([recording], 1)))
    began = time.perf_counter()
    file.start()
    while file.is_alive() and len(during) < 50:
        during += one.load(speech.clips(1, CLIP_SECONDS, seed=502 + len(during)), 1).seconds
    file.join()
    took = time.perf_counter() - began
    tell(f"{one.name}: a clip takes {statistics.median(idle):.2f} s, {statistics.median(during):.2f} s while the long file runs")
    return {"idle_seconds": spread(idle), "during_seconds": spread(during), "clips": len(during), "long_seconds": round(took, 2)}


def arrive(one: Served, plan: Plan, tell: Tell) -> dict[str, Any]:
    """Latency of clips that come at random times, by their mean rate; for each server the same times."""
    found = {}
    for number, rate in enumerate(plan.rates):
        clips = speech.clips(plan.arrivals, CLIP_SECONDS, seed=700 + number)
        load = open_loop(one.server.port, one.server.model, clips, one.headers(clips[0]), rate=rate, seed=number)
        one.windows(load.replies)
        seconds = [reply.seconds for reply in load.replies]
        found[str(rate)] = percentiles(seconds)
        tell(f"{one.name}: {rate:g} clips a second: {found[str(rate)]}")
        if found[str(rate)]["p50"] > 2 * plan.patience:
            break  # it does not keep up: at a higher rate nothing is learned
    return found


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """Median, 95th percentile (of the nearest rank) and the worst."""
    known = sorted(seconds)
    near = known[min(len(known) - 1, int(0.95 * len(known)))]
    return {"p50": round(statistics.median(known), 3), "p95": round(near, 3), "worst": round(known[-1], 3), "clips": len(known)}


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
    usual, gpu = Plan(), torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["large-v3-turbo", "large-v3"] if gpu else ["base"]
    parser.add_argument("--model", nargs="+", default=sizes, help=f"sizes, with random weights; here: {' '.join(sizes)}")
    parser.add_argument("--tokens", type=int, default=120 if gpu else 60, help="decoded from every window (default here: %(default)s)")
    parser.add_argument("--contenders", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="default: all; " + ", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=usual.rounds)
    parser.add_argument("--concurrency", type=int, nargs="+", default=usual.concurrencies, help="clips at once (default: 1 8 32)")
    parser.add_argument("--hours", type=float, default=1.0 if gpu else 1 / 6, help="the long file (default: 1 on a GPU, 10 min on a CPU)")
    parser.add_argument("--long-rounds", type=int, default=usual.long_rounds)
    parser.add_argument("--rates", type=float, nargs="*", default=usual.rates, help="clips a second that come at random times")
    parser.add_argument("--arrivals", type=int, default=usual.arrivals, help="clips at each rate")
    parser.add_argument("--patience", type=float, default=usual.patience, help="seconds that each load of clips shall take")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, default=0, help="for every contender; default: the physical cores")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results; the README shows those")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
