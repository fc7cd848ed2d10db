"""Checkpoints in OpenAI's .pt format: found, checked, loaded."""

from __future__ import annotations

import base64
import gzip
import hashlib
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import whisper
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, Whisper

from .errors import ConfigurationError
from .settings import Settings

FILES = {"large": "large-v3", "turbo": "large-v3-turbo"}
"""OpenAI's second names of two checkpoints, and the names of their files."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: where it came from, the model's dimensions, and its tensors by OpenAI's names."""

    path: Path
    dims: ModelDimensions
    state: dict[str, torch.Tensor]

    @property
    def name(self) -> str:
        """The file's name without .pt: nano, large-v3-turbo, …"""
        return self.path.stem

    @property
    def alignment_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the decoder's heads that follow the audio: OpenAI's list for its own models, else the upper half's."""
        shape = (self.dims.n_text_layer, self.dims.n_text_head)
        dump = whisper._ALIGNMENT_HEADS.get(self.name)
        heads = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool) if dump else np.empty(0)
        if heads.size != shape[0] * shape[1]:
            heads = np.repeat(np.arange(shape[0]) >= shape[0] // 2, shape[1])
        return [(int(layer), int(head)) for layer, head in np.argwhere(heads.reshape(shape))]


def locate(settings: Settings) -> Path:
    """The checkpoint's path: `model` itself when it is a file or looks like a path, else NAME.pt in `models_dir`."""
    given = Path(settings.model).expanduser()
    if given.suffix == ".pt" or len(given.parts) > 1:
        path = given
    else:
        path = settings.models_path / f"{FILES.get(settings.model, settings.model)}.pt"
    if not path.is_file():
        raise ConfigurationError(_missing(settings, path), param="model")
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its tensors mapped from the file. Raises ConfigurationError when it is not one, or is cut short."""
    content = _read(path)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise ConfigurationError(f"{path} is not a Whisper checkpoint: it needs 'dims' and 'model_state_dict'", param="model")
    try:
        dims = ModelDimensions(**content["dims"])
        expected = {name: tensor.shape for name, tensor in empty_model(dims).state_dict().items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{path} has other dimensions than a Whisper model's: {error}", param="model") from None
    state = content["model_state_dict"]
    wrong = sorted(name for name in expected.keys() | state.keys() if name not in state or expected.get(name) != state[name].shape)
    if wrong:
        raise ConfigurationError(
            f"{path} does not fit its own dimensions: {wrong[0]} and {len(wrong) - 1} other tensors differ", param="model"
        )
    return Checkpoint(path, dims, state)


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


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{path} cannot be read as a checkpoint, it may be cut short ({reason[:120]}); get it again: clients/download_model.py"
        raise ConfigurationError(message, param="model") from None


def _missing(settings: Settings, path: Path) -> str:
    there = ", ".join(sorted(file.stem for file in settings.models_path.glob("*.pt"))) or "none"
    known = settings.model in whisper.available_models()
    download = f"; get it: clients/download_model.py {settings.model}" if known else ""
    return f"no checkpoint at {path}; in {settings.models_path}: {there}{download}"
