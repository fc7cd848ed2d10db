"""Batches by Ray on this machine, in a network of their own: actors killed in mid-run, poison, long recordings, S3."""

from __future__ import annotations

import importlib
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
CLIENTS = ROOT / "clients"
POISON_SECONDS = 7_777 / 16_000
"""See paced_batch.py."""
SCRIPT = Path(__file__).with_name("paced_batch.py")
PATIENCE = 300.0
PLAIN = ("--option", "vad_filter=false")
ENGINE = ("--engine", "ray", "--actors", "3", "--cpus-per-actor", "1", *PLAIN)

pytestmark = [
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


def batch(delay: float, *arguments: str | Path, lose_node_at: int = 0) -> subprocess.CompletedProcess[str]:
    with started(sys.executable, str(SCRIPT), str(delay), str(lose_node_at), *map(str, arguments)) as process:
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


@pytest.mark.slow
def test_an_actor_killed_in_mid_run_loses_nothing_and_doubles_nothing(recordings: Path, tmp_path: Path) -> None:
    with started(sys.executable, str(SCRIPT), "0.1", "0", str(recordings), str(tmp_path), "--format", "text", *ENGINE) as process:
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


@pytest.mark.slow
def test_long_recordings_poison_and_bad_input(tmp_path: Path) -> None:
    """The long one is split and joined without a change; each of the others fails by itself."""
    talks = tmp_path / "talks"
    talks.mkdir()
    for number, (name, seconds) in enumerate({"long.wav": 1000, "short.wav": 20, "a.wav": 1, "poison.wav": POISON_SECONDS}.items()):
        (talks / name).write_bytes(wav(seconds, seed=number))
    (talks / "half.wav").write_bytes(wav(30)[:100_000])
    (talks / "words.mp3").write_text("no sound")
    (talks / "list.txt").write_text("\n".join(["gone.wav", *(path.name for path in talks.iterdir())]))
    done = batch(0.0, talks / "list.txt", tmp_path / "out", "--part-minutes", "2", "--attempts", "2", *ENGINE)
    assert done.returncode == 1, done.stdout
    entries = {entry["recording"]: entry for entry in lines(tmp_path / "out")}
    assert {name: entry.get("error") for name, entry in entries.items()} == {
        **dict.fromkeys(("long.wav", "short.wav", "a.wav")),
        **{"half.wav": "truncated", "words.mp3": "unsupported_audio", "gone.wav": "missing", "poison.wav": "crashed"},
    }
    assert "ended 2 times" in entries["poison.wav"]["message"]
    whole = [sys.executable, str(CLIENTS / "batch.py"), str(talks / "long.wav"), str(tmp_path / "whole"), "--engine", "fake", *PLAIN]
    assert subprocess.run(whole, check=False).returncode == 0
    assert (tmp_path / "out" / "long.wav.json").read_bytes() == (tmp_path / "whole" / "long.wav.json").read_bytes()


@pytest.mark.slow
def test_a_lost_node_loses_nothing(recordings: Path, tmp_path: Path) -> None:
    arguments = (recordings / "day 0", tmp_path, "--format", "text", "--engine", "ray", "--actors", "2", "--cpus-per-actor", "1", *PLAIN)
    done = batch(0.5, *arguments, lose_node_at=10)
    assert done.returncode == 0, done.stdout
    assert "a node is taken away" in done.stdout
    entries = lines(tmp_path)
    assert len(entries) == len({entry["recording"] for entry in entries}) == 100
    assert {entry["status"] for entry in entries} == {"done"}


@pytest.mark.slow
def test_the_gateways_application_by_ray_serve() -> None:
    with started(sys.executable, str(Path(__file__).with_name("serve_once.py")), WHISPER_ENGINE="fake") as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    replies = json.loads(next(line for line in said.splitlines() if line.startswith('{"ready"')))
    assert replies["ready"] == 200
    assert replies["good"][0] == 200 and replies["good"][1]["text"]
    assert replies["bad"][0] == 415 and replies["bad"][1]["error"]["code"] == "unsupported_audio"


@pytest.mark.parametrize(
    ("asked", "there", "pool"),
    [
        ({}, [{"CPU": 16.0}], (4, {"num_cpus": 4.0})),
        ({}, [{"CPU": 2.0}], (1, {"num_cpus": 2.0})),
        ({}, [{"CPU": 6.0}, {"CPU": 6.0}, {}], (2, {"num_cpus": 4.0})),
        ({"cpus": 1}, [{"CPU": 2.0}], (2, {"num_cpus": 1.0})),
        ({"actors": 8}, [{"CPU": 16.0}], (8, {"num_cpus": 2})),
        ({"actors": 3}, [{"CPU": 2.0}], (3, {"num_cpus": 0.666})),
        ({}, [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0}], (8, {"num_gpus": 1.0})),
        ({"gpus": 0.5, "actors": 3}, [{"CPU": 64.0, "GPU": 8.0}], (3, {"num_gpus": 0.5})),
        ({"gpus": 0}, [{"CPU": 8.0, "GPU": 8.0}], (2, {"num_cpus": 4.0})),
        ({"cpus": 4}, [{"CPU": 2.0}, {"CPU": 2.0}], "an actor needs 4 CPU, the largest node has 2"),
        ({"gpus": 2}, [{"CPU": 2.0, "GPU": 1.0}], "an actor needs 2 GPU, the largest node has 1"),
    ],
)
def test_actors_take_what_the_cluster_has(
    asked: dict[str, Any], there: list[dict[str, float]], pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CLIENTS))
    actors = importlib.import_module("actors")
    lost = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    monkeypatch.setattr(actors.ray, "nodes", lambda: [lost, *({"Alive": True, "Resources": resources} for resources in there)])
    if isinstance(pool, str):
        with pytest.raises(importlib.import_module("failures").RequestFailed, match=pool):
            actors.Cluster(**asked).pool()
    else:
        assert actors.Cluster(**asked).pool() == pool
