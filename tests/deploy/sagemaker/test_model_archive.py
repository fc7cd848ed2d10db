"""model.tar.gz: what is in it, the same bytes for the same inputs, and weights that cannot be are refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from deploy.sagemaker import model_archive
from deploy.sagemaker.failure import DeployError
from deploy.sagemaker.model_archive import ROOT, Form, build, requirements

NANO = ROOT / "whisper-models" / "nano.pt"
FOLDERS = {"hf": ("config.json", "model.safetensors"), "ct2": ("config.json", "model.bin"), "onnx": ("encoder.onnx", "decoder.onnx")}


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return opened.getnames()


def folder(parent: Path, kind: str) -> Path:
    made = parent / f"my-{kind}"
    made.mkdir()
    for name in FOLDERS[kind]:
        (made / name).write_bytes(kind.encode())
    return made


@pytest.mark.parametrize("form", ["pytorch", "huggingface"])
def test_awss_images_get_the_code_and_the_core(tmp_path: Path, form: Form) -> None:
    size = build(NANO, tmp_path / "model.tar.gz", form)
    assert size == (tmp_path / "model.tar.gz").stat().st_size
    packed = set(names(tmp_path / "model.tar.gz"))
    expected = {
        "nano.pt",
        "code/inference.py",
        "code/requirements.txt",
        "code/whispercore/__init__.py",
        "code/whisper/assets/mel_filters.npz",
    }
    assert expected <= packed
    assert not [name for name in packed if "__pycache__" in name or name.endswith(".pyc")]


def test_our_own_image_gets_weights_only(tmp_path: Path) -> None:
    build(NANO, tmp_path / "model.tar.gz", "container")
    assert names(tmp_path / "model.tar.gz") == ["nano.pt"]


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_weights(tmp_path: Path, kind: str) -> None:
    weights = folder(tmp_path, kind)
    (weights / ".cache").mkdir()
    (weights / ".cache" / "lock").write_bytes(b"")
    build(weights, tmp_path / "model.tar.gz", "container")
    assert names(tmp_path / "model.tar.gz") == sorted(f"{weights.name}/{name}" for name in FOLDERS[kind])


def test_links_are_packed_as_what_they_point_to(tmp_path: Path) -> None:
    """The Hub's cache holds links."""
    weights, blob = folder(tmp_path, "hf"), tmp_path / "blob"
    (weights / "model.safetensors").rename(blob)
    (weights / "model.safetensors").symlink_to(blob)
    build(weights, tmp_path / "model.tar.gz", "container")
    with tarfile.open(tmp_path / "model.tar.gz") as opened:
        member = opened.extractfile(f"{weights.name}/model.safetensors")
        assert member and member.read() == b"hf"


def test_the_same_inputs_are_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the times and the modes of the files are."""
    digests = set()
    for number, mode in enumerate((0o600, 0o755)):
        (tmp_path / str(number)).mkdir()
        weights = folder(tmp_path / str(number), "ct2")
        for path in weights.iterdir():
            path.chmod(mode)
            os.utime(path, (number, number))
        build(weights, tmp_path / f"{number}.tar.gz", "pytorch")
        digests.add(hashlib.sha256((tmp_path / f"{number}.tar.gz").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_requirements_are_the_cores_without_what_aws_has() -> None:
    listed = requirements().splitlines()
    assert {"ctranslate2>=4.6,<5", "pyyaml>=6"} <= set(listed)
    assert not [line for line in listed if line.startswith(("torch", "openai-whisper", "#"))]


@pytest.mark.slow
def test_the_packed_code_imports_without_this_checkout(tmp_path: Path) -> None:
    """With the packed openai-whisper too, in place of an installed one."""
    build(NANO, tmp_path / "model.tar.gz", "pytorch")
    with tarfile.open(tmp_path / "model.tar.gz") as opened:
        opened.extractall(tmp_path, filter="data")
    program = "import inference, whisper, whispercore; print(whisper.__file__, whispercore.__file__, sep='\\n')"
    code = tmp_path / "code"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")} | {"PYTHONPATH": str(code)}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(Path(line).is_relative_to(code) for line in printed.stdout.splitlines())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("base.pt", b"PK\x03\x04 cut short", "is no checkpoint, or is cut short: fetch it again"),
        ("model.bin", b"x", "neither a .pt file nor a folder: name the folder"),
        ("nothing.pt", None, "no weights at .*: python3 clients/download_model.py NAME"),
    ],
)
def test_weights_that_cannot_be(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DeployError, match=message):
        build(tmp_path / name, tmp_path / "model.tar.gz", "container")
    assert not list(tmp_path.glob("*model.tar.gz*"))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeployError, match="is no folder of weights"):
        build(tmp_path / "empty", tmp_path / "model.tar.gz", "container")


def test_an_archive_that_breaks_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model.tar.gz"
    output.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_archive, "_add", full)
    with pytest.raises(DeployError, match=r"cannot be written .No space left on device"):
        build(NANO, output, "container")
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar.gz"] and output.read_bytes() == b"old"


@pytest.mark.parametrize("version", ["20240930", None])
def test_another_openai_whisper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    class Package:
        def __init__(self, name: str) -> None:
            if version is None:
                raise PackageNotFoundError(name)
            self.version = version

    monkeypatch.setattr(model_archive, "distribution", Package)
    with pytest.raises(DeployError, match=r"needs openai-whisper==.*, here is .*: run this with serve.sh's Python"):
        build(NANO, tmp_path / "model.tar.gz", "pytorch")
