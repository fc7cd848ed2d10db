"""Checks and converts the checkpoints before the server starts, and skips both while nothing relevant has changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import ROOT
from .configuration import MODEL_CONFIG
from .signals import StopSignals
from .torchserve import end_with_parent

_VARIABLES = (
    *(
        "WHISPER_MODEL",
        "WHISPER_MODELS",
        "WHISPER_MODELS_DIR",
        "WHISPER_CONVERTED_DIR",
        "WHISPER_ENGINE",
        "WHISPER_DEVICE",
        "WHISPER_DTYPE",
    ),
    "CUDA_VISIBLE_DEVICES",
)
"""The variables that decide which checkpoints are used, and how they are converted."""
_CHECKPOINT_FILES = ("*.safetensors", "model.bin", "decoder.onnx", "config.json")
"""The files by which a checkpoint that is a folder is recognized."""


def prepare(model_store: Path | None, stop: StopSignals) -> bool:
    """Whether the checkpoint is ready. False after a failure, whose reason is on standard error by then, or after a stop signal.

    `model_store`: the folder of whisper.mar; None when there is no archive. Then the checkpoint is checked at each start.
    """
    stamp = Path(os.environ["WHISPER_STATE_DIR"]) / "checkpoint"
    # Without the stamp, the check would import PyTorch, which doubles the time of a second start.
    if model_store is None:
        return _run(stop)
    if stamp.is_file() and stamp.read_text() == _fingerprint(model_store):
        return True
    if not _run(stop):
        return False
    if os.access(stamp.parent, os.W_OK):
        stamp.write_text(_fingerprint(model_store))
    return True


def _run(stop: StopSignals) -> bool:
    """Run `whispercore.checkpoints prepare` in a process of its own. A stop signal ends it. Returns whether it succeeded."""
    child = subprocess.Popen(
        [sys.executable, "-m", "whispercore.checkpoints", "prepare", "--config", str(MODEL_CONFIG)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    while child.poll() is None and not stop.requested:
        stop.wait(0.02)
    if stop.requested:
        child.terminate()
    return child.wait() == 0


def _fingerprint(model_store: Path) -> str:
    return hashlib.sha256("\n".join(_inputs(model_store)).encode()).hexdigest()


def _inputs(model_store: Path) -> Iterator[str]:
    """Everything that decides which checkpoint is used and how it is converted, and the files of both."""
    yield (model_store / "whisper.mar.sources").read_text()
    yield from (f"{name}={os.environ.get(name)}" for name in _VARIABLES)
    yield from sorted(path.name for path in Path("/dev").glob("nvidia*"))
    for path in sorted({path for path in _candidates() if path.is_file()}):
        status = path.stat()
        yield f"{path} {status.st_size} {int(status.st_mtime)}"  # an image's layers store whole seconds


def _candidates() -> Iterator[Path]:
    """Paths where files of checkpoints may be: in the folder of models, in the folder of converted ones, and under WHISPER_MODEL."""
    models, converted = Path(os.environ["WHISPER_MODELS_DIR"]), Path(os.environ["WHISPER_CONVERTED_DIR"])
    yield from models.glob("*.pt")
    for name in _CHECKPOINT_FILES:
        yield from (*models.glob(f"*/{name}"), *models.glob(f"*/*/{name}"), *converted.glob(f"*/{name}"))
    for model in filter(None, (os.environ.get("WHISPER_MODEL"), *os.environ.get("WHISPER_MODELS", "").split(","))):
        yield Path(model)
        for name in ("*.pt", *_CHECKPOINT_FILES):
            yield from (*Path(model).glob(name), *Path(model).glob(f"*/{name}"))
