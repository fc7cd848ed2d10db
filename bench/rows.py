"""A row of `bench accuracy`, in a separate process on separate cores. The process writes one JSON line for each set."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from whispercore import checkpoints

from . import datasets, scores, sounds
from .datasets import Recording, Set
from .passes import Pass, reason, run_pass
from .peers import Hypothesis, Row, Setup, open_runner
from .work import ROOT

MAX_ERRORS = 3
"""Messages of failed recordings that a row keeps. All failures are counted."""
POLL_SECONDS = 0.2
"""Between two looks at the lines that the process has written."""
WHOLE = "whole"
"""The set of the recordings that `--root` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row, its checkpoint and options, and the sets it transcribes. `root`: the recordings of the set `whole`."""

    row: str
    setup: Setup
    sets: tuple[str, ...]
    root: str | None = None
    limit: int | None = None
    hours: float = sounds.HOURS

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Job:
        """From the dictionary that `asdict` returned."""
        return cls(**(fields | {"setup": Setup(**fields["setup"]), "sets": tuple(fields["sets"])}))

    def recordings(self, name: str) -> Set:
        """The set of this name, in the model's languages, cut to the limit. Raises ConfigurationError."""
        dataset = Set(name, datasets.of(Path(self.root))) if self.root and name == WHOLE else datasets.named(name, self.hours)
        spoken = [recording for recording in dataset.recordings if recording.language == "en" or not self.setup.english_only]
        return replace(dataset, recordings=spoken[: self.limit])


def measure(job: Job, report: Callable[[dict[str, Any]], None]) -> None:
    """Transcribe every set and report its figures.

    One recording before the first set warms the runner up; it is not measured.
    """
    row = Row.parse(job.row)
    with open_runner(row, job.setup) as transcribe:
        loaded = time.time() - psutil.Process().create_time()
        first = job.recordings(job.sets[0])
        run_pass(transcribe, replace(first, recordings=first.recordings[:1]), together=1, tick=lambda: None)
        with peak_memory() as peak:
            for name in job.sets:
                dataset = job.recordings(name)
                done = run_pass(transcribe, dataset, together=row.together, tick=lambda: report({"tick": 1}))
                figures = scores.of(dataset, done.hypotheses) | _cost(done, dataset.recordings)
                process = {"peak_rss_mb": peak(), "load_seconds": round(loaded, 2)}
                report({"set": name, "figures": figures | process, "heard": _texts(dataset, done.hypotheses)})


def _texts(dataset: Set, hypotheses: Sequence[Hypothesis]) -> list[dict[str, Any]]:
    """Reference and hypothesis of every recording."""
    return [
        {"audio": str(recording.path), "text": recording.text, "heard": hypothesis.text, "language": recording.language}
        for recording, hypothesis in zip(dataset.recordings, hypotheses, strict=True)
    ]


def _cost(done: Pass, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Wall time, processor time, RTFx and failures of a pass."""
    audio = sum(recording.seconds for recording in recordings)
    times = {"seconds": round(done.seconds, 3), "cpu_seconds": round(done.cpu_seconds, 3)}
    failed = {"failed": len(done.failures), "failures": done.failures[:MAX_ERRORS]}
    return {"audio_seconds": round(audio, 2)} | times | {"rtfx": round(audio / done.seconds, 2)} | failed


class peak_memory:
    """The peak resident memory of this process and its children together, in MB of 1,000,000 bytes, sampled every
    second."""

    def __enter__(self) -> Callable[[], float]:
        self._ended, self._peak = threading.Event(), 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return lambda: round(max(self._peak, _peak_rss()) / 1e6, 1)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            process = psutil.Process()
            total = 0
            for member in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += member.memory_info().rss
            self._peak = max(self._peak, total)


def _peak_rss() -> int:
    """The peak resident memory of this process alone, in bytes (Linux: VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def apart(job: Job, cores: Sequence[int], stopped: threading.Event) -> Iterator[dict[str, Any]]:
    """The lines that the row's process reports. The process runs on these cores.

    The last line is {"failure": …} when the process ended early. The process is killed when this iterator is closed, and when
    `stopped` is set; neither is reported as a failure.
    """
    row = Row.parse(job.row)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines.jsonl"
        out.touch()
        command = [sys.executable, "-m", "bench.rows", "--job", json.dumps(asdict(job)), "--out", str(out)]
        command += ["--cores", ",".join(map(str, cores))]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=_environment(job.setup), stdout=log, stderr=log, start_new_session=True)
            try:
                with out.open() as lines:
                    while process.poll() is None:
                        yield from _complete(lines)
                        if stopped.wait(POLL_SECONDS):
                            return
                    yield from _complete(lines)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            last = (log.read().strip() or "no message").splitlines()[-1].replace(f"{ROOT}/", "")
    if process.returncode:
        killed = f"killed by signal {-process.returncode}, 9 where memory ran out"
        end = killed if process.returncode < 0 else f"status {process.returncode}"
        yield {"failure": f"{row}: its process ended with {end}: {last[:200]}"}


def _complete(lines: Any) -> Iterator[dict[str, Any]]:
    """The complete lines, as JSON; a line without its line end is left for the next call."""
    while True:
        position = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(position)
            return
        yield json.loads(line)


def _environment(setup: Setup) -> dict[str, str]:
    """Without the server's settings; every library uses the setup's number of threads."""
    path, count = os.pathsep.join([str(ROOT / "src"), str(ROOT)]), str(setup.threads)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_") or name == "WHISPER_SPEECH_DATA"}
    return kept | threads | {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one row in this process. Exit status 0, also when the row reports a failure."""
    parser = argparse.ArgumentParser(prog="python -m bench.rows", description=__doc__)
    parser.add_argument("--job", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cores", required=True)
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    logging.getLogger("whispercore").setLevel(logging.CRITICAL)  # failures are in the figures
    with arguments.out.open("a", buffering=1) as out:

        def report(line: dict[str, Any]) -> None:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")

        try:
            measure(Job.of(json.loads(arguments.job)), report)
        except Exception as error:
            report({"failure": reason(error)})
    return 0


def prepare(job: Job) -> None:
    """Convert the checkpoint for the row. In the row's own process it would count as the row's time and memory."""
    row = Row.parse(job.row)
    engine = {"openai-whisper": "openai", "faster-whisper": "ct2"}.get(row.runner, row.runner)
    settings = replace(job.setup.located, engine=engine, dtype=row.compute_type)
    checkpoints.prepare(settings)


if __name__ == "__main__":
    sys.exit(main())
