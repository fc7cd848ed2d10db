"""Checkpoints, OpenAI's .pt, Hugging Face's and CTranslate2's folders, ONNX graphs: checked, loaded, made ready for an engine, made up."""

from __future__ import annotations

import base64
import gzip
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, Whisper, sinusoids

from ..catalogue import ENGINES
from ..devices import choose_device, choose_engine
from ..errors import ConfigurationError
from ..settings import Settings, model_name
from . import graphs, modelbin
from .locations import (
    FILES,
    choose_model,
    converted_folder,
    ct2_folder,
    exported_folder,
    form_of,
    is_demonstration,
    locate,
    replace_outdated,
    sha256,
)

__all__ = [
    "Checkpoint",
    "choose_model",
    "converted_folder",
    "ct2_folder",
    "dimensions",
    "empty_model",
    "exported_folder",
    "is_demonstration",
    "load_checkpoint",
    "locate",
    "prepare",
    "sha256",
    "write_checkpoint",
    "write_random",
]

Heads = Sequence[tuple[int, int]]
SIZES = {
    "tiny": (384, 6, 4, 4),
    "base": (512, 8, 6, 6),
    "small": (768, 12, 12, 12),
    "medium": (1024, 16, 24, 24),
    "large-v2": (1280, 20, 32, 32),
    "large-v3": (1280, 20, 32, 32),
    "large-v3-turbo": (1280, 20, 32, 4),
}
"""Width, heads, layers of the encoder and of the decoder of OpenAI's multilingual models."""


