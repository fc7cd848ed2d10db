"""whisper.mar holds the handler, its configuration, the whole core and nothing else, also when several builds run at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path("model-archiver") / "create_model_archive.sh"
LARGEST = 3_000_000


def start(root: Path, store: Path, *folders: Path, **variables: str) -> subprocess.Popen[str]:
    """Start the script. Programs in `folders` are found before those of the tests' own environment."""
    path = ":".join(map(str, (*folders, Path(sys.executable).parent, os.environ["PATH"])))
    return subprocess.Popen([root / SCRIPT, store], env=os.environ | {"PATH": path} | variables, stderr=subprocess.PIPE, text=True)


def build(root: Path, store: Path) -> None:
    with start(root, store) as building:
        assert building.wait() == 0, building.stderr and building.stderr.read()


def checkout(folder: Path) -> Path:
    """A copy of what the archive is built from."""
    for name in ("src", "handler", "config", "model-archiver"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def names(archive: zipfile.ZipFile) -> set[str]:
    """The files in an archive."""
    return {info.filename for info in archive.infolist() if not info.is_dir()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    build(ROOT, folder)
    return folder


@pytest.fixture
def archive(store: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(store / "whisper.mar")


def test_it_holds_the_code_and_nothing_else(archive: zipfile.ZipFile) -> None:
    core, kinds = ROOT / "src", (".py", ".typed", ".onnx")
    modules = {str(path.relative_to(core)) for path in (core / "whispercore").rglob("*") if path.is_file() and path.suffix in kinds}
    modules.add("whispercore/audio/silero_vad_v6/LICENSE")
    assert names(archive) == modules | {"whisper_handler.py", "model-config.yaml", "MAR-INF/MANIFEST.json"}
    assert sum(info.file_size for info in archive.infolist()) < LARGEST, "Whisper's weights stay outside the archive"


def test_it_is_what_the_checkout_has(archive: zipfile.ZipFile) -> None:
    assert archive.read("whisper_handler.py") == (ROOT / "handler" / "whisper_handler.py").read_bytes()
    assert archive.read("model-config.yaml") == (ROOT / "config" / "model-config.yaml").read_bytes()
    assert archive.read("whispercore/torchserve/mailbox.py") == (ROOT / "src" / "whispercore" / "torchserve" / "mailbox.py").read_bytes()


def test_the_manifest_names_the_handler_and_the_version_of_the_paths(archive: zipfile.ZipFile) -> None:
    model = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
    assert model == {"modelName": "whisper", "handler": "whisper_handler.py", "modelVersion": "1.0", "configFile": "model-config.yaml"}


def test_torchserve_runs_one_worker_that_batches_continuously(archive: zipfile.ZipFile) -> None:
    config = yaml.safe_load(archive.read("model-config.yaml"))
    assert (config["minWorkers"], config["maxWorkers"], config["continuousBatching"]) == (1, 1, True)


def test_the_core_runs_from_the_archive_alone(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    archive.extractall(tmp_path)
    code = "import whispercore, whispercore.torchserve.mailbox; print(whispercore.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(printed.strip()).is_relative_to(tmp_path)


def test_it_is_built_again_when_a_source_changes_and_only_then(tmp_path: Path) -> None:
    root, store = checkout(tmp_path / "root"), tmp_path / "store"
    build(root, store)
    first = (store / "whisper.mar").stat().st_mtime_ns
    build(root, store)
    assert (store / "whisper.mar").stat().st_mtime_ns == first
    (root / "src" / "whispercore" / "types.py").open("a").write("# changed\n")
    build(root, store)
    assert b"# changed" in zipfile.ZipFile(store / "whisper.mar").read("whispercore/types.py")


def test_builds_at_once_do_not_disturb_each_other(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    """Into folders of their own, and two from different sources into the same folder, whose stamp is that of the last archive."""
    changed, stores = checkout(tmp_path / "changed"), [tmp_path / name for name in ("one", "two", "shared")]
    (changed / "src" / "whispercore" / "types.py").open("a").write("# changed\n")
    pairs = [*((ROOT, store) for store in stores), (changed, stores[2])]
    builds = [start(root, store, TMPDIR=str(tmp_path)) for root, store in pairs]
    errors = [building.communicate()[1] for building in builds]
    assert [building.returncode for building in builds] == [0] * len(builds), errors
    for store in stores:
        built = zipfile.ZipFile(store / "whisper.mar")
        assert names(built) == names(archive)
        assert {path.name for path in store.iterdir()} == {"whisper.mar", "whisper.mar.sources"}
    stamped = [(stores[2] / "whisper.mar.sources").read_text() == (stores[0] / "whisper.mar.sources").read_text()]
    assert [b"# changed" not in built.read("whispercore/types.py")] == stamped


def test_a_file_planted_in_the_shared_temporary_folder_stays_out(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    """torch-model-archiver collects the files in $TMPDIR/whisper, where other users can write."""
    shared = tmp_path / "shared"
    with start(ROOT, tmp_path / "store", TMPDIR=str(shared)) as building:
        while building.poll() is None:
            (shared / "whisper").mkdir(parents=True, exist_ok=True)
            (shared / "whisper" / "planted.py").touch()
            time.sleep(0.001)
    assert building.returncode == 0
    assert names(zipfile.ZipFile(tmp_path / "store" / "whisper.mar")) == names(archive)
    assert [path.name for path in shared.rglob("*.py")] == ["planted.py"], "the folder is not touched"


def drop(archive: zipfile.ZipFile, name: str, into: Path) -> None:
    """Write the archive without one file."""
    with zipfile.ZipFile(into, "w") as copy:
        for info in archive.infolist():
            if info.filename != name:
                copy.writestr(info, archive.read(info))


def change(archive: zipfile.ZipFile, name: str, into: Path) -> None:
    """Write the archive with other contents in one file, or with that file added."""
    drop(archive, name, into)
    with zipfile.ZipFile(into, "a") as copy:
        copy.writestr(name, "other contents")


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (drop, "whispercore/types.py"),
        (drop, "whisper_handler.py"),
        (drop, "MAR-INF/MANIFEST.json"),
        (change, "model-config.yaml"),
        (change, "planted.py"),
    ],
)
def test_an_archive_that_is_not_complete_is_refused(
    archive: zipfile.ZipFile, tmp_path: Path, spoil: Callable[[zipfile.ZipFile, str, Path], None], name: str
) -> None:
    """The earlier archive stays, and is not taken for the new one."""
    spoil(archive, name, tmp_path / "spoilt.mar")
    archiver = tmp_path / "bin" / "torch-model-archiver"
    archiver.parent.mkdir()
    archiver.write_text(f'#!/bin/sh\nwhile [ "$1" != --export-path ]; do shift; done\ncp {tmp_path}/spoilt.mar "$2/whisper.mar"\n')
    archiver.chmod(0o755)
    earlier = tmp_path / "store"
    earlier.mkdir()
    (earlier / "whisper.mar").write_text("an earlier archive")
    (earlier / "whisper.mar.sources").write_text("earlier sources")
    building = start(ROOT, earlier, archiver.parent)
    error = building.communicate()[1]
    assert building.returncode == 1
    (line,) = error.splitlines()
    assert line.startswith("create_model_archive.sh: the new archive lacks these files, or has others in their place, ") and name in line
    assert {path.name: path.read_text() for path in earlier.iterdir()} == {
        "whisper.mar": "an earlier archive",
        "whisper.mar.sources": "earlier sources",
    }
