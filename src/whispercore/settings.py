"""The worker's settings: one class with the defaults, overridden by the YAML section and by environment variables."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from .catalogue import ENGINES
from .errors import ConfigurationError

ENVIRONMENT_PREFIX = "WHISPER_"
AUTO = "auto"
"""The setting `model` that chooses the best model there is."""
OTHER_VARIABLES = (
    *("STATE_DIR", "VENV", "PYTHON", "TORCH", "LOCKED", "GRACE_SECONDS", "CONSOLE_LEVEL"),
    *("OPEN_REQUESTS_FILE", "CLOSING_FILE", "DOWNLOAD_URL", "SPEECH_DATA", "IMAGE_TESTS", "IMAGE_BUILD"),
    *("API_KEY", "OUTPUT_BUCKET", "OUTPUT_PREFIX", "OUTPUT_FORMATS", "OUTPUT_OPTIONS"),
    *("HEALTH_FILE", "NOT_READY_FILE", "WATCHDOG_TOKEN"),
    *("GATEWAY_ADDRESS", "TORCHSERVE_URL", "TORCHSERVE_METRICS_URL", "SPOOL_DIR", "DATA_DIR"),
    *("SERVER_URL", "API_KEY"),
    *("API_KEYS_FILE", "CORS_ORIGINS", "ALLOW_URLS", "ALLOW_ANONYMOUS", "ALLOWED_HOSTS", "URL_BUCKETS"),
    *("URL_PRIVATE_HOSTS", "URL_PAGE_HOSTS", "WEBHOOK_SECRET", "JOB_DAYS", "MAX_JOB_BYTES", "MAX_RUNNING_JOBS"),
    "REALTIME_SESSIONS",
)
"""Variables with this prefix that are not settings: those of serve.sh, server/, gateway/, deploy/, the clients and the tests."""
_MISSPELT = 0.75
"""difflib's ratio above which an unknown variable counts as a misspelling of a known one."""


