"""Checkpoints are found by path and by name; a conversion has a folder that its content names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import whisper

from tests.unit.checkpoints.doubles import SMALL
from whispercore import checkpoints
from whispercore.checkpoints import (
    choose_model,
    locate,
    locations,
    write_random,
)
from whispercore.checkpoints.locations import FILES
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings


def test_a_name_and_a_path_are_the_same_checkpoint(settings: Settings, small: Path) -> None:
    assert locate(settings) == small
    assert locate(replace(settings, model=str(small))) == small


@pytest.mark.parametrize(("name", "file"), [("turbo", "large-v3-turbo.pt"), ("large", "large-v3.pt"), ("base.en", "base.en.pt")])
def test_openai_names_are_the_files_that_openai_serves(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    assert locate(Settings(model=name, models_dir=str(tmp_path))) == tmp_path / file
    assert whisper._MODELS[name].endswith(f"/{file}")


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("my-tuned.en", "my-tuned.en", ["config.json", "model.safetensors"]),
        ("my-converted", "my-converted", ["config.json", "model.bin"]),
        ("someone/my-tuned", "someone/my-tuned", ["config.json", "model.safetensors"]),
        ("distil-large-v3", "Systran/faster-distil-whisper-large-v3", ["config.json", "model.bin"]),
        ("large-v3", "Systran/faster-whisper-large-v3", ["model.bin"]),
        ("turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo", ["model.bin"]),
        ("graphs", "graphs", ["encoder.onnx", "decoder.onnx"]),
    ],
)
def test_folders_are_found_by_name(tmp_path: Path, name: str, folder: str, files: list[str]) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)
    for file in files:
        (path / file).write_bytes(b"x")
    assert locate(Settings(model=name, models_dir=str(tmp_path))) == path
    assert locate(Settings(model=folder, models_dir=str(tmp_path))) == path
    assert locate(Settings(model=str(path), models_dir="elsewhere")) == path
    (tmp_path / f"{FILES.get(name, Path(name).name)}.pt").write_bytes(b"x")
    if "/" not in name:
        assert locate(Settings(model=name, models_dir=str(tmp_path))).suffix == ".pt"
    with pytest.raises(ConfigurationError, match=rf"no checkpoint at .*; in {tmp_path}: .*{folder}.*"):
        locate(Settings(model="none", models_dir=str(tmp_path)))


@pytest.mark.parametrize(
    "files", [["tuned.pt"], ["tuned/model.safetensors", "tuned/config.json"], ["tuned/model.bin"], ["tuned/decoder.onnx"]]
)
def test_a_folder_that_holds_one_checkpoint_is_that_checkpoint(tmp_path: Path, files: list[str]) -> None:
    """As SageMaker and others unpack a model. Scripts beside it do not count."""
    for file in [*files, "code/inference.py", "notes.txt"]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    settings = choose_model(Settings(model=str(tmp_path)))
    assert settings.model_id == "tuned"
    assert locate(Settings(model=str(tmp_path))) == tmp_path / Path(files[0]).parts[0]


def test_a_folder_that_holds_several_checkpoints_or_none_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=r"no checkpoint in .*, which holds weights.bin: a checkpoint is a .pt file or a folder"):
        locate(Settings(model=str(tmp_path)))
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=r"holds several checkpoints: a.pt, b.pt; set WHISPER_MODEL to the path of one"):
        locate(Settings(model=str(tmp_path)))
    assert locate(Settings(model=str(tmp_path / "b.pt"))) == tmp_path / "b.pt"


def test_a_missing_model_says_what_there_is_and_how_to_get_it(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match=r"large-v3-turbo\.pt.*: small-random; get it: python3 clients/download_model\.py turbo"):
        locate(replace(settings, model="turbo"))
    with pytest.raises(ConfigurationError, match=r"get it: python3 clients/download_model\.py distil-large-v3$"):
        locate(replace(settings, model="distil-large-v3"))
    with pytest.raises(ConfigurationError, match=r"small-random$"):
        locate(replace(settings, model="my-own"))


def test_auto_takes_base_where_it_is_and_the_bundled_model_else(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "choose_device", lambda settings: settings.dtype if settings.dtype == "cuda" else "cpu")
    auto = Settings(models_dir=str(tmp_path))
    gpu = replace(auto, dtype="cuda")
    assert auto.model == "auto"
    assert [choose_model(one).model for one in (auto, gpu)] == ["nano", "nano"]
    (tmp_path / "base.pt").symlink_to(small)
    assert [choose_model(one).model for one in (auto, gpu)] == ["base", "base"]
    assert locate(auto) == tmp_path / "base.pt"
    (tmp_path / "large-v3-turbo").mkdir()
    assert choose_model(gpu).model == "base", "an empty folder is no checkpoint"
    (tmp_path / "large-v3-turbo.pt").symlink_to(small)
    assert [choose_model(one).model for one in (auto, gpu)] == ["base", "large-v3-turbo"]
    assert choose_model(replace(gpu, model="nano")).model == "nano"
    assert choose_model(replace(auto, engine="fake")).model == choose_model(auto, look=False).model == "nano"


def test_another_checkpoint_of_the_same_name_is_another_folder(settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "small-random.pt"
    write_random(SMALL, other, seed=1)
    first = checkpoints.converted_folder(settings, locate(settings), "int8")
    assert first != checkpoints.converted_folder(settings, other, "int8")
