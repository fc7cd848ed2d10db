"""Settings: defaults, then YAML, then the environment."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from whispercore.errors import ConfigurationError
from whispercore.settings import SettingKeywords, Settings, unknown_variables


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


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WHISPER_MODLE", "WHISPER_MODEL"),
        ("WHISPER_MODE", "WHISPER_MODEL"),
        ("whisper_model", "WHISPER_MODEL"),
        ("WISPER_MODEL", "WHISPER_MODEL"),
        ("WHISPER_MODEL_DIR", "WHISPER_MODELS_DIR"),
        ("WHISPER_ENGIN", "WHISPER_ENGINE"),
        ("WHISPER_BATCHSIZE", "WHISPER_BATCH_SIZE"),
        ("WHISPER_DTPYE", "WHISPER_DTYPE"),
        ("WHISPER_STATEDIR", "WHISPER_STATE_DIR"),
        ("WHISPER_GRACE_SECOND", "WHISPER_GRACE_SECONDS"),
    ],
)
def test_a_misspelt_variable_is_told(name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}: did you mean {meant}\\?") as caught:
        Settings.load({}, {"PATH": "/bin", name: "base"})
    assert caught.value.param == name
    assert Settings.load({}, {name: ""}) == Settings()


def test_variables_that_resemble_none_are_only_named() -> None:
    environ = {"WHISPER_LANGUAGE": "en", "WHISPER_COLOUR": "x", "HOME": "/", "WHISPER": "1", "WINDOWID": "3"}
    assert unknown_variables(environ) == ("WHISPER_LANGUAGE", "WHISPER_COLOUR")
    assert Settings.load({}, environ) == Settings()


def test_every_variable_of_this_software_is_known() -> None:
    sources = [
        ROOT / "serve.sh",
        ROOT / "Dockerfile",
        *(path for name in ("server", "gateway", "handler", "clients", "bench") for path in (ROOT / name).rglob("*.*")),
    ]
    used = {
        name for path in sources if path.suffix in ("", ".py", ".sh") for name in re.findall(r"\bWHISPER_[A-Z_]*[A-Z]\b", path.read_text())
    }
    assert used >= {"WHISPER_MODEL", "WHISPER_STATE_DIR"}
    assert unknown_variables(dict.fromkeys(used, "1")) == (), "add it to OTHER_VARIABLES in settings.py"


def test_models_path_expands_home() -> None:
    assert Settings(models_dir="~/models").models_path == Path.home() / "models"


@pytest.mark.parametrize(
    ("model", "name"), [("nano", "nano"), ("/opt/models/large-v3.pt", "large-v3"), ("folder/whisper-small/", "whisper-small")]
)
def test_clients_call_the_model_by_its_name(model: str, name: str) -> None:
    assert Settings(model=model).model_id == name


def test_the_keywords_of_a_transcriber_are_the_settings() -> None:
    hints = get_type_hints(Settings)
    own = {"model", "engine"}  # parameters of Transcriber
    folders = {"models_dir": str | Path, "converted_dir": str | Path}
    assert get_type_hints(SettingKeywords) == {name: hint for name, hint in hints.items() if name not in own} | folders


@pytest.mark.parametrize(
    ("model", "models", "first", "others"),
    [
        ("auto", "", "auto", ()),
        ("auto", "base,tiny.en", "base", ("tiny.en",)),
        ("auto", " base , tiny.en,, base", "base", ("tiny.en",)),
        ("small", "base,tiny.en", "small", ("base", "tiny.en")),
        ("tiny.en", "base,tiny.en", "tiny.en", ("base",)),
        ("auto", "auto,tiny.en", "auto", ("tiny.en",)),
        ("/m/base.pt", "base,/m/own.pt", "/m/base.pt", ("/m/own.pt",)),
    ],
)
def test_the_first_of_several_models_is_the_default(model: str, models: str, first: str, others: tuple[str, ...]) -> None:
    settings = Settings.load({"model": model, "models": models}, {})
    assert (settings.model, settings.other_models) == (first, others)
