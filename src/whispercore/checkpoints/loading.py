"""A checkpoint in memory: loaded from any form, checked, and written in OpenAI's form."""

from __future__ import annotations

import base64
import gzip
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from torch.nn import Embedding, ModuleList
from whisper.model import ModelDimensions, ResidualAttentionBlock, Whisper

from ..errors import ConfigurationError
from ..settings import model_name
from .locations import form_of
from .shapes import check_dimensions
from .tensors import AlignmentHeads, State

_FOLDER_FILES = ("model.bin", "config.json")
_FOLDER_SUFFIXES = (".onnx", ".safetensors")
"""Files that lie in a checkpoint's folder and are not a checkpoint of their own."""
_WHISPER_CPP_MAGIC = (b"lmgg", b"GGUF")
"""The first four bytes of whisper.cpp's files."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: its path, the model's dimensions, and its tensors by openai-whisper's names.

    `heads`: the alignment heads that the checkpoint itself names, as (layer, head) pairs; None when it names none. A
    .pt has them under `alignment_heads`, a Hugging Face folder in generation_config.json, a CTranslate2 folder in
    config.json, ONNX graphs in the decoder's metadata.
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
        """The alignment heads as (layer, head): the checkpoint's own, else OpenAI's for its models, else all of the
        upper half's layers."""
        shape = (self.dims.n_text_layer, self.dims.n_text_head)
        if self.heads and all(layer < shape[0] and head < shape[1] for layer, head in self.heads):
            return list(self.heads)
        dump = whisper._ALIGNMENT_HEADS.get(re.sub("^(faster-)?whisper-", "", self.name))
        mask = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool) if dump else np.empty(0)
        if mask.size != shape[0] * shape[1]:
            mask = np.repeat(np.arange(shape[0]) >= shape[0] // 2, shape[1])
        return [(int(layer), int(head)) for layer, head in np.argwhere(mask.reshape(shape))]


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Its tensors are mapped from the file where the form allows it.

    Raises ConfigurationError when the file is not a checkpoint, is cut short, or has a form that no engine reads.
    """
    content = _read_folder(path) if path.is_dir() else _read_file(path)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys() or not _is_state(content["model_state_dict"]):
        raise ConfigurationError(f"{path} is not a Whisper checkpoint: it needs 'dims' and 'model_state_dict'", param="model")
    model, state = checked_model(path, content["dims"]), content["model_state_dict"]
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | state.keys() if name not in state or expected.get(name) != state[name].shape)
    if wrong:
        raise ConfigurationError(
            f"{path} does not fit its own dimensions: {wrong[0]} and {len(wrong) - 1} other tensors differ", param="model"
        )
    heads = content.get("alignment_heads")
    return Checkpoint(path, model.dims, state, tuple((int(layer), int(head)) for layer, head in heads) if heads else None)


def write_checkpoint(dims: ModelDimensions, state: State, out: Path, *, heads: AlignmentHeads | None = None) -> None:
    """Write tensors as OpenAI's .pt. The alignment heads are an extra entry, which openai-whisper ignores."""
    extra = {"alignment_heads": [list(pair) for pair in heads]} if heads else {}
    torch.save({"dims": asdict(dims), "model_state_dict": dict(state), **extra}, out)


def empty_model(dims: ModelDimensions) -> Whisper:
    """A model with these dimensions on the meta device: its weights take no memory.

    For shapes, and to load weights into.

    Whisper's constructor makes a sparse tensor, which the meta device does not support. Positions are computed and
    embeddings drawn, for which that device imports PyTorch's compiler (1 to 3 s). So a model without layers and words
    is made, and these are added on the meta device.
    """
    model = Whisper(replace(dims, n_vocab=1, n_audio_layer=0, n_text_layer=0))
    model.dims = dims
    encoder, decoder = model.encoder.to("meta"), model.decoder.to("meta")
    audio, text = (dims.n_audio_state, dims.n_audio_head), (dims.n_text_state, dims.n_text_head)
    with torch.device("meta"):
        encoder.blocks = ModuleList(ResidualAttentionBlock(*audio) for _ in range(dims.n_audio_layer))
        decoder.blocks = ModuleList(ResidualAttentionBlock(*text, cross_attention=True) for _ in range(dims.n_text_layer))
        decoder.token_embedding = Embedding(dims.n_vocab, dims.n_text_state, _weight=torch.empty(dims.n_vocab, dims.n_text_state))
    return model


def checked_model(path: Path, dimensions: Mapping[str, Any]) -> Whisper:
    """`empty_model` with the dimensions that the checkpoint at `path` names.

    Raises ConfigurationError when no Whisper model has them.
    """
    try:
        model = empty_model(ModelDimensions(**dimensions))
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigurationError(f"{path} has other dimensions than a Whisper model's: {error}", param="model") from None
    check_dimensions(path, dimensions)
    return model


def _is_state(state: object) -> bool:
    return isinstance(state, dict) and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items())


def _read_folder(folder: Path) -> dict[str, Any]:
    """A folder's content in the structure of a .pt file."""
    form = form_of(folder)
    dims, state, heads = form.read_dimensions(folder), form.read_state(folder), form.read_alignment_heads(folder)
    return {"dims": dims, "model_state_dict": state, "alignment_heads": heads}


def _read_file(path: Path) -> Any:
    if path.name in _FOLDER_FILES or path.suffix in _FOLDER_SUFFIXES:
        raise ConfigurationError(f"{path} is a part of a checkpoint: name the folder it is in, {path.parent}", param="model")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic not in _WHISPER_CPP_MAGIC:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises a dozen different errors for files that are not pickles
        summary = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        reason = "it holds no tensors, or more than these" if isinstance(error, pickle.UnpicklingError) else summary
        message = f"{path} cannot be read as a checkpoint, it may be cut short ({reason}); get it again: clients/download_model.py"
        raise ConfigurationError(message, param="model") from None
    message = f"{path} is whisper.cpp's, which no engine here reads: get the model in OpenAI's or Hugging Face's form"
    raise ConfigurationError(message, param="model")
