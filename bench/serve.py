"""Serving under load: our server compared with other ways to serve the same weights. `python -m bench serve`, or this file.

One command starts every contender, sends the same recordings to all of them in turn, round by round, and shows the speed and the word
error rate of each. The loads: sentences, 1, 8 and 32 at once; a chapter of a book; a sentence now and then beside the chapter; sentences
at random times. The weights are OpenAI's, the recordings LibriSpeech's, and every contender ends a window by its own rules. --random is
for sizes without weights on this machine: all contenders decode the same number of tokens from every window, and no words are scored.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: the path has this folder instead of the package's
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "src")]

import argparse
import json
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console

from bench import results, scores
from bench.contenders import FORMS, LANGUAGE, LIBRARIES, OURS, Alone, Contender, Served, Setup, served
from bench.load import LoadError, Work, open_loop
from bench.report import plot
from bench.report import serve as report
from bench.results import spread
from bench.speech import Clip, Material, ReadSpeech, Talk
from bench.work import SCRATCH, TOKENS
from whispercore.devices import decoding_threads
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings

Log = Callable[[str], None]
"""Prints a line of progress."""

SLOW_SECONDS, SLOW_CLIPS = 60.0, 4
"""What a slow contender gets: about as much of the long recording, and as many clips one after the other."""
PAUSE_SECONDS = (0.2, 0.8)
"""Between two clips beside the long recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The loads and their sizes.

    `clips`: how many a round sends, by how many are open at once. `long_seconds`: of the long recording; 0: a whole chapter.
    `beside`: how often the long recording runs with clips beside it. `arrivals`: clips at random times, at each of the `rates`.
    """

    rounds: int
    clips: Mapping[int, int]
    long_seconds: float
    beside: int
    rates: tuple[float, ...]
    arrivals: int


FULL = Plan(rounds=2, clips={1: 6, 8: 16, 32: 32}, long_seconds=0, beside=2, rates=(0.5, 1.0), arrivals=10)
"""12 minutes on two cores."""
QUICK = Plan(rounds=1, clips={1: 4, 8: 8, 32: 32}, long_seconds=240, beside=1, rates=(1.0,), arrivals=8)
"""3 minutes on two cores, without the slow contenders."""
QUICK_CONTENDERS = tuple(name for name, form in FORMS.items() if not form.slow)


@dataclass(frozen=True, slots=True)
class Round:
    """A load that a contender has finished, and its recordings."""

    clips: Sequence[Clip]
    work: Work

    @property
    def audio(self) -> float:
        """Seconds of all recordings."""
        return sum(clip.seconds for clip in self.clips)

    @property
    def rate(self) -> float:
        """Seconds of audio a second."""
        return self.audio / self.work.wall


Measured = dict[str, dict[str, list[Round]]]
"""The rounds of every contender by load: the number of clips at once, or the strategy on the long recording."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when weights or recordings are missing, our server failed, or random weights decoded another number of tokens."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the contenders, too
    folder = arguments.results or (SCRATCH / "quick" if arguments.quick else results.RESULTS)
    plan, names = _plan(arguments), arguments.contenders or (QUICK_CONTENDERS if arguments.quick else tuple(FORMS))
    for size in arguments.model:
        log = partial(_log, console, size)
        setup = _setup(size, arguments)
        origin = results.provenance()
        try:
            material: Material = Talk(plan.long_seconds) if setup.tokens else ReadSpeech()
            settings, result = measure(setup, plan, material, names, log)
        except ConfigurationError as error:
            log(f"{error}; --random needs neither weights nor recordings")
            return 1
        except (LoadError, RuntimeError) as error:
            log(str(error))
            return 1
        path = results.save(folder, file_name(setup, origin["machine"]["flags"]), origin, settings, result)
        console.print(plot.serve(path), markup=False)
        print(path.read_text() if arguments.json else report.table(json.loads(path.read_text())))
    if folder == results.RESULTS:
        report.update()
        report.update_readme()
    return 0


def _log(console: Console, size: str, line: str) -> None:
    console.print(f"{size}: {line}", markup=False)


