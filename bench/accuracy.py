"""Accuracy of every engine and strategy, of openai-whisper and of faster-whisper, on the same recordings of real speech.

python -m bench accuracy --model base                   every row on its sets; hours
python -m bench accuracy --model base --resume          the same, without the sets that are measured already
python -m bench accuracy --model base --rows ct2:chunked:int8 --sets test-clean chapters dictation --show-errors
python -m bench accuracy --model base --root LibriSpeech/test-clean --rows ct2:chunked:int8
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: the path has this folder instead of the package's
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

from bench import datasets, edits, results, rows, sounds
from bench.datasets import CORE
from bench.passes import reason
from bench.peers import Row, Setup
from bench.report import accuracy as accuracy_report
from bench.report import plot
from bench.rows import WHOLE, Job
from bench.work import SCRATCH
from whispercore import checkpoints
from whispercore.errors import ConfigurationError

SLOW = (*datasets.SPEECH, "sounds-10min")
"""The sets of the runners that decode noise for hours: ten minutes without speech instead of three hours."""
ALL = (*SLOW, "sounds")
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
"""The default rows, and the default sets of each."""
WORST = 8
"""Recordings of a set whose errors `--show-errors` prints."""


class Results:
    """accuracy.json: every row's figures by set, written after each set.

    Thread-safe; several processes may write the same file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self.rows: list[dict[str, Any]] = []
        self._load()

    def missing(self, job: Job) -> Job:
        """The job without the sets that have figures already."""
        row = self._find(job)
        return replace(job, sets=tuple(name for name in job.sets if not row or name not in row["sets"]))

    def add(self, job: Job, line: dict[str, Any], measured: dict[str, Any]) -> None:
        """Save a line that the row reported: a set's figures, or the row's failure. `measured`: date and commit."""
        with self._lock, _locked(self.folder):
            self._load()  # another run may have added to it
            row = self._find(job)
            if row is None:
                row = _key(job) | {"weights": _weights(job.setup), "sets": {}}
                self.rows.append(row)
            row.pop("failure", None)
            if "failure" in line:
                row["failure"] = line["failure"]
            else:
                row["sets"][line["set"]] = line["figures"] | {"measured": measured}
            order = list(ROWS)
            self.rows.sort(key=lambda row: (row["model"], order.index(row["row"]) if row["row"] in order else len(order)))
            results.save(self.folder, "accuracy", results.provenance(), {"normalizer": "Whisper's"}, {"rows": self.rows})

    def _load(self) -> None:
        content = results.load(self.folder, "accuracy")
        self.rows = content["result"]["rows"] if content else []

    def _find(self, job: Job) -> dict[str, Any] | None:
        key = _key(job)
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude other processes that write to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _key(job: Job) -> dict[str, Any]:
    """The fields that identify a row, without this machine's folders. A row with a limit is another row."""
    setup = asdict(job.setup) | {"model": job.setup.name}
    cut = ({"limit": job.limit} if job.limit else {}) | ({"hours": job.hours} if job.hours != sounds.HOURS else {})
    return asdict(Row.parse(job.row)) | {"row": str(Row.parse(job.row))} | setup | {"limit": None, "hours": sounds.HOURS} | cut


@cache
def _weights(setup: Setup) -> str:
    """The SHA-256 of the checkpoint."""
    return checkpoints.sha256(checkpoints.locate(setup.located))


def run(jobs: Sequence[Job], results_file: Results, console: Console, *, together: int, show_errors: bool) -> list[str]:
    """Run the jobs, `together` at a time, each on separate cores. Returns a message for each failure."""
    cores, failures = SimpleQueue[tuple[int, ...]](), list[str]()
    for group in _cores(together, jobs[0].setup.threads if jobs else 1):
        cores.put(group)
    preparing, stopped = threading.Lock(), threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def measure(job: Job) -> None:
            own_cores = cores.get()
            label = f"{job.setup.name} {job.row}"
            task = progress.add_task(label, total=sum(len(job.recordings(name).recordings) for name in job.sets))
            measured = {name: value for name, value in results.provenance().items() if name in ("date", "commit", "dirty", "load_average")}
            try:
                with preparing:
                    rows.prepare(job)
                for line in rows.apart(job, own_cores, stopped):
                    if "tick" in line:
                        progress.advance(task)
                        continue
                    results_file.add(job, line, measured)
                    if "failure" in line:
                        failures.append(f"{label}: {line['failure']}")
                        progress.console.print(failures[-1], soft_wrap=True, markup=False)
                        continue
                    progress.console.print(accuracy_report.line(label, line["set"], line["figures"]), soft_wrap=True, markup=False)
                    _save_texts(label, line)
                    if show_errors:
                        progress.console.print(worst(line["heard"]), soft_wrap=True, markup=False)
            except Exception as error:
                failures.append(f"{label}: {reason(error)}")
                results_file.add(job, {"failure": reason(error)}, measured)
                progress.console.print(failures[-1], soft_wrap=True, markup=False)
            finally:
                progress.remove_task(task)
                cores.put(own_cores)

        with ThreadPoolExecutor(together) as pool:
            futures = [pool.submit(measure, job) for job in jobs if job.sets]
            try:
                for future in futures:
                    future.result()
            except KeyboardInterrupt:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                failures.append("stopped; finished sets are saved, and --resume continues")
                progress.console.print(f"accuracy: {failures[-1]}")
    return failures


