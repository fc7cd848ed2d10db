"""The settings for transcribing in process, with a checkpoint that is there: found, or fetched into the user's cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import environment
from catalogue import is_repository, names
from download_model import BASE_URL, Sources, download
from reports import log
from transfer import DownloadFailed

from whispercore.checkpoints import locate, prepare
from whispercore.checkpoints.locations import AUTO, PREFERRED
from whispercore.devices import choose_device
from whispercore.errors import ConfigurationError
from whispercore.settings import ENVIRONMENT_PREFIX, Settings

OWN = {"max_audio_seconds": 1e6, "max_waiting_seconds": 0}
"""Settings unless they are given: the limits that guard a server against its clients do not apply to one's own files."""


def cache() -> Path:
    """The user's folder for fetched and converted checkpoints."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "whisper-torchserve"


def prepared_settings(given: Mapping[str, str], *, quiet: bool = False) -> Settings:
    """The settings of the command line over those of the environment, with a checkpoint that is ready for its engine.

    A missing checkpoint is fetched, and a line on standard error says so. Raises ConfigurationError.
    """
    overridden = {ENVIRONMENT_PREFIX + name.upper() for name in given}
    environ = {name: value for name, value in os.environ.items() if name not in overridden}
    own = OWN | {"converted_dir": str(cache() / "converted")}
    settings = Settings.load(own | dict(given), environ)
    if settings.engine == "fake":
        return settings
    has_folder = "models_dir" in given or bool(environ.get(f"{ENVIRONMENT_PREFIX}MODELS_DIR"))
    folders = [settings.models_path] if has_folder else [environment.MODELS, cache() / "models"]
    settings = _found(settings, folders) or _fetched(settings, folders[-1], quiet=quiet)
    prepare(settings)
    return settings


def _names(settings: Settings) -> tuple[str, ...]:
    """The models to look for, the best first. Raises ConfigurationError when a GPU is required and there is none."""
    return PREFERRED[choose_device(settings)] if settings.model == AUTO else (settings.model,)


def _found(settings: Settings, folders: list[Path]) -> Settings | None:
    """The settings with the first model that is in one of the folders, or at its path."""
    for name in _names(settings):
        for folder in folders:
            candidate = replace(settings, model=name, models_dir=str(folder))
            with suppress(ConfigurationError):
                locate(candidate)
                return candidate
    return None


def _fetched(settings: Settings, folder: Path, *, quiet: bool) -> Settings:
    """The settings with the best model, fetched into `folder` and verified. Raises ConfigurationError."""
    wanted = replace(settings, model=_names(settings)[0], models_dir=str(folder))
    if wanted.model not in names() and not is_repository(wanted.model):
        locate(wanted)  # raises, with the models that there are
    if not quiet:
        log(f"fetching the model {wanted.model} into {folder}: it is not there yet")
    try:
        address = os.environ.get("WHISPER_DOWNLOAD_URL", BASE_URL)
        download(wanted.model, folder, Sources(address), quiet=quiet or not sys.stderr.isatty())
    except DownloadFailed as error:
        raise ConfigurationError(f"the model {wanted.model} cannot be fetched: {error}; --model PATH takes one that is there") from None
    return wanted
