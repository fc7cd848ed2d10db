"""The checkpoint, found, checked and converted before the server starts; not looked at again while nothing about it has changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from configuration import MODEL_CONFIG, ROOT
from signals import StopSignals
from torchserve import end_with_parent

_DECISIVE = ("WHISPER_MODEL", "WHISPER_MODELS_DIR", "WHISPER_CONVERTED_DIR", "WHISPER_ENGINE", "WHISPER_DEVICE", "WHISPER_DTYPE")

_IN_FOLDERS = ("*.safetensors", "model.bin", "decoder.onnx", "config.json")


def prepare(model_store: Path, stop: StopSignals) -> bool:
    """False when that failed, and the reason has been told on standard error, or when told to stop."""
    stamp = Path(os.environ["WHISPER_STATE_DIR"]) / "checkpoint"
    # Importing PyTorch to find that all is ready would double the time a second start takes.
    if stamp.is_file() and stamp.read_text() == _fingerprint(model_store):
        return True
    if not _run(stop):
        return False
    if os.access(stamp.parent, os.W_OK):
        stamp.write_text(_fingerprint(model_store))
    return True


def _run(stop: StopSignals) -> bool:
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
    return hashlib.sha256("\n".join(_facts(model_store)).encode()).hexdigest()


def _facts(model_store: Path) -> Iterator[str]:
    """What decides which checkpoint is used, how it is converted, and whether both are there."""
    yield (model_store / "whisper.mar.sources").read_text()
    yield from (f"{name}={os.environ.get(name)}" for name in (*_DECISIVE, "CUDA_VISIBLE_DEVICES"))
    yield from sorted(path.name for path in Path("/dev").glob("nvidia*"))
    for path in sorted({path for path in _candidates() if path.is_file()}):
        status = path.stat()
        yield f"{path} {status.st_size} {int(status.st_mtime)}"  # whole seconds: an image's layers keep no more


def _candidates() -> Iterator[Path]:
    """The files of checkpoints, of those converted, and of the one chosen by its path."""
    models, converted = Path(os.environ["WHISPER_MODELS_DIR"]), Path(os.environ["WHISPER_CONVERTED_DIR"])
    yield from models.glob("*.pt")
    for name in _IN_FOLDERS:
        yield from (*models.glob(f"*/{name}"), *models.glob(f"*/*/{name}"), *converted.glob(f"*/{name}"))
    if chosen := os.environ.get("WHISPER_MODEL"):
        yield from (Path(chosen), *(path for name in _IN_FOLDERS for path in Path(chosen).glob(name)))