def _cores(together: int, threads: int) -> list[tuple[int, ...]]:
    """`together` groups of `threads` cores each, out of the cores this process may use.

    Groups overlap when there are too few.
    """
    usable = sorted(os.sched_getaffinity(0))
    return [tuple(usable[(group * threads + number) % len(usable)] for number in range(threads)) for group in range(together)]


def _save_texts(label: str, line: dict[str, Any]) -> None:
    """Append every recording's reference and hypothesis to a file; the committed results do not have them."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with (SCRATCH / "accuracy-heard.jsonl").open("a", encoding="utf-8") as file:
        for texts in line["heard"]:
            file.write(json.dumps({"row": label, "set": line["set"], **texts}, ensure_ascii=False) + "\n")


def worst(texts: Sequence[dict[str, Any]], count: int = WORST) -> str:
    """The recordings with the most errors, and their differences: [-deleted-], {+inserted+},
    [-reference-]{+hypothesis+}."""
    counted = [(edits.edits(entry["text"], entry["heard"], entry["language"]), entry) for entry in texts]
    lines = []
    for errors, entry in sorted(counted, key=lambda pair: -pair[0].errors)[:count]:
        if errors.errors:
            counts = f"{errors.words} words, {errors.insertions} ins {errors.deletions} del {errors.substitutions} sub"
            difference = edits.difference(entry["text"], entry["heard"], entry["language"])
            lines += [f"  {Path(entry['audio']).name}: {counts}", f"    {difference}"]
    return "\n".join(lines) or "  no errors"


def chosen(arguments: argparse.Namespace) -> list[Job]:
    """A job for every row and checkpoint that the command names. Raises ConfigurationError."""
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
            row, _, sets = text.partition("=")
            names = tuple(sets.split(",")) if sets else _sets(arguments, str(Row.parse(row)))
            job = Job(row=str(Row.parse(row)), setup=setup, sets=names, root=arguments.root, limit=arguments.limit, hours=arguments.hours)
            jobs.append(replace(job, sets=tuple(name for name in names if job.recordings(name).recordings)))
    return jobs


def _sets(arguments: argparse.Namespace, row: str) -> tuple[str, ...]:
    whole = (WHOLE,) if arguments.root else ()
    if arguments.sets is not None or whole:
        return (*(arguments.sets or ()), *whole)
    return ROWS.get(row, ALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when a row failed; 2 when a row, a set or a model does not exist."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    results_file = Results((arguments.results or SCRATCH / "accuracy").resolve())
    try:
        jobs = chosen(arguments)
    except ConfigurationError as error:
        console.print(f"accuracy: {error}", markup=False)
        return 2
    if arguments.resume:
        jobs = [results_file.missing(job) for job in jobs]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores SIGINT by default
    failures = run(jobs, results_file, console, together=arguments.jobs, show_errors=arguments.show_errors)
    console.print(
        f"accuracy: {results_file.folder / 'accuracy.json'}; {plot.accuracy(results_file.folder, results_file.rows)}", markup=False
    )
    if results_file.folder == results.RESULTS:
        accuracy_report.update()
        accuracy_report.update_readme()
    if arguments.json:
        print(json.dumps(results.load(results_file.folder, "accuracy"), indent=1))
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
    what.add_argument("--limit", type=_positive, help="only the first LIMIT recordings of each set")
    what.add_argument("--hours", type=float, default=sounds.HOURS, help="length of the set sounds; default: 3")
    how = parser.add_argument_group("how")
    how.add_argument("--model", nargs="+", default=["base"], help="names in whisper-models/ or paths of checkpoints; default: base")
    how.add_argument(
        "--jobs", type=_positive, default=1, help="rows measured at a time, each in its own process on separate cores; default: 1"
    )
    how.add_argument("--threads", type=_positive, default=1, help="cores and threads of a row; default: 1")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    how.add_argument("--beam-size", type=_positive, help="default: greedy, with fallback")
    how.add_argument("--condition-on-previous-text", action=argparse.BooleanOptionalAction, default=True)
    out = parser.add_argument_group("results")
    out.add_argument(
        "--show-errors", action="store_true", help="print the recordings with the most errors of every set, and the differences"
    )
    out.add_argument("--resume", action="store_true", help="leave out the sets that the results have already")
    out.add_argument("--results", type=Path, metavar="DIR", help="where accuracy.json is; default: build/bench/accuracy")
    out.add_argument("--json", action="store_true", help="print the results")
    parser.epilog = "default rows, and the default sets of each:\n  " + "\n  ".join(
        f"{row}  {' '.join(names)}" for row, names in ROWS.items()
    )
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