def file_name(setup: Setup, flags: Sequence[str]) -> str:
    """The name of the result's file: the size, whether its weights are random, and what a CPU without bfloat16 has instead."""
    kind = results.processor_kind(flags, bfloat16=setup.bfloat16) if setup.device == "cpu" else ""
    return f"serve-{setup.size}{'-random' * bool(setup.tokens)}{kind}"


def measure(setup: Setup, plan: Plan, material: Material, names: Sequence[str], log: Log) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and result.

    A contender that fails is recorded as missing with its reason; a failure of our server is raised.
    """
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        contenders = start(setup, names, material, stack, missing, log)
        measured: Measured = {name: {} for name in contenders}
        loads = Loads(contenders, measured, missing, material, plan, log)
        for number in range(plan.rounds):
            for together in plan.clips:
                loads.clips(together, number)
            loads.long(number, every_strategy=not setup.tokens)
        servers = [contender for contender in contenders.values() if isinstance(contender, Served) and contender.name not in missing]
        latencies = {server.name: figures for server in servers if (figures := loads.mixed(server))}
        arrivals = {server.name: arrive(server, material, plan, log) for server in servers if not FORMS[server.name].slow}
        peaks = {name: round(contender.peak_megabytes()) for name, contender in contenders.items() if name not in missing}
    settings = {
        "model": f"{setup.size}, random weights" if setup.tokens else setup.size,
        "device": setup.device,
        "threads": setup.threads,
        "tokens": setup.tokens,
        "bfloat16": setup.bfloat16,
        "recordings": material.name,
        "long_seconds": round(material.long(plan.long_seconds).seconds, 1),
        "slow": {"long_seconds": round(material.long(SLOW_SECONDS).seconds, 1), "clips": SLOW_CLIPS},
        "plan": asdict(plan),
    }
    return settings, {"contenders": summary(measured, peaks), "missing": missing, "mixed": latencies, "arrivals": arrivals}


def start(
    setup: Setup, names: Sequence[str], material: Material, stack: ExitStack, missing: dict[str, str], log: Log
) -> dict[str, Contender]:
    """Start the contenders one after the other and warm each up with a clip.

    Contenders that fail are added to `missing`.
    """
    running: dict[str, Contender] = {}
    warm_up = [clip.audio for clip in material.clips(1, seed=999)]
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
    contender.server.wait_until_ready(clip, contender.headers(clip))
    return contender


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


@dataclass(frozen=True, slots=True)
class Loads:
    """Loads that are sent to every contender in turn. The order of contenders changes with the round."""

    contenders: Mapping[str, Contender]
    measured: Measured
    missing: dict[str, str]
    material: Material
    plan: Plan
    log: Log

    def clips(self, together: int, number: int) -> None:
        """A round of clips, the same for all contenders; slow ones get the first of them."""
        clips = self.material.clips(self.plan.clips[together], seed=100 * together + number)
        for name in self._turns(number):
            form = FORMS[name]
            if form.together[0] <= together <= form.together[1]:
                self._attempt(name, clips[: max(together, SLOW_CLIPS)] if form.slow else clips, together)

    def long(self, number: int, *, every_strategy: bool) -> None:
        """A round of the long recording, by every strategy of the contender or only by its default; slow ones get its beginning."""
        for name in self._turns(number):
            form = FORMS[name]
            recording = self.material.long(SLOW_SECONDS if form.slow else self.plan.long_seconds)
            for strategy in form.strategies if every_strategy else form.strategies[:1]:
                self._attempt(name, [recording], 1, strategy)

    def mixed(self, server: Served) -> dict[str, Any] | None:
        """See the function `mixed`; None for a peer that fails."""
        try:
            return mixed(server, self.material, self.plan, self.log)
        except (LoadError, RuntimeError) as error:
            self._leave_out(server.name, error)
            return None

    def _turns(self, number: int) -> list[str]:
        names = [name for name in self.contenders if name not in self.missing and (number == 0 or not FORMS[name].slow)]
        first = number % max(1, len(names))
        return names[first:] + names[:first]

    def _attempt(self, name: str, clips: Sequence[Clip], together: int, strategy: str = "") -> None:
        if name in self.missing:  # since this round began
            return
        contender, load = self.contenders[name], strategy or str(together)
        try:
            before = contender.processor_seconds()
            work = contender.load([clip.audio for clip in clips], together, strategy or "chunked")
            work = replace(work, processor=contender.processor_seconds() - before)
        except (LoadError, RuntimeError) as error:
            self._leave_out(name, error)
            return
        done = Round(clips, work)
        rounds = self.measured[name].setdefault(load, [])
        rounds.append(done)
        rate = word_error_rate([done])
        words = "" if rate is None else f", WER {rate:.1%}"
        self.log(f"{load}{'' if strategy else ' at once'}, round {len(rounds)}: {name} {done.rate:.1f} s of audio a second{words}")

    def _leave_out(self, name: str, error: Exception) -> None:
        """Record why a contender is missing. Raises the error when it is our server's."""
        if name == OURS:
            raise error
        self.missing[name] = _reason(error)
        self.log(f"{name}: left out, {self.missing[name]}")


