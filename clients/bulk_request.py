#!/usr/bin/env python3
"""A load test: many recordings at once, then latency, throughput and errors.

python3 clients/bulk_request.py samples/ --concurrency 16 --repeat 10 --plot latency.html --json load.json
"""

from __future__ import annotations

import argparse
import html
import importlib
import importlib.util
import json
import queue
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import environment

environment.enter()

import requests  # noqa: E402
from endpoint import Server, open_session  # noqa: E402
from failures import RequestFailed  # noqa: E402
from recordings import find_files  # noqa: E402
from replies import reply_warnings  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: E402
from rich.table import Table  # noqa: E402
from server_arguments import add_server_arguments, server  # noqa: E402

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request's result.

    `began`: seconds after the test's start; `audio`: the recording's seconds; `error`: the kind of error, or None.

    `warnings`: the reply's warnings.
    """

    file: str
    began: float
    latency: float
    audio: float = 0.0
    error: str | None = None
    message: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """The test's figures. Latencies are in seconds and of answered requests only."""

    requests: int
    failed: int
    wall: float
    requests_per_second: float
    audio: float
    audio_per_second: float
    latency: dict[str, float]
    errors: dict[str, int]


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile, interpolated linearly as in numpy."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    """The figures of a test, from the start of the first request to the end of the last."""
    answered = [outcome for outcome in outcomes if outcome.error is None]
    latencies = [outcome.latency for outcome in answered]
    begun = min((outcome.began for outcome in outcomes), default=0.0)
    wall = max((outcome.began + outcome.latency for outcome in outcomes), default=0.0) - begun
    audio = sum(outcome.audio for outcome in answered)
    latency = {f"p{percent}": percentile(latencies, percent) for percent in PERCENTILES} if latencies else {}
    if latencies:
        latency |= {"min": min(latencies), "mean": statistics.fmean(latencies), "max": max(latencies)}
    return Summary(
        requests=len(outcomes),
        failed=len(outcomes) - len(answered),
        wall=wall,
        requests_per_second=len(answered) / wall if wall else 0.0,
        audio=audio,
        audio_per_second=audio / wall if wall else 0.0,
        latency=latency,
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error).most_common()),
    )


# Requests


def send(target: Server, session: requests.Session, path: Path, start: float) -> Outcome:
    """Send a request, timed from the connection to the last byte of the reply."""
    began = time.perf_counter()
    try:
        reply = target.transcribe(session, path)
        latency = time.perf_counter() - began
        return Outcome(str(path), began - start, latency, _audio_seconds(reply), warnings=tuple(reply_warnings(reply)))
    except RequestFailed as failure:
        return Outcome(str(path), began - start, time.perf_counter() - began, error=failure.kind, message=str(failure))


def _audio_seconds(response: requests.Response) -> float:
    """The recording's length from the reply: `duration` of the native API, or `usage` of OpenAI's."""
    try:
        fields = response.json()
        return float(fields["duration"] if "duration" in fields else fields["usage"]["seconds"])
    except (ValueError, KeyError, TypeError):
        raise RequestFailed("no transcript", "the server's answer is not a transcript: is --url right?") from None


def send_all(target: Server, paths: Sequence[Path], concurrency: int) -> Iterator[Outcome]:
    """The outcomes as they arrive, with `concurrency` requests open at a time."""
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
    for path in paths:
        waiting.put(path)
    start = time.perf_counter()

    def work() -> None:
        with open_session(target.timeout) as session:
            while not waiting.empty():
                try:
                    outcomes.put(send(target, session, waiting.get_nowait(), start))
                except queue.Empty:
                    return
                except Exception as error:  # a bug of this script: raised in the main thread
                    outcomes.put(error)

    for _ in range(min(concurrency, len(paths))):
        threading.Thread(target=work, daemon=True).start()  # daemons: Ctrl-C does not wait for their replies
    for _ in paths:
        outcome = outcomes.get()
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome


def measure(target: Server, paths: Sequence[Path], concurrency: int, label: str) -> tuple[list[Outcome], bool]:
    """All outcomes, and whether Ctrl-C ended the test early."""
    outcomes: list[Outcome] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=len(paths), failed=0)
        try:
            for outcome in send_all(target, paths, concurrency):
                outcomes.append(outcome)
                progress.update(task, advance=1, failed=sum(other.error is not None for other in outcomes))
        except KeyboardInterrupt:
            return outcomes, True
    return outcomes, False


# Reports


def report(summary: Summary, outcomes: Sequence[Outcome], concurrency: int, console: Console) -> None:
    """Print the figures as a table, and each kind of error with an example message."""
    table = Table("measure", "value", title=f"{summary.requests} requests, {concurrency} at once")
    table.columns[1].justify = "right"
    table.add_row("answered", str(summary.requests - summary.failed))
    table.add_row("failed", str(summary.failed), style="red" if summary.failed else "")
    table.add_row("wall time", f"{summary.wall:.2f} s")
    table.add_row("requests per second", f"{summary.requests_per_second:.2f}")
    table.add_row("seconds of audio per second", f"{summary.audio_per_second:.1f}")
    for name, seconds in summary.latency.items():
        table.add_row(f"latency {name}", f"{seconds * 1000:.0f} ms")
    console.print(table)
    for kind, count in summary.errors.items():
        example = next(outcome for outcome in outcomes if outcome.error == kind)
        console.print(f"[red]{count} x {escape(kind)}[/red], as {escape(example.file)}: {escape(example.message)}", highlight=False)
    for warning, count in Counter(warning for outcome in outcomes for warning in outcome.warnings).most_common():
        console.print(f"[yellow]warning[/yellow] in {count} of {summary.requests} replies: {escape(warning)}", highlight=False)


def as_json(summary: Summary, outcomes: Sequence[Outcome], arguments: argparse.Namespace, started: datetime, interrupted: bool) -> str:
    """The test as JSON: its arguments, summary and outcomes."""
    run = {name: getattr(arguments, name) for name in ("url", "concurrency", "repeat", "warmup", "timeout")}
    content = {"started": started.isoformat(timespec="seconds"), "interrupted": interrupted, "run": run}
    return json.dumps({**content, "summary": asdict(summary), "outcomes": [asdict(outcome) for outcome in outcomes]}, indent=1)


def plot(path: Path, summary: Summary, outcomes: Sequence[Outcome]) -> None:
    """Each request's latency over the time it began: a page with an SVG, or a PNG."""
    if path.suffix.lower() == ".png":
        _plot_png(path, summary, outcomes)
    else:
        path.write_text(_page(summary, outcomes), encoding="utf-8")