def _setting(default: Any, doc: str, *, choices: tuple[str, ...] = (), minimum: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices, "minimum": minimum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration of a worker, read once at start.

    Sources, the later one wins: the defaults here, the `whisper:` section of config/model-config.yaml, environment
    variables `WHISPER_<NAME>`. An unknown name, a bad value or a misspelt variable is a ConfigurationError.
    """

    model: str = _setting(
        AUTO, "the path of a checkpoint, or its name in models_dir; auto: base (on a GPU large-v3-turbo), or nano if that is missing"
    )
    models: str = _setting(
        "", "names or paths, with commas, of several models to serve; the first one is `model`, unless that is set too; empty: one model"
    )
    models_memory: int = _setting(
        0, "the bytes that all loaded models may take, as estimated; 0: 80 % of the memory of the machine, or of the GPU", minimum=0
    )
    models_idle_seconds: float = _setting(
        900.0,
        "a model other than the first is unloaded after this long without a request; 0: only when another one needs its room",
        minimum=0,
    )
    models_dir: str = _setting("whisper-models", "the folder of the checkpoints")
    converted_dir: str = _setting("build/models", "the folder of the checkpoints converted for ct2, onnx and sherpa")
    engine: str = _setting("auto", "auto: ct2 on a CPU, torch on a GPU", choices=("auto", *ENGINES))
    device: str = _setting("auto", "auto: cuda if there is a GPU, else cpu", choices=("auto", "cpu", "cuda"))
    dtype: str = _setting(
        "auto",
        "auto: the fastest precision on the device that keeps the model's accuracy",
        choices=("auto", "float32", "float16", "bfloat16", "int8", "uint8", "int8_float32", "int8_float16", "int8_bfloat16"),
    )
    compile: bool = _setting(
        False, "torch: compile parts of the model with torch.compile; needs a C compiler and a minute at the first start"
    )
    jax_mesh: str = _setting("auto", "jax: the device mesh as DATAxMODEL, such as 2x4; auto: all devices, each with the whole model")
    threads: int = _setting(0, "CPU threads for decoding; 0: the physical cores that the process may use", minimum=0)
    batch_size: int = _setting(0, "the most windows in a batch; 0: chosen for the device", minimum=0)
    readers: int = _setting(
        0, "processes that decode audio and cut windows, on one core threads; 0: half of the physical cores, at least two", minimum=0
    )
    max_audio_bytes: int = _setting(150 * 1024 * 1024, "the largest upload, in bytes", minimum=1)
    max_audio_seconds: float = _setting(4 * 3600.0, "the longest recording, in seconds", minimum=1)
    max_beams: int = _setting(10, "largest beam_size or best_of of a request", minimum=1)
    max_patience: float = _setting(2.0, "largest patience of a request", minimum=1)
    stall_seconds: float = _setting(
        180.0, "the worker is restarted when the engine completes no window for this long, or 20 times its longest; 0: never", minimum=0
    )
    max_open_requests: int = _setting(1000, "the most open requests; further ones are refused with 503", minimum=1)
    max_open_requests_per_client: int = _setting(
        0, "the most open requests of one client, where client_header tells clients apart; 0: half of max_open_requests", minimum=0
    )
    max_waiting_seconds: float = _setting(
        24 * 3600.0,
        "the most seconds of audio for each device that are accepted and not transcribed yet, half of it for one client; further "
        "recordings are refused with 503; 0: no limit",
        minimum=0,
    )
    client_header: str = _setting(
        "", "the header with the client's name, which only a trusted proxy in front may set; empty: clients are not told apart"
    )
    reading_stall_seconds: float = _setting(
        120.0, "a request is refused when one step of reading its audio takes longer than this; 0: never", minimum=0
    )
    watchdog_seconds: float = _setting(
        30.0, "without a success for this long the server transcribes half a second of sound, to see that it works; 0: never", minimum=0
    )
    fixed_tokens: int = _setting(0, "decode exactly this many tokens per window, to measure speed on random weights; 0: off", minimum=0)

    @classmethod
    def load(cls, section: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from the YAML section and the environment."""
        unknown_variables(environ)
        settings = replace(cls(), **{name: _parse(name, value) for name, value in (section or {}).items()})
        overrides = {name: environ[variable] for name in _FIELDS if (variable := ENVIRONMENT_PREFIX + name.upper()) in environ}
        settings = replace(settings, **{name: _parse(name, value) for name, value in overrides.items() if value != ""})
        return replace(settings, model=first_model(settings.model, split_models(settings.models)))

    @property
    def models_path(self) -> Path:
        """`models_dir` as a path, ~ expanded."""
        return Path(self.models_dir).expanduser()

    @property
    def model_id(self) -> str:
        """The model's name for clients: the name of its file or folder."""
        return model_name(Path(self.model))

    @property
    def other_models(self) -> tuple[str, ...]:
        """The models that are served besides `model`: names or paths."""
        by_name = {model_name(Path(item)): item for item in split_models(self.models)}
        return tuple(item for name, item in by_name.items() if name not in (AUTO, self.model_id))

    @property
    def converted_path(self) -> Path:
        """`converted_dir` as a path, ~ expanded."""
        return Path(self.converted_dir).expanduser()


class SettingKeywords(TypedDict, total=False):
    """`Settings` as keyword arguments, for type checkers and completion; `model` and `engine` are parameters."""

    models: str
    models_memory: int
    models_idle_seconds: float
    models_dir: str | Path
    converted_dir: str | Path
    device: str
    dtype: str
    compile: bool
    jax_mesh: str
    threads: int
    batch_size: int
    readers: int
    max_audio_bytes: int
    max_audio_seconds: float
    max_beams: int
    max_patience: float
    stall_seconds: float
    max_open_requests: int
    max_open_requests_per_client: int
    max_waiting_seconds: float
    client_header: str
    reading_stall_seconds: float
    watchdog_seconds: float
    fixed_tokens: int


def model_name(path: Path) -> str:
    """The file's name without .pt, or the folder's: nano, large-v3-turbo, faster-whisper-tiny.en, …"""
    return path.name.removesuffix(".pt")


def split_models(models: str) -> list[str]:
    """The names and paths in the setting `models`."""
    return [item for part in models.split(",") if (item := part.strip())]


def first_model(model: str, models: Sequence[str]) -> str:
    """The model that is loaded at the start, by the setting `model` and the items of `models`."""
    return models[0] if models and model == AUTO else model


_FIELDS = {item.name: item for item in fields(Settings)}


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that have the prefix but are unknown.

    Raises ConfigurationError for a misspelling of a known variable, prefix included: WHISPER_MODLE, WISPER_MODEL.
    """
    known = [ENVIRONMENT_PREFIX + name.upper() for name in (*_FIELDS, *OTHER_VARIABLES)]
    unknown = [name for name, value in environ.items() if name not in known and value]
    for name in unknown:
        if intended := _intended(name.upper(), known):
            raise ConfigurationError(f"unknown environment variable {name}: did you mean {intended}? Rename or unset it", param=name)
    return tuple(name for name in unknown if name.startswith(ENVIRONMENT_PREFIX))


def _intended(name: str, known: list[str]) -> str | None:
    """The known variable that `name`, in capitals, probably misspells."""
    if not name.startswith(ENVIRONMENT_PREFIX):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.9) if name.startswith("W") else []
        return close[0] if close else None
    endings = [variable.removeprefix(ENVIRONMENT_PREFIX) for variable in known]
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
    """`value` as a `kind`, without loss. Raises TypeError, ValueError or OverflowError."""
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
