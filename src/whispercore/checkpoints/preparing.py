"""Check a checkpoint, and convert it to the form that the engine reads."""

from __future__ import annotations

from pathlib import Path

from ..catalogue import ENGINES, installation
from ..devices import choose_device, choose_engine
from ..errors import ConfigurationError
from ..settings import Settings
from . import graphs, modelbin
from .locations import ct2_folder, exported_folder, locate, replace_outdated
from .shapes import check_dimensions


def prepare(settings: Settings) -> str:
    """Make the checkpoint ready for the engine: check it, and convert it unless that has been done.

    Returns one line about the result.

    Raises ConfigurationError for a broken checkpoint, a missing package, or a folder that cannot be written.
    """
    device = choose_device(settings)
    engine = choose_engine(settings, device)
    if engine == "fake":
        return "engine 'fake' needs no checkpoint"
    form = ENGINES[engine].reads
    if form in ("onnx", "sherpa"):
        return _export(settings, engine, device)
    path = locate(settings)
    if form == "ct2":
        return _convert(settings, path, device)
    from .loading import load_checkpoint  # here: engine ct2 works without PyTorch

    load_checkpoint(path)
    return f"{path} is ready for engine '{engine}'"


def _convert(settings: Settings, path: Path, device: str) -> str:
    """`prepare` for engine ct2."""
    from .compute_types import precision  # here: the other engines work without ctranslate2

    quantization = precision(settings, device)
    folder = ct2_folder(settings, path, quantization)
    if folder == path:
        check_dimensions(path, modelbin.read_dimensions(path))
        return f"{path} is ready for engine 'ct2', as it is"
    if (folder / "model.bin").is_file():
        return f"{folder} is ready for engine 'ct2'"
    from .conversion import convert  # here: CTranslate2's converters import transformers, and all of this PyTorch
    from .loading import load_checkpoint

    checkpoint = load_checkpoint(path)
    convert(checkpoint.dims, checkpoint.state, folder, quantization, alignment_heads=checkpoint.alignment_heads)
    replace_outdated(folder, path)
    return f"converted {path} for engine 'ct2': {folder}"


def _export(settings: Settings, engine: str, device: str) -> str:
    """`prepare` for engines onnx and sherpa. Engine sherpa runs on the CPU only."""
    try:
        from . import onnx_export, sherpa_export  # here: the other engines work without the package onnx
        from .loading import load_checkpoint
    except ImportError as error:
        message = f"engine '{engine}' cannot export ({error}); {installation(engine)}"
        raise ConfigurationError(message, param="engine") from error
    dtype = onnx_export.precision(settings, device if engine == "onnx" else "cpu")
    folder = exported_folder(settings, engine, dtype)
    if graphs.is_for(folder, engine):
        return f"{folder} is ready for engine '{engine}'"
    path = locate(settings)
    checkpoint = load_checkpoint(path)
    export = (sherpa_export if engine == "sherpa" else onnx_export).export
    difference = export(checkpoint.dims, checkpoint.state, folder, dtype, alignment_heads=checkpoint.alignment_heads)
    replace_outdated(folder, path)
    return f"exported {path} for engine '{engine}': {folder}; its logits are {difference:.1g} standard deviations off PyTorch's at most"
