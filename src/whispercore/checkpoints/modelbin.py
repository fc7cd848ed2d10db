"""CTranslate2's folders of Whisper models, model.bin and config.json, read as openai-whisper's dimensions and tensors.

model.bin is what `ctranslate2.specs.model_spec.ModelSpec` writes, little-endian: its version, the model's name and revision, a count of
variables, each with name, shape, type, size in bytes and these bytes, a count of aliases, each two names. A string is its length with
the zero that ends it, the bytes, the zero. What is in 8 or 16 bits has a scale, of each row or of all of it: number = integer / scale.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import ConfigurationError
from .huggingface import told_heads

_WEIGHTS = "model.bin"
_WHISPER = (6, "WhisperSpec", 3)
"""The format's version, the model's name and revision."""
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
"""By the numbers in the file."""
_VARIABLE = re.compile(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(weight|bias|gamma|beta|encodings)")
_LAYER = {
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
"""What a layer's parts hold, by openai-whisper's names, one below the other."""
_MODULES = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.ln_post",
    "decoder/embeddings": "decoder.token_embedding",
    "decoder/layer_norm": "decoder.ln",
}
_SIDES = ("encoder", "decoder")
_KINDS = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a variable lies in the file, in bytes, and what it is."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    size: int


def is_folder(path: Path) -> bool:
    """Whether `path` is such a folder."""
    return (path / _WEIGHTS).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The one file that holds the weights."""
    return [folder / _WEIGHTS]


def is_float(folder: Path) -> bool:
    """Whether no weight was rounded to an integer. Raises ConfigurationError when model.bin is broken."""
    return not any(name.endswith("weight_scale") for name in variables(folder))


def read_dimensions(folder: Path) -> dict[str, int]:
    """The dimensions, by the names of openai-whisper's `ModelDimensions`. Raises ConfigurationError when model.bin is broken."""
    known = variables(folder)
    layers = {side: len({name.split("/")[1] for name in known if name.startswith(f"{side}/layer_")} - {"layer_norm"}) for side in _SIDES}
    try:
        width, n_mels, _ = known["encoder/conv1/weight"].shape
        n_audio_ctx, _ = known["encoder/position_encodings/encodings"].shape
        n_text_ctx, text_width = known["decoder/position_encodings/encodings"].shape
        n_vocab, _ = known["decoder/embeddings/weight"].shape
        heads = {side: int(_tensor(folder, known[f"{side}/num_heads"])) for side in _SIDES}
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"{folder / _WEIGHTS} lacks {error}, which a Whisper model has", param="model") from None
    return {
        "n_mels": n_mels,
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": width,
        "n_audio_head": heads["encoder"],
        "n_audio_layer": layers["encoder"],
        "n_vocab": n_vocab,
        "n_text_ctx": n_text_ctx,
        "n_text_state": text_width,
        "n_text_head": heads["decoder"],
        "n_text_layer": layers["decoder"],
    }


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors by openai-whisper's names; integers as the float32 they stand for. Raises ConfigurationError."""
    state: dict[str, torch.Tensor] = {}
    known = variables(folder)
    for name, variable in known.items():
        names = openai_names(name)
        if names:
            tensor, scale = _tensor(folder, variable), known.get(f"{name}_scale")
            whole = _rescaled(tensor, _tensor(folder, scale)) if scale else tensor
            state |= zip(names, whole.chunk(len(names)), strict=True)
    return {name: tensor for name, tensor in state.items() if not name.endswith(".key.bias")}  # zeros: keys have no bias


def _rescaled(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The numbers; `scale`: (rows,) or ()."""
    by_row = scale.view(-1, *[1] * (integers.dim() - 1)) if scale.dim() else scale
    return integers.float() / by_row.float()


def openai_names(name: str) -> tuple[str, ...]:
    """openai-whisper's names of what a variable holds; none of a scale, of a setting, of the output, which is the embedding again."""
    match = _VARIABLE.fullmatch(name)
    if not match or match[3] == "projection":
        return ()
    side, layer, module, kind = match.groups()
    if kind == "encodings":
        return (f"{side}.positional_embedding",)
    inside = [f"{side}.blocks.{layer}.{part}" for part in _LAYER.get(module, (module,))]
    modules = inside if layer else [_MODULES.get(f"{side}/{module}", f"{side}/{module}")]
    return tuple(f"{each}.{_KINDS.get(kind, kind)}" for each in modules)


def read_alignment_heads(folder: Path) -> tuple[tuple[int, int], ...] | None:
    """(layer, head) of the decoder's heads that follow the sound, from config.json; None when it does not say."""
    return told_heads(folder / "config.json")


def tells_heads(folder: Path) -> bool:
    """Whether config.json names heads, all of which the decoder has: CTranslate2 crashes for others. Raises ConfigurationError."""
    heads = read_alignment_heads(folder)
    if not heads:
        return False
    told = read_dimensions(folder)
    return all(layer < told["n_text_layer"] and head < told["n_text_head"] for layer, head in heads)


def variables(folder: Path) -> dict[str, Variable]:
    """What model.bin holds, by name; aliases are names too. Raises ConfigurationError when it is cut short or another model's."""
    path = folder / _WEIGHTS
    try:
        with path.open("rb") as file:
            _check(path, (*_numbers(file, "<I"), _string(file), *_numbers(file, "<I")))
            found = dict(_variables(file, path.stat().st_size))
            (count,) = _numbers(file, "<I")
            return found | {_string(file): found[_string(file)] for _ in range(count)}
    except (OSError, EOFError, IndexError, KeyError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read, it may be cut short ({str(error)[:120] or 'it ends too early'}); get it again"
        raise ConfigurationError(message, param="model") from None


def _check(path: Path, told: tuple[int | str, ...]) -> None:
    if told != _WHISPER:
        message = f"{path.parent} holds no Whisper model of CTranslate2 4's: its {_WEIGHTS} says {told}, not {_WHISPER}"
        raise ConfigurationError(message, param="model")


def _variables(file: BinaryIO, end: int) -> Iterator[tuple[str, Variable]]:
    (count,) = _numbers(file, "<I")
    for _ in range(count):
        name = _string(file)
        (rank,) = _numbers(file, "<B")
        shape = _numbers(file, f"<{rank}I")
        dtype, size = _numbers(file, "<BI")
        variable = Variable(shape, _DTYPES[dtype], file.tell(), size)
        if file.seek(size, 1) > end or size != variable.dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise EOFError(f"{name} has not the {size} bytes it should")
        yield name, variable


def _numbers(file: BinaryIO, layout: str) -> tuple[int, ...]:
    read = file.read(struct.calcsize(layout))
    if len(read) < struct.calcsize(layout):
        raise EOFError
    return struct.unpack(layout, read)


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "<H")
    return bytes(_numbers(file, f"<{length}B")[:-1]).decode()


def _tensor(folder: Path, variable: Variable) -> torch.Tensor:
    """A copy: variables are not aligned in the file."""
    data = np.fromfile(folder / _WEIGHTS, np.uint8, variable.size, offset=variable.start)
    return torch.from_numpy(data).view(variable.dtype).reshape(variable.shape)
