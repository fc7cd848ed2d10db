"""TorchServe's addresses, Java and folders, read once from config/config.properties and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from catalogue import is_repository

from whispercore.settings import split_models

from . import ROOT

MODEL_CONFIG = ROOT / "config" / "model-config.yaml"
GRACE_SECONDS = 60.0
GATEWAY_OFF = ("off", "none")
"""Values of WHISPER_GATEWAY_ADDRESS with which no gateway is started."""


class StartError(Exception):
    """The server cannot start or cannot go on. The message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """One of TorchServe's listeners, and the environment variable that changes it."""

    host: str
    port: int
    variable: str

    @property
    def reachable_host(self) -> str:
        """A host to connect to from this machine."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The paths that serve.sh has chosen, and the settings that TorchServe reads by itself."""

    properties_file: Path
    inference: Address
    management: Address
    metrics: Address
    gateway: Address | None
    """None: no gateway is started."""
    java: Path
    vm_args: tuple[str, ...]
    model_store: Path
    logs: Path
    temporary: Path
    grace_seconds: float
    reads_environment: bool
    """Whether TorchServe takes its addresses from the environment: enable_envvars_config."""

    @property
    def log_file(self) -> Path:
        """The file to which config/log4j2.xml writes every line as JSON."""
        return self.logs / "whisper.log"

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> Configuration:
        """Raises StartError for a value that cannot be used."""
        file = Path(environ.get("TS_CONFIG_FILE", ROOT / "config" / "config.properties"))
        properties = _properties(file)
        return cls(
            properties_file=file,
            inference=_address("inference_address", 8080, properties, environ),
            management=_address("management_address", 8081, properties, environ),
            metrics=_address("metrics_address", 8082, properties, environ),
            gateway=gateway_address(environ),
            java=Path(environ["JAVA_HOME"]) / "bin" / "java",
            vm_args=tuple(properties.get("vmargs", "").split()),
            model_store=Path(environ["TS_MODEL_STORE"]),
            logs=Path(environ["LOG_LOCATION"]).absolute(),
            temporary=Path(environ["TEMP"]),
            grace_seconds=_seconds("WHISPER_GRACE_SECONDS", GRACE_SECONDS, environ),
            reads_environment=properties.get("enable_envvars_config", "").lower() == "true",
        )


def gateway_address(environ: Mapping[str, str] = os.environ) -> Address | None:
    """Where the gateway listens; None when WHISPER_GATEWAY_ADDRESS is `off`. Raises StartError."""
    variable = "WHISPER_GATEWAY_ADDRESS"
    text = environ.get(variable) or "http://127.0.0.1:8000"
    return None if text.lower() in GATEWAY_OFF else _parse_address(text, variable, 8000)


def worker_paths(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The core's settings that are paths, made absolute and keyed by their variables: the worker runs in a folder of its own.

    A relative path in the environment starts at the current folder, one in the YAML file at the checkout.
    """
    section: dict[str, Any] = yaml.safe_load(MODEL_CONFIG.read_text(encoding="utf-8")).get("whisper") or {}
    defaults = {"models_dir": "whisper-models", "converted_dir": str(Path(environ["WHISPER_STATE_DIR"]) / "models")}
    paths = {}
    for name in ("models_dir", "converted_dir", "model"):
        variable = f"WHISPER_{name.upper()}"
        value, base = environ.get(variable), Path.cwd()
        if not value:
            value, base = section.get(name, defaults.get(name)), ROOT
        if value and (name != "model" or is_path(value, base)):
            paths[variable] = str(base / Path(value).expanduser())
    text, base = environ.get("WHISPER_MODELS"), Path.cwd()
    if not text:
        text, base = str(section.get("models") or ""), ROOT
    if models := split_models(text):
        absolute = (str(base / Path(item).expanduser()) if is_path(item, base) else item for item in models)
        paths["WHISPER_MODELS"] = ",".join(absolute)
    return paths


def is_path(model: str, base: Path) -> bool:
    """Whether the setting `model` is a path. OWNER/NAME is a repository of the Hugging Face Hub, unless that path exists in `base`."""
    return model.endswith(".pt") or ("/" in model and not (is_repository(model) and not (base / model).exists()))


def _properties(file: Path) -> dict[str, str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise StartError(f"{file} cannot be read ({error.strerror}): set TS_CONFIG_FILE to TorchServe's configuration") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def _address(name: str, default_port: int, properties: Mapping[str, str], environ: Mapping[str, str]) -> Address:
    variable = f"TS_{name.upper()}"
    text = environ.get(variable) or properties.get(name, f"http://127.0.0.1:{default_port}")
    return _parse_address(text, variable, default_port)


def _parse_address(text: str, variable: str, default_port: int) -> Address:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port or default_port
    except ValueError:
        host, port = None, 0
    if not host or url.scheme != "http":
        raise StartError(f"{variable} must look like http://127.0.0.1:{default_port}; got '{text}'")
    return Address(host, port, variable)


def _seconds(variable: str, default: float, environ: Mapping[str, str]) -> float:
    text = environ.get(variable) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise StartError(f"{variable} must be a number of seconds; got '{text}'")
    return seconds