def word_error_rate(rounds: Sequence[Round]) -> float | None:
    """The WER of all recordings together, after Whisper's normalizer; None when their words are not known."""
    pairs = [(clip.text, text) for done in rounds for clip, text in zip(done.clips, done.work.texts, strict=True) if clip.text]
    if not pairs:
        return None
    references, hypotheses = zip(*pairs, strict=True)
    rate: float | None = scores.errors(references, hypotheses, LANGUAGE)["whisper_normalizer"]["wer"]
    return rate


def summary(measured: Measured, peaks: Mapping[str, float]) -> dict[str, Any]:
    """Every contender's figures by load, and how many times as fast ours is, round by round."""
    return {
        name: {
            "loads": {load: _figures(rounds, _counterpart(measured[OURS], load)) for load, rounds in loads.items()},
            "peak_mb": peaks.get(name),
            "slow": FORMS[name].slow,
        }
        for name, loads in measured.items()
    }


def _counterpart(ours: Mapping[str, list[Round]], load: str) -> list[Round]:
    """Our rounds of the same load. With random weights ours is measured chunked only, and others sequentially."""
    return ours.get(load) or ours["chunked"]


def _figures(rounds: Sequence[Round], ours: Sequence[Round]) -> dict[str, Any]:
    return {
        "audio_per_second": spread(done.rate for done in rounds),
        "ratio": spread(our_round.rate / done.rate for our_round, done in zip(ours, rounds, strict=False)),
        "wer": word_error_rate(rounds),
        "latency_median_seconds": spread(statistics.median(done.work.seconds) for done in rounds),
        "processor_seconds_an_hour": spread(3600 * done.work.processor / done.audio for done in rounds),
        "batch_seconds": max(done.work.batch_seconds for done in rounds),
        "recordings": sum(len(done.clips) for done in rounds),
        "windows": sum(done.work.windows for done in rounds),
    }


def mixed(server: Served, material: Material, plan: Plan, log: Log) -> dict[str, Any]:
    """Seconds of a clip on the idle server and, now and then, beside the long recording; seconds of the long recording."""
    slow, pauses = FORMS[server.name].slow, random.Random(0)
    long = material.long(SLOW_SECONDS if slow else plan.long_seconds).audio
    idle, during, durations = list[float](), list[float](), list[float]()
    with ThreadPoolExecutor(1) as pool:
        for number in range(1 if slow else plan.beside):
            idle += server.load([clip.audio for clip in material.clips(6, seed=501 + number)], 1).seconds
            clips = iter(material.clips(24, seed=601 + number))
            long_file = pool.submit(server.load, [long], 1)
            while not long_file.done() and (clip := next(clips, None)):
                during += server.load([clip.audio], 1).seconds
                time.sleep(pauses.uniform(*PAUSE_SECONDS))
            durations.append(long_file.result().wall)
    log(f"{server.name}: a clip takes {statistics.median(idle):.2f} s, {statistics.median(during):.2f} s beside the long recording")
    return {"idle_seconds": spread(idle), "during_seconds": spread(during), "long_seconds": spread(durations)}


