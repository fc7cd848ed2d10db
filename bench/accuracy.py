"""Accuracy: every engine and strategy of ours beside openai-whisper and faster-whisper, on the same recordings of real speech.

python -m bench accuracy --model base                   every row on its sets; hours
python -m bench accuracy --model base --resume          the same, going on with what is missing
python -m bench accuracy --model base --rows ct2:chunked:int8 --sets test-clean chapters dictation --show-errors
python -m bench accuracy --model base --root LibriSpeech/test-clean --rows ct2:chunked:int8
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a file: its folder is on the path, and the package is not
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "src")]

import argparse
import fcntl
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import accuracy_table, datasets, edits, plot, results, rows, sounds
from bench.listening import reason
from bench.peers import Row, Setup
from bench.rows import WHOLE, Job
from bench.work import SCRATCH
from whispercore import checkpoints
from whispercore.errors import ConfigurationError

SLOW = (*datasets.SPEECH, "sounds-10min")
"""The sets of the readers that decode noise at length."""
ALL = (*SLOW, "sounds")
CORE = ("test-clean", "chapters", "dictation", "silence", "noisy-10dB")
"""The sets of the rows that compare engines and precisions with each other."""
ROWS: dict[str, tuple[str, ...]] = {
    "openai-whisper:sequential:float32": SLOW,
    "faster-whisper:sequential:float32": CORE,
    "faster-whisper:sequential:int8": SLOW,
    "faster-whisper:batched:float32": CORE,
    "faster-whisper:batched:int8": ALL,
    "ct2:chunked:int8": ALL,
    "ct2:sequential:int8": SLOW,
    "ct2:chunked:float32": ALL,
    "ct2:sequential:float32": CORE,
    "torch:chunked:float32": CORE,
    "torch:sequential:float32": CORE,
    "torch:chunked:bfloat16": CORE,
    "torch:chunked:int8_float32": CORE,
    "openai:chunked:float32": CORE,
    "openai:sequential:float32": CORE,
    "hf:chunked:float32": CORE,
    "onnx:chunked:float32": CORE,
    "onnx:chunked:int8": CORE,
    "onnx:chunked:uint8": CORE,
    "jax:chunked:float32": CORE,
    "sherpa:chunked:float32": CORE,
    "sherpa:chunked:int8": CORE,
}
"""The rows of a run, and the sets that each hears, where the command names none."""
WORST = 8
"""Recordings of a set whose errors `--show-errors` prints."""


class Results:
    """accuracy.json: a row's figures for every set it has heard, written as soon as they are there. Threads share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self.rows: list[dict[str, Any]] = []
        self._load()

    def missing(self, job: Job) -> Job:
        """The job without the sets that have been heard."""
        row = self._find(job)
        return replace(job, sets=tuple(name for name in job.sets if not row or name not in row["sets"]))

    def add(self, job: Job, told: dict[str, Any], measured: dict[str, Any]) -> None:
        """Keep a set's figures, or why the row has none."""
        with self._lock, _alone(self.folder):
            self._load()  # another run may have added to it
            row = self._find(job)
            if row is None:
                row = _named(job) | {"weights": _weights(job.setup), "sets": {}}
                self.rows.append(row)
            row.pop("failure", None)
            if "failure" in told:
                row["failure"] = told["failure"]
            else:
                row["sets"][told["set"]] = told["figures"] | {"measured": measured}
            order = list(ROWS)
            self.rows.sort(key=lambda one: (one["model"], order.index(one["row"]) if one["row"] in order else len(order)))
            results.save(self.folder, "accuracy", results.provenance(), {"normalizer": "Whisper's"}, {"rows": self.rows})

    def _load(self) -> None:
        known = results.load(self.folder, "accuracy")
        self.rows = known["result"]["rows"] if known else []

    def _find(self, job: Job) -> dict[str, Any] | None:
        named = _named(job)
        return next((row for row in self.rows if all(row.get(name) == value for name, value in named.items())), None)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process writes to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _named(job: Job) -> dict[str, Any]:
    """What a row is, without this machine's folders. A row that was cut to a few recordings is another row."""
    setup = asdict(job.setup) | {"model": job.setup.name}
    cut = ({"limit": job.limit} if job.limit else {}) | ({"hours": job.hours} if job.hours != sounds.HOURS else {})
    return asdict(Row.parse(job.row)) | {"row": str(Row.parse(job.row))} | setup | {"limit": None, "hours": sounds.HOURS} | cut


