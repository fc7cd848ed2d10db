"""`whispercore batch` on this machine: results, the manifest, what is done again, and failures by kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import batch
import pytest
from manifest import Manifest
from outcomes import Failure, Model, Outcome
from progress import BatchProgress
from storage import Folder, Recording, find_recordings, open_place

from tests.unit.doubles import wav
from whispercore.api.request import parse
from whispercore.types import Segment, Transcript

CLIENTS = Path(batch.__file__).parent
FAKE = ("--engine", "fake", "--option", "vad_filter=false", "--quiet")


def lines(output: Path) -> dict[str, dict[str, Any]]:
    """The manifest's lines by recording, of which there is one each."""
    entries = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    by_name = {entry["recording"]: entry for entry in entries}
    assert len(by_name) == len(entries)
    return by_name


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    folder = tmp_path / "talks"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.wav", "b.wav", "deep/a.wav")):
        (folder / name).write_bytes(wav(2, seed=number))
    (folder / ".c.wav").write_bytes(wav(2))  # an upload under way
    (folder / "notes.txt").write_text("no audio")
    return folder


def test_results_and_manifest(talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert batch.main([str(talks), str(out), "--format", "text,srt", *FAKE]) == 0
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    texts = {f"{name}.{form}" for name in ("a.wav", "b.wav", "deep/a.wav") for form in ("txt", "srt")}
    assert names == texts | {"manifest.jsonl", "summary.json"}
    entry = lines(out)["deep/a.wav"]
    status = (talks / "deep" / "a.wav").stat()
    assert (entry["status"], entry["duration"], entry["outputs"]) == ("done", 2.0, ["deep/a.wav.txt", "deep/a.wav.srt"])
    assert (entry["size"], entry["version"]) == (status.st_size, str(status.st_mtime_ns))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["recordings"], summary["done"], summary["failed"], summary["failures"]) == (3, 3, 0, {})


def done_now(out: Path) -> tuple[int, int]:
    summary = json.loads((out / "summary.json").read_text())
    return summary["done"], summary["skipped"]


