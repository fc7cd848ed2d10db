"""The runs of `bench accuracy`: rows in their own processes, results saved set by set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import (
    accuracy,
    results,
    rows,
)
from bench.peers import Setup
from bench.rows import Job
from bench.work import ROOT
from tests.unit.bench.conftest import FIGURES, write_sound
from whispercore.errors import ConfigurationError


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run's results and hypotheses."""
    monkeypatch.setattr(accuracy, "SCRATCH", tmp_path / "scratch")
    return tmp_path / "kept"


def _run(kept: Path, *given: str) -> int:
    return accuracy.main(["--model", "nano", "--limit", "2", "--results", str(kept), *given])


def _kept(kept: Path) -> list[dict[str, Any]]:
    content = results.load(kept, "accuracy")
    assert content is not None
    found: list[dict[str, Any]] = content["result"]["rows"]
    return found


@pytest.mark.slow
def test_a_row_runs_in_its_own_process_saves_each_set_and_resumes(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(kept, "--rows", "ct2:chunked:int8", "--sets", "heldout", "espeak", "--show-errors") == 0
    (row,) = _kept(kept)
    assert (row["row"], row["model"], row["limit"], set(row["sets"])) == ("ct2:chunked:int8", "nano", 2, {"heldout", "espeak"})
    heldout, espeaks = row["sets"]["heldout"], row["sets"]["espeak"]
    assert heldout["words"] > 5 and heldout["wer"] < 0.5 and heldout["failed"] == 0
    assert heldout["seconds"] > 0 and heldout["cpu_seconds"] > 0 and 100 < heldout["peak_rss_mb"] < 8000
    assert espeaks["word_times"]["start"]["compared"] > 5
    assert heldout["measured"]["commit"] and heldout["measured"]["date"]
    told = capsys.readouterr().err
    assert "nano ct2:chunked:int8 heldout: WER" in told and "word times: median" in told
    heard = [json.loads(line) for line in (kept.parent / "scratch" / "accuracy-heard.jsonl").read_text().splitlines()]
    assert [line["set"] for line in heard] == ["heldout"] * 2 + ["espeak"] * 2 and heard[0]["heard"]

    monkeypatch.setattr(rows, "apart", _never)
    assert _run(kept, "--rows", "ct2:chunked:int8", "--sets", "heldout", "--resume") == 0, "the set has figures already"


def _never(job: Job, cores: Sequence[int], stopped: threading.Event) -> Iterator[dict[str, Any]]:
    raise AssertionError("nothing is missing")


def test_a_failed_row_does_not_stop_the_others(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(job: Job, cores: Sequence[int], stopped: threading.Event) -> Iterator[dict[str, Any]]:
        yield {"tick": 1}
        yield {"set": "quiet", "figures": FIGURES, "heard": [{"audio": "a", "text": "", "heard": "you", "language": "en"}]}
        if job.row.startswith("openai"):
            yield {"failure": "its process ended with killed by signal 9"}

    monkeypatch.setattr(rows, "apart", apart)
    given = ["--rows", "openai:chunked:float32", "sherpa:chunked:nonsense", "ct2:chunked:int8=quiet", "--sets", "quiet", "heldout"]
    assert _run(kept, *given, "--jobs", "2") == 1
    found = {row["row"]: row for row in _kept(kept)}
    assert list(found["openai:chunked:float32"]["sets"]) == ["quiet"], "what it heard before is kept"
    assert "signal 9" in found["openai:chunked:float32"]["failure"]
    assert "nonsense" in found["sherpa:chunked:nonsense"]["failure"]
    assert "failure" not in found["ct2:chunked:int8"]


@pytest.mark.slow
def test_a_process_that_ends_early_reports_the_reason() -> None:
    job = Job(row="ct2:chunked:int8", setup=Setup(model="nano"), sets=("no-such-set",))
    told = list(rows.apart(job, [0], threading.Event()))
    assert told[-1]["failure"].startswith("unknown set 'no-such-set'")
    broken = replace(job, row="nobody")
    with pytest.raises(ConfigurationError):
        list(rows.apart(broken, [0], threading.Event()))


@pytest.mark.slow
def test_a_stopped_row_leaves_no_process_behind() -> None:
    """Neither when its iterator is closed nor when `stopped` is set."""
    job, stopped = Job(row="ct2:chunked:int8", setup=Setup(model="nano"), sets=("heldout",)), threading.Event()
    for end in (lambda running: running.close(), lambda running: stopped.set() or list(running)):
        others = set(psutil.Process().children())
        running = rows.apart(job, [0], stopped)
        assert "tick" in next(running)
        (child,) = set(psutil.Process().children()) - others
        end(running)
        assert not child.is_running()


@pytest.mark.slow
def test_a_stopped_run_keeps_finished_sets(kept: Path) -> None:
    given = ["--model", "nano", "--results", str(kept), "--rows", "ct2:chunked:int8", "--sets", "heldout", "quiet", "espeak"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-m", "bench.accuracy", *given], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as run:
        while not (kept / "accuracy.json").exists():
            assert run.poll() is None
            time.sleep(0.1)
        children = psutil.Process(run.pid).children(recursive=True)
        run.terminate()
        assert run.wait(60) == 1
    assert not any(child.is_running() for child in children)
    assert "heldout" in _kept(kept)[0]["sets"] and "failure" not in _kept(kept)[0]


def test_two_simultaneous_runs_keep_both_rows(kept: Path) -> None:
    one, other = accuracy.Results(kept), accuracy.Results(kept)
    told = {"set": "quiet", "figures": {}}
    for results_file, row in ((one, "ct2:chunked:int8"), (other, "ct2:sequential:int8")):
        results_file.add(Job(row=row, setup=Setup(model="nano"), sets=("quiet",)), told, {})
    assert [row["row"] for row in _kept(kept)] == ["ct2:chunked:int8", "ct2:sequential:int8"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rows", "nobody"], "unknown row"),
        (["--rows", "ct2=nothing"], "unknown set 'nothing'"),
        (["--sets", "nothing"], "unknown set 'nothing'"),
        (["--root", "nowhere"], "nowhere is not a folder"),
        (["--model", "no-such-model"], "no checkpoint at"),
    ],
)
def test_an_unknown_row_set_path_or_model_is_an_error_before_measuring(
    arguments: list[str], reason: str, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main(["--model", "nano", "--results", str(kept), *arguments]) == 2
    assert reason in " ".join(capsys.readouterr().err.split()) and not kept.exists()


def test_root_is_the_set_whole_alone_or_with_others(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav").with_suffix(".txt").write_text("one")
    parse = accuracy._parser().parse_args
    alone = accuracy.chosen(parse(["--model", "nano", "--root", str(tmp_path), "--rows", "ct2"]))
    both = accuracy.chosen(parse(["--model", "nano", "--root", str(tmp_path), "--rows", "ct2", "--sets", "heldout"]))
    assert alone[0].sets == ("whole",) and both[0].sets == ("heldout", "whole")
    assert [one.text for one in alone[0].recordings("whole").recordings] == ["one"]


def test_simultaneous_rows_have_separate_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7, 9})
    assert accuracy._cores(2, 2) == [(3, 5), (7, 9)] and accuracy._cores(3, 2)[2] == (3, 5)


@pytest.mark.slow
def test_the_file_is_a_program() -> None:
    """From another folder, without PYTHONPATH."""
    run = [sys.executable, "-E", str(ROOT / "bench" / "accuracy.py"), "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, cwd="/", check=True).stdout
    assert "--sets" in shown and "faster-whisper:batched:int8  test-clean" in shown
