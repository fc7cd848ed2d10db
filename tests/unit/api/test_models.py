"""Model names, the list of models, and the warnings about the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from whispercore.api.models import DEMONSTRATION, ServedModel, is_served, remarks, render_models
from whispercore.checkpoints import is_demonstration, sha256
from whispercore.checkpoints.locations import NANO_SHA256
from whispercore.errors import NotFound
from whispercore.settings import Settings

MODELS = Path(__file__).resolve().parents[3] / "whisper-models"
NANO = MODELS / "nano.pt"


@pytest.mark.parametrize(
    ("requested", "served"),
    [
        *((name, "base") for name in ("base", "BASE", "whisper-base", "openai/whisper-base", "Systran/faster-whisper-base", "base.pt")),
        *((name, "large-v3-turbo") for name in ("turbo", "openai/whisper-large-v3-turbo", "deepdml/faster-whisper-large-v3-turbo-ct2")),
        *((name, "faster-whisper-tiny.en") for name in ("tiny.en", "openai/whisper-tiny.en", "faster-whisper-tiny.en")),
        ("large", "large-v3"),
        ("distil-whisper/distil-large-v3", "faster-distil-whisper-large-v3"),
        ("mine", "mine"),
        *((name, "base") for name in ("", "whisper-1", "whisper", "gpt-4o-transcribe", "gpt-4o-mini-transcribe-2025-12-15")),
        ("gpt-4o-transcribe-diarize", "base"),
    ],
)
def test_names_of_the_served_model(requested: str, served: str) -> None:
    assert is_served(requested, served)
    assert remarks(requested, served, demonstration=False) == ()


@pytest.mark.parametrize(
    ("requested", "served"), [("large-v3", "nano"), ("base.en", "base"), ("openai/whisper-tiny", "base"), ("gpt-5", "base")]
)
def test_a_warning_names_another_model(requested: str, served: str) -> None:
    [remark] = remarks(requested, served, demonstration=False)
    assert requested in remark and served in remark


def test_the_warning_of_the_demonstration_model() -> None:
    assert remarks("nano", "nano", demonstration=True) == (DEMONSTRATION,)
    assert len(remarks("large-v3", "nano", demonstration=True)) == 2
    assert "clients/download_model.py base" in DEMONSTRATION and "./serve.sh" in DEMONSTRATION


def test_the_demonstration_model_is_recognised_by_its_content(tmp_path: Path) -> None:
    assert sha256(NANO) == NANO_SHA256, "nano.pt has changed: put its hash and its size into checkpoints/locations.py"
    assert is_demonstration(Settings(model="nano", models_dir=str(MODELS)))
    shutil.copy(NANO, tmp_path / "renamed.pt")
    assert is_demonstration(Settings(model=str(tmp_path / "renamed.pt")))
    (tmp_path / "nano.pt").write_bytes(b"another model")
    assert not is_demonstration(Settings(model=str(tmp_path / "nano.pt")))


@pytest.mark.parametrize(("name", "expected"), [("nano", True), ("nano-1a1c51c651b5-int8", True), ("nanotech", False), ("base", False)])
def test_a_converted_folder_is_recognised_by_its_name(tmp_path: Path, name: str, expected: bool) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in ("model.bin", "config.json", "vocabulary.json"):
        (folder / file).touch()
    assert is_demonstration(Settings(model=str(folder))) == expected


def test_the_list_of_models() -> None:
    models = json.loads(render_models([ServedModel("nano"), ServedModel("base", loaded=False)], max_audio_bytes=1000).payload)
    assert models["object"] == "list"
    fields = {"id", "object", "created", "owned_by", "loaded", "max_audio_bytes"}
    assert [(model["id"], model["loaded"], set(model)) for model in models["data"]] == [("nano", True, fields), ("base", False, fields)]
    demonstration = json.loads(render_models([ServedModel("nano", warnings=("a demonstration",))], max_audio_bytes=1000).payload)
    assert demonstration["data"][0]["warnings"] == ["a demonstration"]


def test_one_model_of_the_list() -> None:
    served = [ServedModel("base"), ServedModel("tiny.en")]
    for requested, name in (("openai/whisper-tiny.en", "tiny.en"), ("base", "base"), ("whisper-1", "base")):
        model = json.loads(render_models(served, requested, max_audio_bytes=1000).payload)
        assert (model["id"], model["max_audio_bytes"]) == (name, 1000)
    with pytest.raises(NotFound, match=r"there is: base, tiny\.en"):
        render_models(served, "large-v3", max_audio_bytes=1000)
