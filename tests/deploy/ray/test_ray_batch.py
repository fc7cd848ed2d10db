"""Batches by Ray on this machine, in a network of their own: actors killed in mid-run, poison, long recordings, S3."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.doubles import wav

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("paced_batch.py")
PATIENCE = 300.0
PLAIN = ("--option", "vad_filter=false")
ENGINE = ("--engine", "ray", "--actors", "3", "--cpus-per-actor", "1", *PLAIN)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: pip install -r requirements-ray.txt"),
]


def isolated() -> list[str]:
    """What runs a command without a network: Ray's workers listen on all addresses. Nothing where that is not allowed."""
    command = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return [*command, "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    return []


@contextmanager
def started(*command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command, its output in one pipe, with all its descendants ended afterwards."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | variables
    process = subprocess.Popen(
        [*isolated(), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        for descendant in [*descendants(process.pid), process.pid]:
            try:
                os.kill(descendant, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


def descendants(ancestor: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [ancestor]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def workers(ancestor: int) -> list[int]:
    """The processes of the actors."""

    def title(process: int) -> str:
        try:
            return Path(f"/proc/{process}/cmdline").read_text()
        except OSError:
            return ""

    return [process for process in descendants(ancestor) if "ray::MapWorker" in title(process)]


def batch(delay: float, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    with started(sys.executable, str(SCRIPT), str(delay), *map(str, arguments)) as process:
        output, _ = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, output)


def lines(output: Path) -> list[dict[str, Any]]:
    manifest = output / "manifest.jsonl"
    return [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []


def wait_for(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the manifest has that many lines."""
    deadline = time.monotonic() + PATIENCE
    while len(lines(output)) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 recordings of a second, in folders."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(500):
        path = folder / f"day {number % 5}" / f"{number:03}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(wav(1, seed=number))
    return folder


def test_an_actor_killed_in_mid_run_loses_nothing_and_doubles_nothing(recordings: Path, tmp_path: Path) -> None:
    with started(sys.executable, str(SCRIPT), "0.1", str(recordings), str(tmp_path), "--format", "text", *ENGINE) as process:
        wait_for(tmp_path, 50, process)
        victims = workers(process.pid)
        assert len(victims) == 3
        os.kill(victims[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    entries = lines(tmp_path)
    names = {path.relative_to(recordings).as_posix() for path in recordings.rglob("*.wav")}
    assert len(entries) == 500 and {entry["recording"] for entry in entries} == names
    assert {entry["status"] for entry in entries} == {"done"}
    texts = {path.relative_to(tmp_path).as_posix().removesuffix(".txt"): path.read_text() for path in tmp_path.rglob("*.txt")}
    assert set(texts) == names and all(texts.values())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["done"], summary["failed"], summary["skipped"]) == (500, 0, 0)


def test_a_run_that_was_killed_goes_on(recordings: Path, tmp_path: Path) -> None:
    arguments = (str(recordings / "day 1"), str(tmp_path), "--format", "text", *ENGINE)
    with started(sys.executable, str(SCRIPT), "0.3", *arguments) as process:
        wait_for(tmp_path, 10, process)
    done_before = len(lines(tmp_path))
    assert 10 <= done_before < 100
    (tmp_path / "manifest.jsonl").open("a").write('{"recording": "day 1/torn')  # as by a kill in the middle of a line
    done = batch(0.0, *arguments)
    assert done.returncode == 0, done.stdout
    assert f"100 recordings, {done_before} done before, {100 - done_before} to do" in done.stdout
    assert len(lines(tmp_path)) == 100


def test_a_recording_that_ends_its_process_fails_alone(recordings: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        shutil.copy(recordings / "day 0" / "000.wav", tmp_path / name)
    (tmp_path / "poison.wav").write_bytes(wav(7_777 / 16_000))
    done = batch(0.0, tmp_path, tmp_path / "out", "--attempts", "2", *ENGINE)
    assert done.returncode == 1, done.stdout
    by_name = {entry["recording"]: entry for entry in lines(tmp_path / "out")}
    assert {name: entry["status"] for name, entry in by_name.items()} == {
        "a.wav": "done",
        "b.wav": "done",
        "c.wav": "done",
        "poison.wav": "failed",
    }
    assert by_name["poison.wav"]["error"] == "crashed" and "ended 2 times" in by_name["poison.wav"]["message"]


def test_a_long_recording_is_split_and_joined_without_a_change(tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_bytes(wav(1000, seed=1))
    (tmp_path / "short.wav").write_bytes(wav(20, seed=2))
    split = batch(0.0, tmp_path, tmp_path / "split", "--part-minutes", "2", *ENGINE)
    whole = batch(0.0, tmp_path, tmp_path / "whole", "--part-minutes", "60", *ENGINE)
    assert split.returncode == whole.returncode == 0, split.stdout + whole.stdout
    for name in ("long.wav.json", "short.wav.json"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_bad_input_fails_by_kind(tmp_path: Path) -> None:
    (tmp_path / "good.wav").write_bytes(wav(1))
    (tmp_path / "half.wav").write_bytes(wav(30)[:100_000])
    (tmp_path / "words.mp3").write_text("no sound")
    (tmp_path / "list.txt").write_text("good.wav\nhalf.wav\nwords.mp3\ngone.wav\n")
    done = batch(0.0, tmp_path / "list.txt", tmp_path / "out", *ENGINE)
    assert done.returncode == 1, done.stdout
    assert {entry["recording"]: entry.get("error") for entry in lines(tmp_path / "out")} == {
        "good.wav": None,
        "half.wav": "truncated",
        "words.mp3": "unsupported_audio",
        "gone.wav": "missing",
    }
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failures"] == {
        "truncated": 1,
        "unsupported_audio": 1,
        "missing": 1,
    }


def test_more_than_the_cluster_has_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1))
    done = batch(0.0, tmp_path, tmp_path / "out", "--runner", "ray", "--gpus-per-actor", "1000")
    assert done.returncode == 1
    assert "error: an actor needs 1000 GPU, the cluster has 0: see --cpus-per-actor and --gpus-per-actor" in done.stdout
