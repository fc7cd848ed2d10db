"""python -m bench [WHAT]: measure, save, write tables. WHAT: see --help."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from . import accuracy, engines, gateway, host, hostile, loss, memory, overhead, realtime, results, serve, serverless, soak, startup
from .load import LoadError
from .plan import FULL, QUICK, Plan
from .report import accuracy as accuracy_report
from .report import engines as engines_report
from .report import gateway as gateway_report
from .report import host as host_report
from .report import hostile as hostile_report
from .report import image as image_report
from .report import serve as serve_report
from .report import startup as startup_report
from .work import SCRATCH

MEASURE: dict[str, Callable[[Plan, Callable[[str], None]], tuple[dict[str, Any], dict[str, Any]]]] = {
    "startup": startup.measure,
    "overhead": overhead.measure,
    "memory": memory.measure,
}

OTHERS: dict[str, Callable[[Sequence[str]], int]] = {
    "accuracy": accuracy.main,
    "serve": serve.main,
    "soak": soak.main,
    "hostile": hostile.main,
    "engines": engines.main,
    "loss": loss.main,
    "gateway": gateway.main,
    "lambda": serverless.main,
    "realtime": realtime.main,
    "host": host.main,
}
WHAT = "default: startup, overhead, memory; the others have their own options: see serve --help"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when a server failed or decoded another number of tokens than requested."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in OTHERS:
        return OTHERS[words[0]](words[1:])
    arguments = _parser().parse_args(words)
    folder = arguments.results or (SCRATCH / "quick" if arguments.quick else results.RESULTS)
    console = Console(stderr=True, highlight=False)
    try:
        for name in [name for name in MEASURE if arguments.what in (name, "all")]:
            measure(name, QUICK if arguments.quick else FULL, folder, console)
    except (LoadError, RuntimeError) as error:
        console.print(f"[red]{name}:[/red] {error}", markup=True)
        return 1
    if folder == results.RESULTS:
        _update_pages(console)
    print(json.dumps({name: results.load(folder, name) for name in MEASURE}, indent=1) if arguments.json else startup_report.table(folder))
    return 0


def _update_pages(console: Console) -> None:
    """Write all tables into docs/measured.md and README.md."""
    for table in (startup_report, serve_report, engines_report, accuracy_report, gateway_report, host_report, hostile_report, image_report):
        table.update()
    serve_report.update_readme()
    for report in (accuracy_report, hostile_report):
        if not report.update_readme():
            console.print(f"README.md has no lines {report.BLOCK.begin.strip()} and {report.BLOCK.end}: they are not written")


def measure(name: str, plan: Plan, folder: Path, console: Console) -> None:
    """Run one measurement, print its steps, and save the result."""
    origin, began = results.provenance(), time.monotonic()
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True) as progress:
        progress.add_task(name)
        settings, result = MEASURE[name](plan, lambda line: progress.console.print(f"{name}: {line}"))
    results.save(folder, name, origin, settings, result)
    console.print(f"{name}: done in {time.monotonic() - began:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, save the results, write the tables.")
    parser.add_argument("what", nargs="?", default="all", choices=("all", *MEASURE, *OTHERS, "table"), help=WHAT)
    parser.add_argument("--quick", action="store_true", help="a short run of everything to try the harness; not saved among the results")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where results are saved (default: bench/results; --quick: build/bench/quick)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
