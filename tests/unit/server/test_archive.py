"""What is in whisper.mar: the handler, its configuration, the whole core, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path("model-archiver") / "create_model_archive.sh"
LARGEST = 1_000_000


def build(root: Path, store: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([root / SCRIPT, store], check=True, env=os.environ | {"PATH": path})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    build(ROOT, folder)
    return folder


@pytest.fixture
def archive(store: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(store / "whisper.mar")


def test_it_holds_the_code_and_nothing_else(archive: zipfile.ZipFile) -> None:
    core = ROOT / "src"
    modules = {
        str(path.relative_to(core)) for path in (core / "whispercore").rglob("*") if path.is_file() and path.suffix in (".py", ".typed")
    }
    names = {info.filename for info in archive.infolist() if not info.is_dir()}
    assert names == modules | {"whisper_handler.py", "model-config.yaml", "MAR-INF/MANIFEST.json"}
    assert sum(info.file_size for info in archive.infolist()) < LARGEST, "weights stay outside the archive"


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
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(tmp_path)


def test_it_is_built_again_when_a_source_changes_and_only_then(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    for folder in ("src", "handler", "config", "model-archiver"):
        shutil.copytree(ROOT / folder, root / folder)
    build(root, store)
    first = (store / "whisper.mar").stat().st_mtime_ns
    build(root, store)
    assert (store / "whisper.mar").stat().st_mtime_ns == first
    (root / "src" / "whispercore" / "types.py").open("a").write("# changed\n")
    build(root, store)
    assert b"# changed" in zipfile.ZipFile(store / "whisper.mar").read("whispercore/types.py")