@cache
def _weights(setup: Setup) -> str:
    """The SHA-256 of the checkpoint."""
    return checkpoints.sha256(checkpoints.locate(setup.located))


def run(jobs: Sequence[Job], kept: Results, console: Console, *, together: int, show_errors: bool) -> list[str]:
    """Run the jobs, `together` at a time, each on separate cores. Returns a message for each failure."""
    cores, failures = SimpleQueue[tuple[int, ...]](), list[str]()
    for some in _cores(together, jobs[0].setup.threads if jobs else 1):
        cores.put(some)
    preparing, stopped = threading.Lock(), threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def one(job: Job) -> None:
            mine = cores.get()
            label = f"{job.setup.name} {job.row}"
            task = progress.add_task(label, total=sum(len(job.recordings(name).recordings) for name in job.sets))
            measured = {name: value for name, value in results.provenance().items() if name in ("date", "commit", "dirty", "load_average")}
            try:
                with preparing:
                    rows.prepare(job)
                for told in rows.apart(job, mine, stopped):
                    if "tick" in told:
                        progress.advance(task)
                        continue
                    kept.add(job, told, measured)
                    if "failure" in told:
                        failures.append(f"{label}: {told['failure']}")
                        progress.console.print(failures[-1], soft_wrap=True, markup=False)
                        continue
                    progress.console.print(accuracy_table.line(label, told["set"], told["figures"]), soft_wrap=True, markup=False)
                    _keep_heard(label, told)
                    if show_errors:
                        progress.console.print(worst(told["heard"]), soft_wrap=True, markup=False)
            except Exception as error:
                failures.append(f"{label}: {reason(error)}")
                kept.add(job, {"failure": reason(error)}, measured)
                progress.console.print(failures[-1], soft_wrap=True, markup=False)
            finally:
                progress.remove_task(task)
                cores.put(mine)

        with ThreadPoolExecutor(together) as pool:
            running = [pool.submit(one, job) for job in jobs if job.sets]
            try:
                for each in running:
                    each.result()
            except KeyboardInterrupt:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                failures.append("stopped; what was heard is kept, and --resume goes on")
                progress.console.print(f"accuracy: {failures[-1]}")
    return failures


def _cores(together: int, threads: int) -> list[tuple[int, ...]]:
    """So many groups of `threads` cores each, of those this process may use; they overlap when there are too few."""
    usable = sorted(os.sched_getaffinity(0))
    return [tuple(usable[(group * threads + number) % len(usable)] for number in range(threads)) for group in range(together)]


