"""A row of the accuracy bench, in a separate process on separate cores. It prints one line of figures for each set."""

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
from .listening import Pass, listen, reason
from .peers import Heard, Row, Setup, open_runner
from .work import ROOT

MAX_ERRORS = 3
"""Messages of failed recordings that a row keeps; all are counted."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row, on which checkpoint, and the sets that it is to hear. `root`: recordings besides the known sets, as the set `whole`."""

    row: str
    setup: Setup
    sets: tuple[str, ...]
    root: str | None = None
    limit: int | None = None
    hours: float = sounds.HOURS

    @classmethod
    def of(cls, told: dict[str, Any]) -> Job:
        """From the dictionary that `asdict` made."""
        return cls(**(told | {"setup": Setup(**told["setup"]), "sets": tuple(told["sets"])}))

    def recordings(self, name: str) -> Set:
        """The set of this name, of the model's languages, cut to the limit. Raises ConfigurationError."""
        found = Set(name, datasets.of(Path(self.root))) if self.root and name == WHOLE else datasets.named(name, self.hours)
        spoken = [one for one in found.recordings if one.language == "en" or not self.setup.english_only]
        return replace(found, recordings=spoken[: self.limit])


WHOLE = "whole"
"""The name of the set that `--root` gives."""


def measure(job: Job, tell: Callable[[dict[str, Any]], None]) -> None:
    """Hear every set and tell its figures as soon as they are there. One recording before the clock starts warms the runner up."""
    row = Row.parse(job.row)
    with open_runner(row, job.setup) as hear:
        loaded = time.time() - psutil.Process().create_time()
        first = job.recordings(job.sets[0])
        listen(hear, replace(first, recordings=first.recordings[:1]), together=1, tick=lambda: None)
        with peak_memory() as peak:
            for name in job.sets:
                heard_set = job.recordings(name)
                heard = listen(hear, heard_set, together=row.together, tick=lambda: tell({"tick": 1}))
                figures = scores.of(heard_set, heard.heard) | _cost(heard, heard_set.recordings)
                about = {"peak_rss_mb": peak(), "load_seconds": round(loaded, 2)}
                tell({"set": name, "figures": figures | about, "heard": _texts(heard_set, heard.heard)})


def _texts(heard_set: Set, heard: Sequence[Heard]) -> list[dict[str, Any]]:
    pairs = zip(heard_set.recordings, heard, strict=True)
    return [{"audio": str(one.path), "text": one.text, "heard": it.text, "language": one.language} for one, it in pairs]


def _cost(heard: Pass, recordings: Sequence[Recording]) -> dict[str, Any]:
    audio = sum(one.seconds for one in recordings)
    spent = {"seconds": round(heard.seconds, 3), "cpu_seconds": round(heard.cpu_seconds, 3)}
    failed = {"failed": len(heard.failures), "failures": heard.failures[:MAX_ERRORS]}
    return {"audio_seconds": round(audio, 2)} | spent | {"rtfx": round(audio / heard.seconds, 2)} | failed


class peak_memory:
    """The most that this process and its children held resident together, in MB of 1,000,000 bytes, as far as it was seen."""

    def __enter__(self) -> Callable[[], float]:
        self._ended, self._most = threading.Event(), 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return lambda: round(max(self._most, _peak_rss()) / 1e6, 1)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            process = psutil.Process()
            held = 0
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    held += one.memory_info().rss
            self._most = max(self._most, held)


def _peak_rss() -> int:
    """Of this process alone, in bytes (Linux: VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def apart(job: Job, cores: Sequence[int], stopped: threading.Event) -> Iterator[dict[str, Any]]:
    """What the row tells, from a process of its own on these cores; its last line is {"failure": …} when it ended early.

    The process ends with this iterator, and when `stopped` is set, of which nothing is told.
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
        ended = killed if process.returncode < 0 else f"status {process.returncode}"
        yield {"failure": f"{row}: its process ended with {ended}: {last[:200]}"}


def _complete(lines: Any) -> Iterator[dict[str, Any]]:
    """The lines that are written to their end."""
    while True:
        at = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(at)
            return
        yield json.loads(line)


def _environment(setup: Setup) -> dict[str, str]:
    """No settings of the server's, and so many threads for every library."""
    path, count = os.pathsep.join([str(ROOT / "src"), str(ROOT)]), str(setup.threads)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_") or name == "WHISPER_SPEECH_DATA"}
    return kept | threads | {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def main(argv: Sequence[str] | None = None) -> int:
    """One row in this process: exit status 0, also when it tells a failure."""
    parser = argparse.ArgumentParser(prog="python -m bench.rows", description=__doc__)
    parser.add_argument("--job", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cores", required=True)
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    logging.getLogger("whispercore").setLevel(logging.CRITICAL)  # what failed is in the figures
    with arguments.out.open("a", buffering=1) as out:

        def tell(line: dict[str, Any]) -> None:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")

        try:
            measure(Job.of(json.loads(arguments.job)), tell)
        except Exception as error:
            tell({"failure": reason(error)})
    return 0


def prepare(job: Job) -> None:
    """Convert the checkpoint for the row, outside the row's process: it would count as the row's time and memory."""
    runner = Row.parse(job.row)
    engine = {"openai-whisper": "openai", "faster-whisper": "ct2"}.get(runner.runner, runner.runner)
    settings = replace(job.setup.located, engine=engine, dtype=runner.compute_type)
    checkpoints.prepare(settings)


if __name__ == "__main__":
    sys.exit(main())