def test_what_is_done_is_left_out(talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = [str(talks), str(out), "--format", "text", *FAKE]
    assert (batch.main(run), done_now(out)) == (0, (3, 0))
    assert (batch.main(run), done_now(out)) == (0, (0, 3))
    (talks / "b.wav").write_bytes(wav(3, seed=9))
    assert (batch.main(run), done_now(out)) == (0, (1, 2))
    assert lines(out)["b.wav"]["duration"] == 3.0
    (out / "a.wav.txt").unlink()
    assert (batch.main(run), done_now(out)) == (0, (1, 2))
    assert (batch.main([*run, "--language", "de"]), done_now(out)) == (0, (3, 0))
    assert (batch.main([*run, "--language", "de", "--redo"]), done_now(out)) == (0, (3, 0))


def test_a_failure_stops_no_other_and_is_tried_again_by_the_next_run(
    talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (talks / "half.wav").write_bytes(wav(30)[:100_000])
    (talks / "words.mp3").write_text("no sound")
    (talks / "empty.ogg").touch()
    run = [str(talks), str(out), *FAKE]
    assert batch.main(run) == 1
    assert {name: entry.get("error") for name, entry in lines(out).items()} == {
        **dict.fromkeys(("a.wav", "b.wav", "deep/a.wav")),
        **{"half.wav": "truncated", "words.mp3": "unsupported_audio", "empty.ogg": "empty_audio"},
    }
    assert "half.wav: the file is truncated: 3.1 s of 30.0 s: is it still being uploaded?" in capsys.readouterr().err
    assert not (out / "half.wav.json").exists()
    (talks / "half.wav").write_bytes(wav(30))
    assert (batch.main(run), done_now(out)) == (1, (1, 3))
    assert lines(out)["half.wav"]["status"] == "done"


def test_recordings_that_are_cut_off_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "half.wav").write_bytes(wav(30)[:100_000])
    assert batch.main([str(tmp_path / "half.wav"), str(tmp_path / "out"), "--keep-truncated", *FAKE]) == 0
    assert lines(tmp_path / "out")["half.wav"]["warnings"] == ["the file is truncated: 3.1 s of 30.0 s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone", "out"], "error: no such file or folder: gone"),
        (["empty", "out"], "error: no recordings in empty"),
        (["talks", "file/out"], "error: cannot write into"),
        (["bad.jsonl", "out"], 'bad.jsonl, line 1: expected a line as {"audio": "talks/a.mp3"}; got {"sound": 1}'),
        (["talks", "out", "--setting", "thread=1"], "error: unknown setting 'thread'"),
    ],
)
def test_what_cannot_begin_is_one_line(
    arguments: list[str], message: str, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    Path("bad.jsonl").write_text('{"sound": 1}\n')
    assert batch.main([*arguments, *FAKE]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "docx"], "no format docx"),
        (["--format", "json,verbose_json"], "the same file name"),
        (["--option", "beem_size=5"], "did you mean 'beam_size'?"),
        (["--option", "max_line_width=20", "--format", "text"], "max_line_width is for srt and vtt"),
        (["--attempts", "0"], "is not a whole number above 0"),
        (["--part-minutes", "inf"], "is not a number above 0"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        batch.main([str(talks), str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_that_only_some_formats_know(talks: Path, tmp_path: Path) -> None:
    arguments = ["--format", "srt,json,text", "--option", "max_line_width=12", "--option", "token_logprobs=true", *FAKE]
    assert batch.main([str(talks / "a.wav"), str(tmp_path / "out"), *arguments]) == 0
    cues = (tmp_path / "out" / "a.wav.srt").read_text().splitlines()
    assert max(len(line) for line in cues if "-->" not in line) <= 12
    assert "logprobs" in json.loads((tmp_path / "out" / "a.wav.json").read_text())["segments"][0]


def test_engine_ray_is_the_runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "actors", raising=False)
    (tmp_path / "a.wav").write_bytes(wav(1))
    for arguments in (["--engine", "ray"], ["--runner", "ray"]):
        assert batch.main([str(tmp_path), str(tmp_path / "out"), *arguments]) == 1
        assert "--runner ray needs ray: pip install 'whispercore[ray]'" in capsys.readouterr().err


def test_one_run_at_a_time(talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = open_place(str(tmp_path / "out"))
    with batch._locked(place):
        assert batch.main([str(talks), str(tmp_path / "out"), *FAKE]) == 1
    assert "another batch is writing into" in capsys.readouterr().err
    assert batch.main([str(talks), str(tmp_path / "out"), *FAKE]) == 0


# Runners that fail

MODEL = Model("none", False, 51_865)


def outcome(recording: Recording, failure: Failure | None = None) -> Outcome:
    transcript = None if failure else Transcript("word", "en", 1.0, "transcribe", (Segment(0.0, 1.0, " word"),))
    return Outcome(recording, 0.1, transcript, MODEL, failure)


def run(talks: Path, out: Path, runner: batch.Runner, attempts: int = 3) -> dict[str, dict[str, Any]]:
    out.mkdir()
    place = Folder(out)
    manifest = Manifest(place)
    work = batch.Batch(place, manifest, {"text": parse({"body": b"-", "response_format": "text"}, {})}, "-", keep_truncated=False)
    with BatchProgress(3, 1, shown=False) as progress:
        work.run(runner, find_recordings(str(talks)), attempts, progress)
    manifest.close()
    return lines(out)


def test_lost_and_passing_failures_are_tried_again_each_alone(talks: Path, tmp_path: Path) -> None:
    calls: list[tuple[list[str], bool]] = []

    def runner(recordings: Sequence[Recording], alone: bool) -> Iterator[Outcome]:
        calls.append(([recording.name for recording in recordings], alone))
        if len(calls) == 1:
            yield outcome(recordings[0])
            yield outcome(recordings[0])  # of a task that was repeated
            yield outcome(recordings[1], Failure("connection", "the connection broke"))
            return  # the third was lost with its actor
        yield from map(outcome, recordings)

    entries = run(talks, tmp_path / "out", runner)
    assert {entry["status"] for entry in entries.values()} == {"done"} and len(entries) == 3
    assert calls == [(["a.wav", "b.wav", "deep/a.wav"], False), (["b.wav", "deep/a.wav"], True)]


def test_what_is_lost_again_and_again_has_crashed(talks: Path, tmp_path: Path) -> None:
    def runner(recordings: Sequence[Recording], alone: bool) -> Iterator[Outcome]:
        yield from (outcome(recording) for recording in recordings if recording.name != "b.wav")

    entries = run(talks, tmp_path / "out", runner, attempts=2)
    assert entries["b.wav"]["error"] == "crashed" and "ended 2 times" in entries["b.wav"]["message"]
    assert {name for name, entry in entries.items() if entry["status"] == "done"} == {"a.wav", "deep/a.wav"}


def test_a_failure_that_cannot_pass_is_final(talks: Path, tmp_path: Path) -> None:
    calls = []

    def runner(recordings: Sequence[Recording], alone: bool) -> Iterator[Outcome]:
        calls.append(len(recordings))
        yield from (outcome(recording, Failure("unreadable_audio", "broken")) for recording in recordings)

    assert {entry["error"] for entry in run(talks, tmp_path / "out", runner).values()} == {"unreadable_audio"}
    assert calls == [3]


def test_results_that_cannot_be_written(talks: Path, tmp_path: Path) -> None:
    def runner(recordings: Sequence[Recording], alone: bool) -> Iterator[Outcome]:
        (tmp_path / "out" / "b.wav.txt").mkdir()
        yield from (outcome(recording) for recording in recordings)
        yield outcome(replace(recordings[0], name="../a.wav"))

    entries = run(talks, tmp_path / "out", runner)
    assert entries["b.wav"]["error"] == "not_saved" and entries["a.wav"]["status"] == "done"
    assert not list((tmp_path / "out").rglob("*.part"))


# Kills


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Whatever was being written: the next run has every result, once."""
    talks, out = tmp_path / "talks", tmp_path / "out"
    talks.mkdir()
    for number in range(60):
        (talks / f"{number:02}.wav").write_bytes(wav(1, seed=number))
    script = f"""
import functools, sys, time
sys.path.insert(0, {str(CLIENTS)!r})
import batch, environment
from whispercore.engines.fake import FakeEngine
from whispercore.serving.transcriber import Transcriber
batch.prepared_settings = lambda settings: None
batch.Transcriber = lambda settings: Transcriber(engine=FakeEngine(max_batch=2, delay=0.05))
sys.exit(environment.run(batch.main))
"""
    command = [sys.executable, "-c", script, str(talks), str(out), "--format", "text", *FAKE]
    for kill in (signal.SIGKILL, signal.SIGTERM):
        before = len(lines_so_far(out))
        process = subprocess.Popen(command, cwd=CLIENTS.parent, env=os.environ | {"PYTHONPATH": "src"})
        deadline = time.monotonic() + 60
        while len(lines_so_far(out)) < before + 10:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(kill)
        assert process.wait(30) == (130 if kill == signal.SIGTERM else -kill)
    with (out / "manifest.jsonl").open("a") as file:
        file.write('{"recording": "00.wav", "stat')
    assert subprocess.run(command, cwd=CLIENTS.parent, env=os.environ | {"PYTHONPATH": "src"}, check=False).returncode == 0
    assert len(lines(out)) == 60 and {entry["status"] for entry in lines(out).values()} == {"done"}
    assert len(list(out.glob("*.txt"))) == 60
    assert done_now(out)[1] >= 20


def lines_so_far(out: Path) -> list[str]:
    manifest = out / "manifest.jsonl"
    return manifest.read_text().splitlines() if manifest.exists() else []