def _keep_heard(label: str, told: dict[str, Any]) -> None:
    """What was heard is not among the committed results."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with (SCRATCH / "accuracy-heard.jsonl").open("a", encoding="utf-8") as file:
        for one in told["heard"]:
            file.write(json.dumps({"row": label, "set": told["set"], **one}, ensure_ascii=False) + "\n")


def worst(heard: Sequence[dict[str, Any]], count: int = WORST) -> str:
    """The recordings with the most errors, and where they differ: [-lost-], {+inserted+}, [-said-]{+heard+}."""
    counted = [(edits.edits(one["text"], one["heard"], one["language"]), one) for one in heard]
    lines = []
    for found, one in sorted(counted, key=lambda pair: -pair[0].errors)[:count]:
        if found.errors:
            counts = f"{found.said} words, {found.insertions} ins {found.deletions} del {found.substitutions} sub"
            lines += [f"  {Path(one['audio']).name}: {counts}", f"    {edits.difference(one['text'], one['heard'], one['language'])}"]
    return "\n".join(lines) or "  no errors"


def chosen(arguments: argparse.Namespace) -> list[Job]:
    """A job for every row on every checkpoint. Raises ConfigurationError."""
    jobs = []
    for model in arguments.model:
        setup = Setup(
            model=model,
            device=arguments.device,
            threads=arguments.threads,
            beam_size=arguments.beam_size,
            condition_on_previous_text=arguments.condition_on_previous_text,
        )
        checkpoints.locate(setup.located)
        for text in arguments.rows or ROWS:
            row, _, limited = text.partition("=")
            names = tuple(limited.split(",")) if limited else _sets(arguments, str(Row.parse(row)))
            job = Job(row=str(Row.parse(row)), setup=setup, sets=names, root=arguments.root, limit=arguments.limit, hours=arguments.hours)
            jobs.append(replace(job, sets=tuple(name for name in names if job.recordings(name).recordings)))
    return jobs


def _sets(arguments: argparse.Namespace, row: str) -> tuple[str, ...]:
    whole = (WHOLE,) if arguments.root else ()
    if arguments.sets is not None or whole:
        return (*(arguments.sets or ()), *whole)
    return ROWS.get(row, ALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when a row failed, 2 when what was asked for is not there."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    kept = Results((arguments.results or SCRATCH / "accuracy").resolve())
    try:
        jobs = chosen(arguments)
    except ConfigurationError as error:
        console.print(f"accuracy: {error}", markup=False)
        return 2
    if arguments.resume:
        jobs = [kept.missing(job) for job in jobs]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    failures = run(jobs, kept, console, together=arguments.jobs, show_errors=arguments.show_errors)
    console.print(f"accuracy: {kept.folder / 'accuracy.json'}; {plot.save(kept.folder, kept.rows)}", markup=False)
    if kept.folder == results.RESULTS:
        accuracy_table.update()
        accuracy_table.update_readme()
    if arguments.json:
        print(json.dumps(results.load(kept.folder, "accuracy"), indent=1))
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what")
    what.add_argument("--rows", nargs="+", metavar="ROW", help="RUNNER[:MODE[:COMPUTE_TYPE]][@TOGETHER][=SET,SET]; see below")
    what.add_argument("--sets", nargs="+", metavar="SET", help=f"{', '.join(datasets.SETS)}; default: each row's own, see below")
    what.add_argument(
        "--root", metavar="PATH", help="LibriSpeech/test-clean, a folder of audio with .txt beside, or a manifest: the set `whole`"
    )
    what.add_argument("--limit", type=_positive, help="only the first so many recordings of each set")
    what.add_argument("--hours", type=float, default=sounds.HOURS, help="length of the set sounds; default: 3")
    how = parser.add_argument_group("how")
    how.add_argument("--model", nargs="+", default=["base"], help="names in whisper-models/ or paths of checkpoints; default: base")
    how.add_argument("--jobs", type=_positive, default=1, help="rows measured at a time, each in a process on separate cores; default: 1")
    how.add_argument("--threads", type=_positive, default=1, help="cores and threads of a row; default: 1")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    how.add_argument("--beam-size", type=_positive, help="default: greedy, with fallback")
    how.add_argument("--condition-on-previous-text", action=argparse.BooleanOptionalAction, default=True)
    out = parser.add_argument_group("results")
    out.add_argument("--show-errors", action="store_true", help="print the worst recordings of every set, and where they differ")
    out.add_argument("--resume", action="store_true", help="leave out what is in the results already")
    out.add_argument("--results", type=Path, metavar="DIR", help="where accuracy.json is; default: build/bench/accuracy")
    out.add_argument("--json", action="store_true", help="print the results")
    parser.epilog = "rows, and the sets of each, as they are by default:\n  " + "\n  ".join(
        f"{row}  {' '.join(names)}" for row, names in ROWS.items()
    )
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
