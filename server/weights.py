"""Chooses the checkpoints to serve, and fetches them with clients/download_model.py when they are missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from catalogue import AUTO, NANO, paths, unknown

from whispercore.settings import first_model, split_models

from . import ROOT
from .configuration import MODEL_CONFIG, StartError, is_path
from .signals import StopSignals
from .torchserve import end_with_parent

PREFERRED = {"cpu": ("base",), "cuda": ("large-v3-turbo", "base")}
"""The models that `auto` tries on each device, in order: the first that is there or can be fetched. Otherwise NANO is served."""
REAL_MODEL = "for any recording: python3 clients/download_model.py base, and start again"
_WEIGHTS = ("model.bin", "*.safetensors", "*coder*.onnx", "onnx/*coder*.onnx")
_UNREACHABLE = 4
"""download_model.py's exit status when no source answers. Another status other than 0 is a local problem, such as a full disk."""


def provide(stop: StopSignals) -> bool:
    """Set WHISPER_MODEL, WHISPER_MODELS and WHISPER_MODELS_DIR to checkpoints that exist, and fetch those that are missing.

    Returns False after a stop signal. Raises StartError when a checkpoint is missing and cannot be fetched.
    """
    if _setting("engine", AUTO) == "fake":
        return True
    models = split_models(_setting("models", ""))
    first = first_model(_setting("model", AUTO), models)
    folders = {name: _provide_other(name, stop) for name in models if name not in (AUTO, first)}
    if not _provide_first(first, stop):
        return False
    served = Path(os.environ["WHISPER_MODELS_DIR"])
    others = (name if folder in (None, served) else str(_checkpoint(folder, name)) for name, folder in folders.items())
    if models:
        os.environ["WHISPER_MODELS"] = ",".join(others)
    return not stop.requested


def _provide_other(name: str, stop: StopSignals) -> Path | None:
    """The folder that holds a model of the list; None for a path, and after a stop signal. Raises StartError when it cannot be fetched."""
    if stop.requested or is_path(name, Path.cwd()):
        return None
    folder = _folder_of(name) or _fetch(name, stop)
    if not (folder or stop.requested):
        raise _unavailable(name)
    return folder


def _provide_first(model: str, stop: StopSignals) -> bool:
    """`provide` for the model that is loaded at the start."""
    if is_path(model, Path.cwd()):
        os.environ["WHISPER_MODEL"] = model
        return True
    for name in PREFERRED[_device()] if model == AUTO else (model,):
        folder = _folder_of(name) or _fetch(name, stop)
        if stop.requested:
            return False
        if folder:
            os.environ.update(WHISPER_MODEL=name, WHISPER_MODELS_DIR=str(folder))
            return True
    if model != AUTO:
        raise _unavailable(model)
    os.environ["WHISPER_MODEL"] = NANO
    return True


def warning() -> str:
    """The end of the ready line: a warning when the bundled model is served, otherwise empty."""
    if Path(os.environ.get("WHISPER_MODEL", "")).name not in (NANO, f"{NANO}.pt"):
        return ""
    return f". This is a demonstration model of a few sentences, it makes up words for anything else; {REAL_MODEL}"


def _setting(name: str, default: str) -> str:
    section = yaml.safe_load(MODEL_CONFIG.read_text(encoding="utf-8")).get("whisper") or {}
    return str(os.environ.get(f"WHISPER_{name.upper()}") or section.get(name) or default)


def _device() -> str:
    """`cuda` when PyTorch can use a GPU and the settings allow it, else `cpu`.

    Only where a GPU device exists is PyTorch imported to ask: that takes seconds.
    """
    device = _setting("device", AUTO)
    if device != AUTO or not any(Path("/dev").glob(pattern) for pattern in ("nvidia[0-9]*", "dxg")):
        return device if device == "cuda" else "cpu"
    program = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return "cpu" if subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode else "cuda"


def _folders() -> tuple[Path, Path]:
    """The folders that may hold checkpoints: that of the setting, and the one in the state folder, used when the first is read-only."""
    return Path(os.environ["WHISPER_MODELS_DIR"]), Path(os.environ["WHISPER_STATE_DIR"]) / "weights"


def _folder_of(name: str) -> Path | None:
    """The first of the folders that holds a checkpoint of this name, or None."""
    return next((folder for folder in _folders() if _checkpoint(folder, name)), None)


def _checkpoint(folder: Path, name: str) -> Path | None:
    """The checkpoint of this name in a folder, or None."""
    return next((folder / path for path in paths(name) if _is_checkpoint(folder / path)), None)


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() or any(any(path.glob(pattern)) for pattern in _WEIGHTS)


def _fetch(name: str, stop: StopSignals) -> Path | None:
    """Fetch a model and return the folder that it was put into.

    None when no source answers; download_model.py has printed why. Raises StartError for a problem that another model would have too.
    """
    folders = _folders()
    if problem := unknown(name, folders):
        raise StartError(problem)
    if name == NANO:
        raise StartError(f"no {NANO}.pt in {folders[0]}: it comes with the repository; set WHISPER_MODELS_DIR to its whisper-models")
    folder = next((folder for folder in folders if _writable(folder)), None)
    if folder is None:
        raise StartError(f"'{name}' is not there, and neither {folders[0]} nor {folders[1]} can be written: {_fetch_hint(name)}")
    command = [sys.executable, str(ROOT / "clients" / "download_model.py"), name, "--dir", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent)
    while child.poll() is None and not stop.requested:
        stop.wait(0.02)
    if stop.requested:
        os.killpg(child.pid, signal.SIGTERM)
    if child.wait() not in (0, _UNREACHABLE) and not stop.requested:
        raise StartError(f"'{name}' cannot be put into {folder}: see above")
    return folder if child.returncode == 0 else None


def _unavailable(model: str) -> StartError:
    path = _folders()[0] / paths(model)[0]
    return StartError(f"no checkpoint at {path}, and it cannot be fetched (see above): {_fetch_hint(model)}")


def _writable(folder: Path) -> bool:
    """Whether a file can be made in the folder, or the folder itself when it does not exist."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _fetch_hint(name: str) -> str:
    return f"run python3 clients/download_model.py {name} where there is a network, or set WHISPER_MODELS_DIR to a folder that has it"
