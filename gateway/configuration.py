"""The settings of the gateway, read once from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from whispercore.errors import ConfigurationError
from whispercore.settings import Settings

MODEL_CONFIG = Path(__file__).resolve().parents[1] / "config" / "model-config.yaml"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The settings.

    `host`, `port`: where the gateway listens. `torchserve`: TorchServe's address; empty: in process.
    `torchserve_metrics`: the address of TorchServe's metrics. `spool`: the folder of the uploads under way, which
    the worker reads, too. `data`: the folder of what outlives a restart. `keys_file`: the API keys; None: no keys.
    `allow_anonymous`: whether the gateway may listen for other machines without keys. `allowed_hosts`: names of
    this server that a stranger could register, answered to without keys. `cors_origins`: the origins whose pages
    may use the API. `max_body_bytes`: the largest body. `allow_urls`: whether requests may name a recording by its
    URL. `private_hosts`: hosts that may have a private address then. `page_hosts`: hosts whose pages yt-dlp may
    read. `buckets`: the buckets of S3 that may be read. `webhook_secret`: signs the calls of webhooks. `job_days`:
    how long results are kept. `max_job_bytes`: the most that the recordings of all jobs may take on the disk.
    `max_running_jobs`: how many run at once. `grace_seconds`: how long open requests may take when the server
    stops. `realtime_sessions`: the most realtime sessions that may be open.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    torchserve: str = ""
    torchserve_metrics: str = ""
    spool: Path
    data: Path
    keys_file: Path | None = None
    allow_anonymous: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 150 * 1024 * 1024
    allow_urls: bool = False
    private_hosts: tuple[str, ...] = ()
    page_hosts: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    webhook_secret: str = ""
    job_days: float = 7.0
    max_job_bytes: int = 20 * 1024**3
    max_running_jobs: int = 4
    grace_seconds: float = 60.0
    realtime_sessions: int = 32

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> Configuration:
        """Raises ConfigurationError for a value that cannot be used."""
        host, port = address(environ)
        keys_file = environ.get("WHISPER_API_KEYS_FILE")
        max_audio_bytes = Settings.load(core_section(), environ).max_audio_bytes
        return cls(
            host=host,
            port=port,
            torchserve=environ.get("WHISPER_TORCHSERVE_URL", ""),
            torchserve_metrics=environ.get("WHISPER_TORCHSERVE_METRICS_URL", ""),
            spool=Path(environ.get("WHISPER_SPOOL_DIR") or _state(environ) / "spool"),
            data=Path(environ.get("WHISPER_DATA_DIR") or _state(environ) / "data"),
            keys_file=Path(keys_file) if keys_file else None,
            allow_anonymous=_switch("WHISPER_ALLOW_ANONYMOUS", environ, default=False),
            allowed_hosts=_names("WHISPER_ALLOWED_HOSTS", environ),
            cors_origins=_names("WHISPER_CORS_ORIGINS", environ),
            # Base64 in JSON adds a third to the size of the audio; a form adds its headers.
            max_body_bytes=max_audio_bytes * 4 // 3 + 1024 * 1024,
            allow_urls=_switch("WHISPER_ALLOW_URLS", environ, default=host in LOOPBACK),
            private_hosts=_names("WHISPER_URL_PRIVATE_HOSTS", environ),
            buckets=_names("WHISPER_URL_BUCKETS", environ),
            page_hosts=_names("WHISPER_URL_PAGE_HOSTS", environ),
            webhook_secret=environ.get("WHISPER_WEBHOOK_SECRET", ""),
            job_days=_number("WHISPER_JOB_DAYS", environ, 7.0),
            max_job_bytes=int(_number("WHISPER_MAX_JOB_BYTES", environ, 20 * 1024**3)),
            max_running_jobs=int(_number("WHISPER_MAX_RUNNING_JOBS", environ, 4)),
            grace_seconds=_number("WHISPER_GRACE_SECONDS", environ, 60.0),
            realtime_sessions=int(_number("WHISPER_REALTIME_SESSIONS", environ, 32)),
        )


def core_section() -> dict[str, Any]:
    """The core's settings in config/model-config.yaml; none where the gateway runs without the checkout's configuration."""
    try:
        return yaml.safe_load(MODEL_CONFIG.read_text(encoding="utf-8")).get("whisper") or {}
    except OSError:
        return {}


def address(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """The host and the port of WHISPER_GATEWAY_ADDRESS. Raises ConfigurationError."""
    text = environ.get("WHISPER_GATEWAY_ADDRESS") or "http://127.0.0.1:8000"
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port or 8000
    except ValueError:
        host, port = None, 0
    if not host or url.scheme != "http":
        message = f"WHISPER_GATEWAY_ADDRESS must look like http://127.0.0.1:8000; got '{text}'"
        raise ConfigurationError(message, param="WHISPER_GATEWAY_ADDRESS")
    return host, port


def _state(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("WHISPER_STATE_DIR") or "build")


def _names(variable: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """A list with commas."""
    return tuple(filter(None, (name.strip() for name in environ.get(variable, "").split(","))))


def _number(variable: str, environ: Mapping[str, str], default: float) -> float:
    text = environ.get(variable) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigurationError(f"{variable} must be a number of at least 0; got '{text}'", param=variable)
    return number


def _switch(variable: str, environ: Mapping[str, str], *, default: bool) -> bool:
    text = environ.get(variable, "").lower()
    if text not in ("", "0", "1", "false", "true"):
        raise ConfigurationError(f"{variable} must be true or false; got '{text}'", param=variable)
    return text in ("1", "true") if text else default
