"""Settings: defaults, then YAML, then the environment."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from whispercore.errors import ConfigurationError
from whispercore.settings import Settings


def test_environment_wins_over_yaml_over_defaults() -> None:
    section = {"model": "base", "batch_size": 8}
    settings = Settings.load(section, {"WHISPER_MODEL": "large-v3", "WHISPER_MAX_AUDIO_SECONDS": "60", "OTHER": "1"})
    assert (settings.model, settings.batch_size, settings.max_audio_seconds) == ("large-v3", 8, 60.0)
    assert settings.engine == Settings().engine


def test_an_empty_variable_changes_nothing() -> None:
    assert Settings.load({}, {"WHISPER_MODEL": ""}) == Settings() == Settings.load(None, {})


def test_every_setting_can_come_from_the_environment_and_is_documented() -> None:
    for item in fields(Settings):
        settings = Settings.load({}, {f"WHISPER_{item.name.upper()}": str(item.default)})
        assert getattr(settings, item.name) == item.default
        assert type(getattr(settings, item.name)) is type(item.default)
        assert item.metadata["doc"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modle", "base"),
        ("engine", "tensorrt"),
        ("device", "tpu"),
        ("threads", "many"),
        ("threads", -1),
        ("threads", 1.5),
        ("threads", True),
        ("readers", -1),
        ("compile", "perhaps"),
        ("compile", 1),
        ("compile", None),
        ("model", None),
        ("model", ["a"]),
        ("max_audio_seconds", "nan"),
        ("max_audio_bytes", float("inf")),
    ],
)
def test_unknown_names_and_bad_values(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        Settings.load({name: value}, {})
    assert caught.value.param == name


def test_a_switch_is_true_or_false() -> None:
    assert Settings.load({"compile": True}, {}).compile is True
    assert Settings.load({"compile": True}, {"WHISPER_COMPILE": "False"}).compile is False
    assert Settings.load({}, {"WHISPER_COMPILE": "true"}).compile is True


def test_bad_variable() -> None:
    with pytest.raises(ConfigurationError, match="batch_size"):
        Settings.load({}, {"WHISPER_BATCH_SIZE": "big"})


def test_models_path_expands_home() -> None:
    assert Settings(models_dir="~/models").models_path == Path.home() / "models"


@pytest.mark.parametrize(
    ("model", "name"), [("nano", "nano"), ("/opt/models/large-v3.pt", "large-v3"), ("folder/whisper-small/", "whisper-small")]
)
def test_clients_call_the_model_by_its_name(model: str, name: str) -> None:
    assert Settings(model=model).model_id == name
