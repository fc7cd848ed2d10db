"""The worker's settings: one class, its defaults, and the two places that may override them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .catalogue import ENGINES
from .errors import ConfigurationError

ENVIRONMENT_PREFIX = "WHISPER_"
OTHER_VARIABLES = (
    *("STATE_DIR", "VENV", "PYTHON", "TORCH", "GRACE_SECONDS", "CONSOLE_LEVEL"),
    *("OPEN_REQUESTS_FILE", "CLOSING_FILE", "DOWNLOAD_URL", "SPEECH_DATA"),
)
"""What follows the prefix in variables that are no settings: those of serve.sh, of server/, of the clients and of the tests."""
_MISSPELT = 0.75
"""difflib's ratio above which an unknown variable is a known one, misspelt."""


def _setting(default: Any, doc: str, *, choices: tuple[str, ...] = (), minimum: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices, "minimum": minimum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a worker is told once, at start.

    Sources, later wins: the defaults here, the `whisper:` section of config/model-config.yaml, environment variables
    `WHISPER_<NAME>`. An unknown name, a bad value or a misspelt variable is a ConfigurationError.
    """

    model: str = _setting(
        "auto", "a checkpoint's path, or the name of one in models_dir; auto: base (on a GPU large-v3-turbo), nano when there is no such"
    )
    models_dir: str = _setting("whisper-models", "the folder that holds checkpoints")
    converted_dir: str = _setting("build/models", "the folder that holds checkpoints converted for ct2, onnx and sherpa")
    engine: str = _setting("auto", "auto: ct2 on a CPU, torch on a GPU", choices=("auto", *ENGINES))
    device: str = _setting("auto", "auto: cuda when there is a GPU, else cpu", choices=("auto", "cpu", "cuda"))
    dtype: str = _setting(
        "auto",
        "auto: the engine's fastest faithful precision on the device",
        choices=("auto", "float32", "float16", "bfloat16", "int8", "uint8", "int8_float32", "int8_float16", "int8_bfloat16"),
    )
    compile: bool = _setting(
        False, "torch: parts of the model by torch.compile, which needs a compiler and takes a minute at the first start"
    )
    jax_mesh: str = _setting("auto", "jax: devices as DATAxMODEL, such as 2x4; auto: all of them, each with the whole model")
    threads: int = _setting(0, "CPU threads for decoding; 0: the physical cores of this process", minimum=0)
    batch_size: int = _setting(0, "windows decoded together at most; 0: chosen for the device", minimum=0)
    readers: int = _setting(0, "threads that decode audio and cut windows; 0: half as many as there are cores, two at least", minimum=0)
    max_audio_bytes: int = _setting(150 * 1024 * 1024, "largest upload, bytes", minimum=1)
    max_audio_seconds: float = _setting(4 * 3600.0, "longest recording, seconds", minimum=1)
    max_open_requests: int = _setting(1000, "requests open at once before a new one is refused with 503", minimum=1)
    fixed_tokens: int = _setting(
        0, "decode exactly so many tokens a window, whatever they say: to measure speed on random weights", minimum=0
    )

    @classmethod
    def load(cls, section: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from the YAML section and the environment."""
        unknown_variables(environ)
        settings = replace(cls(), **{name: _parse(name, value) for name, value in (section or {}).items()})
        overrides = {name: environ[variable] for name in _FIELDS if (variable := ENVIRONMENT_PREFIX + name.upper()) in environ}
        return replace(settings, **{name: _parse(name, value) for name, value in overrides.items() if value != ""})

    @property
    def models_path(self) -> Path:
        """`models_dir` as a path, ~ expanded."""
        return Path(self.models_dir).expanduser()

    @property
    def model_id(self) -> str:
        """What clients call the model: its name, or its file's or folder's."""
        return model_name(Path(self.model))

    @property
    def converted_path(self) -> Path:
        """`converted_dir` as a path, ~ expanded."""
        return Path(self.converted_dir).expanduser()


def model_name(path: Path) -> str:
    """The file's name without .pt, or the folder's: nano, large-v3-turbo, faster-whisper-tiny.en, …"""
    return path.name.removesuffix(".pt")


_FIELDS = {item.name: item for item in fields(Settings)}


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that begin with the prefix and mean nothing to this software.

    Raises ConfigurationError for one that looks like a known one misspelt, its prefix included: WHISPER_MODLE, WISPER_MODEL.
    """
    known = [ENVIRONMENT_PREFIX + name.upper() for name in (*_FIELDS, *OTHER_VARIABLES)]
    unknown = [name for name, value in environ.items() if name not in known and value]
    for name in unknown:
        if meant := _meant(name.upper(), known):
            raise ConfigurationError(f"unknown environment variable {name}: did you mean {meant}? Rename or unset it", param=name)
    return tuple(name for name in unknown if name.startswith(ENVIRONMENT_PREFIX))


def _meant(name: str, known: list[str]) -> str | None:
    """The known variable that `name`, in capitals, is a misspelling of."""
    if not name.startswith(ENVIRONMENT_PREFIX):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.9) if name.startswith("W") else []
        return close[0] if close else None
    endings = [one.removeprefix(ENVIRONMENT_PREFIX) for one in known]
    close = difflib.get_close_matches(name.removeprefix(ENVIRONMENT_PREFIX), endings, n=1, cutoff=_MISSPELT)
    return ENVIRONMENT_PREFIX + close[0] if close else None


def _parse(name: str, value: Any) -> Any:
    """`value` as the type of the setting `name`."""
    if name not in _FIELDS:
        raise ConfigurationError(f"unknown setting '{name}'; known: {', '.join(_FIELDS)}", param=name)
    item = _FIELDS[name]
    try:
        parsed = _converted(value, type(item.default))
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(f"setting '{name}' must be {type(item.default).__name__}, got {value!r}", param=name) from None
    choices, minimum = item.metadata["choices"], item.metadata["minimum"]
    if choices and parsed not in choices:
        raise ConfigurationError(f"setting '{name}' must be one of {', '.join(choices)}; got {value!r}", param=name)
    if minimum is not None and not parsed >= minimum:
        raise ConfigurationError(f"setting '{name}' must be at least {minimum}; got {value!r}", param=name)
    return parsed


def _converted(value: Any, kind: Callable[[Any], Any]) -> Any:
    """`value` as a `kind`, nothing lost. Raises TypeError, ValueError or OverflowError."""
    if value is None or isinstance(value, list | dict):
        raise TypeError
    if kind is bool:
        return bool(("false", "true").index(str(value).lower()))
    if isinstance(value, bool):
        raise TypeError
    parsed = kind(value)
    if isinstance(value, float) and parsed != value:
        raise ValueError
    return parsed