def arrive(server: Served, material: Material, plan: Plan, log: Log) -> dict[str, Any]:
    """Latency of clips at random times, by their mean rate. All servers get the same times."""
    by_rate: dict[str, dict[str, float]] = {}
    for number, rate in enumerate(plan.rates):
        clips = [clip.audio for clip in material.clips(plan.arrivals, seed=700 + number)]
        load = open_loop(server.server.port, server.server.model, clips, server.headers(clips[0]), rate=rate, seed=number)
        server.windows(load.replies)
        latency = percentiles(reply.seconds for reply in load.replies)
        by_rate[str(rate)] = latency
        log(f"{server.name}: {rate:g} clips a second: {latency}")
    return by_rate


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """The median, the 95th percentile by the nearest rank, and the maximum."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"p50": round(statistics.median(ordered), 3), "p95": round(p95, 3), "worst": round(ordered[-1], 3), "clips": len(ordered)}


def _setup(size: str, arguments: argparse.Namespace) -> Setup:
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = arguments.threads or decoding_threads(Settings())
    tokens = arguments.tokens if arguments.random else 0
    return Setup(size=size, device=device, threads=threads, tokens=tokens, bfloat16=not arguments.without_bfloat16)


def _plan(arguments: argparse.Namespace) -> Plan:
    plan = QUICK if arguments.quick else FULL
    seconds = plan.long_seconds if arguments.seconds is None else arguments.seconds
    return Plan(
        rounds=arguments.rounds or plan.rounds,
        clips=dict(arguments.clips or plan.clips.items()),
        long_seconds=seconds or (600.0 if arguments.random else 0.0),
        beside=plan.beside,
        rates=plan.rates if arguments.rates is None else tuple(arguments.rates),
        arrivals=arguments.arrivals or plan.arrivals,
    )


def _clips(text: str) -> tuple[int, int]:
    """COUNT@TOGETHER as (together, count)."""
    count, _, together = text.partition("@")
    if not (count.isdigit() and together.isdigit() and int(count) >= int(together) > 0):
        raise argparse.ArgumentTypeError(f"{text} is not COUNT@TOGETHER with at least TOGETHER clips, such as 24@8")
    return int(together), int(count)


def _parser() -> argparse.ArgumentParser:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["large-v3-turbo", "large-v3"] if gpu else ["base"]
    what = parser.add_argument_group("what")
    what.add_argument("--model", nargs="+", default=sizes, help=f"names in WHISPER_MODELS_DIR (default: whisper-models); {' '.join(sizes)}")
    what.add_argument("--random", action="store_true", help="random weights of these sizes, on a sample")
    what.add_argument("--tokens", type=int, default=2 * TOKENS if gpu else TOKENS, help="of every window of random weights (%(default)s)")
    what.add_argument("--contenders", nargs="+", choices=tuple(FORMS), metavar="NAME", help="default: all; " + "; ".join(FORMS))
    what.add_argument("--quick", action="store_true", help="one short round without the slow contenders, saved in build/bench/quick")
    what.add_argument("--rounds", type=int, help=f"default: {FULL.rounds}")
    what.add_argument("--clips", nargs="+", type=_clips, metavar="COUNT@TOGETHER", help="a round's clips; default: 6@1 16@8 32@32")
    what.add_argument("--seconds", type=float, help="of the long recording; default: the whole chapter; random weights: 600")
    what.add_argument("--rates", type=float, nargs="*", help="clips a second, at random times; default: 0.5 1")
    what.add_argument("--arrivals", type=int, help=f"clips at each rate; default: {FULL.arrivals}")
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    how.add_argument("--threads", type=int, default=0, help="for every contender; default: the physical cores")
    how.add_argument("--without-bfloat16", action="store_true", help="as on a CPU with VNNI only: oneDNN uses no bfloat16 instructions")
    out = parser.add_argument_group("results")
    out.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results, from which docs/measured.md is generated")
    out.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