_INSIDE = ("model.bin", "config.json")
_GGML = (b"lmgg", b"GGUF")
"""How its files begin."""
_DECODED = {"n_mels": (80, 128), "n_audio_ctx": (1500,), "n_vocab": (51_864, 51_865, 51_866), "n_text_ctx": (448,)}
"""What every Whisper has in common. Tokens added to the vocabulary would be taken for timestamps, which are its last ones."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: where it came from, the model's dimensions, and its tensors by OpenAI's names.

    `heads`: its own alignment heads as (layer, head) pairs, when it names some: a .pt under `alignment_heads`, a folder in its
    generation_config.json, CTranslate2's in its config.json, graphs in the decoder's metadata.
    """

    path: Path
    dims: ModelDimensions
    state: dict[str, torch.Tensor]
    heads: tuple[tuple[int, int], ...] | None = None

    @property
    def name(self) -> str:
        """The file's name without .pt, or the folder's: nano, large-v3-turbo, …"""
        return model_name(self.path)

    @property
    def alignment_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the decoder's heads that follow the audio: its own, OpenAI's list for its models, else the upper half's."""
        shape = (self.dims.n_text_layer, self.dims.n_text_head)
        if self.heads and all(layer < shape[0] and head < shape[1] for layer, head in self.heads):
            return list(self.heads)
        dump = whisper._ALIGNMENT_HEADS.get(re.sub("^(faster-)?whisper-", "", self.name))
        heads = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool) if dump else np.empty(0)
        if heads.size != shape[0] * shape[1]:
            heads = np.repeat(np.arange(shape[0]) >= shape[0] // 2, shape[1])
        return [(int(layer), int(head)) for layer, head in np.argwhere(heads.reshape(shape))]


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its tensors mapped from the file where that can be.

    Raises ConfigurationError when it is not one, is cut short, or of a form that nobody here reads.
    """
    content = _read_folder(path) if path.is_dir() else _read(path)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys() or not _are_tensors(content["model_state_dict"]):
        raise ConfigurationError(f"{path} is not a Whisper checkpoint: it needs 'dims' and 'model_state_dict'", param="model")
    model, state = _model(path, content["dims"]), content["model_state_dict"]
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | state.keys() if name not in state or expected.get(name) != state[name].shape)
    if wrong:
        raise ConfigurationError(
            f"{path} does not fit its own dimensions: {wrong[0]} and {len(wrong) - 1} other tensors differ", param="model"
        )
    heads = content.get("alignment_heads")
    return Checkpoint(path, model.dims, state, tuple((int(layer), int(head)) for layer, head in heads) if heads else None)


def _are_tensors(state: object) -> bool:
    return isinstance(state, dict) and all(isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in state.items())


def _model(path: Path, told: Mapping[str, Any]) -> Whisper:
    """`empty_model` of the dimensions that the checkpoint tells. Raises ConfigurationError when no Whisper has such."""
    try:
        model = empty_model(ModelDimensions(**told))
        uneven = told["n_audio_state"] % told["n_audio_head"] or told["n_text_state"] % told["n_text_head"]
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigurationError(f"{path} has other dimensions than a Whisper model's: {error}", param="model") from None
    wrong = [f"{name} is {told[name]}, not {' or '.join(map(str, known))}" for name, known in _DECODED.items() if told[name] not in known]
    if wrong or uneven:
        message = f"{path} has other dimensions than a Whisper model's: {wrong[0] if wrong else 'its heads do not share its width evenly'}"
        raise ConfigurationError(message, param="model")
    return model


def empty_model(dims: ModelDimensions) -> Whisper:
    """A model of these dimensions whose weights hold no memory: for shapes, and to load weights into without initialising it.

    Whisper's own constructor cannot run on the meta device (it makes a sparse tensor), so only its two halves are made there.
    """
    model = Whisper(replace(dims, n_vocab=1, n_audio_layer=0, n_text_layer=0))
    model.dims = dims
    with torch.device("meta"):
        model.encoder = AudioEncoder(dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
        model.decoder = TextDecoder(dims.n_vocab, dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer)
    return model


def dimensions(size: str) -> ModelDimensions:
    """The dimensions of OpenAI's model `size`. Raises ConfigurationError for an unknown one."""
    size = FILES.get(size, size)
    if size not in SIZES:
        raise ConfigurationError(f"unknown size '{size}'; known: {', '.join(SIZES)}", param="size")
    width, heads, encoder, decoder = SIZES[size]
    newest = size.startswith("large-v3")
    return ModelDimensions(
        n_mels=128 if newest else 80,
        n_audio_ctx=1500,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=encoder,
        n_vocab=51_866 if newest else 51_865,
        n_text_ctx=448,
        n_text_state=width,
        n_text_head=heads,
        n_text_layer=decoder,
    )


def write_random(dims: ModelDimensions, out: Path, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> None:
    """Write a checkpoint of random weights: a trained model's shapes and costs, no words. Equal seeds give equal files' weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in empty_model(dims).state_dict().items()}
    state = {name: _random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(dims, state, out)


def write_checkpoint(dims: ModelDimensions, state: Mapping[str, torch.Tensor], out: Path, *, heads: Heads | None = None) -> None:
    """Write tensors as a .pt of OpenAI's form; the alignment heads are an entry that openai-whisper passes over."""
    named = {"alignment_heads": [list(pair) for pair in heads]} if heads else {}
    torch.save({"dims": asdict(dims), "model_state_dict": dict(state), **named}, out)


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normalisations as they start, biases zero, weights so small that the logits stay finite in float16."""
    if name == "encoder.positional_embedding":
        positions: torch.Tensor = sinusoids(*shape)
        return positions
    if len(shape) == 1:
        return torch.ones(shape) if "ln" in name and name.endswith("weight") else torch.zeros(shape)
    fan_in = shape[1:].numel()
    return torch.randn(shape, generator=generator).div(fan_in**0.5)


def prepare(settings: Settings) -> str:
    """Check the checkpoint, convert it when the engine needs that and it is not done yet; one line that says what was done."""
    device = choose_device(settings)
    engine = choose_engine(settings, device)
    if engine == "fake":
        return "engine 'fake' needs no checkpoint"
    if ENGINES[engine].reads in ("onnx", "sherpa"):
        return _export(settings, engine, device)
    path = locate(settings)
    if engine == "ct2":
        return _convert(settings, path, device)
    load_checkpoint(path)
    return f"{path} is ready for engine '{engine}'"


def _convert(settings: Settings, path: Path, device: str) -> str:
    """`prepare` for engine ct2."""
    from .conversion import convert, precision  # here: the other engines work without ctranslate2

    quantization = precision(settings, device)
    folder = ct2_folder(settings, path, quantization)
    if folder == path:
        _model(path, modelbin.read_dimensions(path))
        return f"{path} is ready for engine 'ct2', as it is"
    if (folder / "model.bin").is_file():
        return f"{folder} is ready for engine 'ct2'"
    checkpoint = load_checkpoint(path)
    convert(checkpoint.dims, checkpoint.state, folder, quantization, alignment_heads=checkpoint.alignment_heads)
    replace_outdated(folder, path)
    return f"converted {path} for engine 'ct2': {folder}"


def _export(settings: Settings, engine: str, device: str) -> str:
    """`prepare` for engines onnx and sherpa, which runs on the CPU only."""
    try:
        from . import onnx_export, sherpa_export  # here: the other engines work without the package onnx
    except ImportError as error:
        install = f"run: pip install -r requirements-{engine}.txt; an image: --build-arg ENGINE={engine}"
        message = f"engine '{engine}' cannot export ({error}); {install}"
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


def _read_folder(folder: Path) -> dict[str, Any]:
    """A folder as the content of a .pt file."""
    form = form_of(folder)
    dims, state, heads = form.read_dimensions(folder), form.read_state(folder), form.read_alignment_heads(folder)
    return {"dims": dims, "model_state_dict": state, "alignment_heads": heads}


def _read(path: Path) -> Any:
    if path.name in _INSIDE or path.suffix in (".onnx", ".safetensors"):
        raise ConfigurationError(f"{path} is a part of a checkpoint: name the folder it is in, {path.parent}", param="model")
    try:
        with path.open("rb") as file:
            begin = file.read(4)
        if begin not in _GGML:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what is no pickle makes its reader stumble in a dozen ways
        torchs = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        reason = "it holds no tensors, or more than these" if isinstance(error, pickle.UnpicklingError) else torchs
        message = f"{path} cannot be read as a checkpoint, it may be cut short ({reason}); get it again: clients/download_model.py"
        raise ConfigurationError(message, param="model") from None
    message = f"{path} is whisper.cpp's, which no engine here reads: get the model in OpenAI's or Hugging Face's form"
    raise ConfigurationError(message, param="model")