def _plot_png(path: Path, summary: Summary, outcomes: Sequence[Outcome]) -> None:
    axes = importlib.import_module("matplotlib.figure").Figure(figsize=(9, 5), layout="constrained").subplots()
    for failed, color, label in ((False, "tab:blue", "answered"), (True, "tab:red", "failed")):
        points = [(outcome.began, outcome.latency) for outcome in outcomes if (outcome.error is not None) is failed]
        if points:
            axes.scatter(*zip(*points, strict=True), s=12, color=color, label=label)
    for percent in PERCENTILES:
        if summary.latency:
            axes.axhline(summary.latency[f"p{percent}"], color="gray", linewidth=0.8)
            axes.annotate(f"p{percent}", (0, summary.latency[f"p{percent}"]))
    axes.set(xlabel="began, s", ylabel="latency, s", ylim=(0, None), title=_title(summary))
    axes.legend()
    axes.figure.savefig(path)


def _title(summary: Summary) -> str:
    rate = f"{summary.requests_per_second:.2f} requests/s, {summary.audio_per_second:.1f} s of audio per second"
    return f"{summary.requests} requests, {summary.failed} failed, {rate}"


WIDTH, HEIGHT, MARGIN = 900, 420, 60


def _page(summary: Summary, outcomes: Sequence[Outcome]) -> str:
    longest = max((outcome.latency for outcome in outcomes), default=0.0) or 1.0
    latest = max((outcome.began for outcome in outcomes), default=0.0) or 1.0

    def x(seconds: float) -> float:
        return round(MARGIN + seconds / latest * (WIDTH - 2 * MARGIN), 1)

    def y(seconds: float) -> float:
        return round(HEIGHT - MARGIN - seconds / longest * (HEIGHT - 2 * MARGIN), 1)

    marks = [f'<text x="{x(latest * part / 4)}" y="{HEIGHT - MARGIN + 18}">{latest * part / 4:.3g}</text>' for part in range(5)]
    marks += [f'<text x="{MARGIN - 26}" y="{y(longest * part / 4) + 4}">{longest * part / 4:.3g}</text>' for part in range(5)]
    for name in (f"p{percent}" for percent in PERCENTILES if summary.latency):
        seconds = summary.latency[name]
        marks.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(seconds)}" y2="{y(seconds)}"/>')
        marks.append(f'<text x="{WIDTH - MARGIN + 30}" y="{y(seconds) + 4}">{name} {seconds:.3g}</text>')
    for outcome in outcomes:
        tip = html.escape(f"{outcome.file}: {outcome.latency:.3f} s {outcome.error or ''}".strip())
        kind = "failed" if outcome.error else "answered"
        marks.append(f'<circle class="{kind}" cx="{x(outcome.began)}" cy="{y(outcome.latency)}" r="3"><title>{tip}</title></circle>')
    return _PAGE.format(
        title=html.escape(_title(summary)), width=WIDTH, height=HEIGHT, middle=WIDTH // 2, bottom=HEIGHT - 12, marks="\n".join(marks)
    )


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Latency</title>
<style>
body {{ font: 14px sans-serif }} text {{ font-size: 11px; text-anchor: middle }} line {{ stroke: #999; stroke-dasharray: 4 }}
.answered {{ fill: #1f77b4; fill-opacity: .6 }} .failed {{ fill: #d62728 }}
</style>
<h1>{title}</h1>
<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<text x="{middle}" y="{bottom}">began, s</text><text x="60" y="40">latency, s</text>
{marks}
</svg>
"""


# The command line


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _output_file(text: str) -> Path:
    """A file that can be written, checked before the test starts."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is a folder, or in one that does not exist")
    return path


def _plot_file(text: str) -> Path:
    path = _output_file(text)
    if path.suffix.lower() not in (".html", ".png"):
        raise argparse.ArgumentTypeError(f"'{text}' must end in .html or .png")
    if path.suffix.lower() == ".png" and not importlib.util.find_spec("matplotlib"):
        raise argparse.ArgumentTypeError("a PNG needs matplotlib: pip install matplotlib, or take --plot latency.html, which needs nothing")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="A load test: many recordings at once, then latency, throughput and errors.",
        epilog="Requests are not streamed: --timeout covers pauses of the upload and the time until the reply begins.",
    )
    add_server_arguments(parser)
    parser.add_argument("--concurrency", type=_count, default=8, metavar="N", help="number of concurrent requests (default: %(default)s)")
    parser.add_argument("--repeat", type=_count, default=1, metavar="N", help="send each recording this many times (default: %(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=0, metavar="N", help="number of requests sent first and not measured (default: %(default)s)"
    )
    parser.add_argument("--json", type=_output_file, metavar="FILE", help="a file for the summary and all outcomes")
    parser.add_argument("--plot", type=_plot_file, metavar="FILE", help="a file for a plot of latencies: .html, or .png with matplotlib")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all answered, 1 some failed, 2 wrong arguments, 130 stopped by Ctrl-C."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        files = find_files(arguments.files)
    except FileNotFoundError as error:
        parser.error(str(error))
    try:
        target = server(arguments, response_format="json")
    except RequestFailed as error:
        print(error, file=sys.stderr)
        return 1
    # Without this header, the server answers equal uploads from a single transcription.
    target = replace(target, headers={"Cache-Control": "no-cache"})
    warmups = [files[number % len(files)] for number in range(arguments.warmup)]
    if warmups and measure(target, warmups, arguments.concurrency, "warming up")[1]:
        return 130
    started = datetime.now(timezone.utc)
    outcomes, interrupted = measure(target, files * arguments.repeat, arguments.concurrency, "transcribing")
    summary = summarize(outcomes)
    report(summary, outcomes, arguments.concurrency, Console())
    if arguments.json:
        arguments.json.write_text(as_json(summary, outcomes, arguments, started, interrupted) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(arguments.plot, summary, outcomes)
    return 130 if interrupted else int(summary.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
