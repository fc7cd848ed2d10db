"""Reads CTranslate2's folders of Whisper models, model.bin and config.json: openai-whisper's dimensions and tensors.

`ctranslate2.specs.model_spec.ModelSpec` writes model.bin, little-endian: the format's version; the model's name and
revision; a count of variables, each with name, shape, type, size in bytes and data; a count of aliases, each with two
names. A string is its length including the final zero, its bytes, the zero. A variable in 8 or 16 bits has a scale per
row, or a single one: number = integer / scale.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..errors import ConfigurationError
from .huggingface import read_heads

if TYPE_CHECKING:
    import torch  # engine ct2 works without it

_WEIGHTS = "model.bin"
_WHISPER = (6, "WhisperSpec", 3)
"""The format's version, the model's name and revision."""
_DTYPES = {"float32": 4, "int8": 1, "int16": 2, "int32": 4, "float16": 2, "bfloat16": 2}
"""PyTorch's names of the types, in the order of the numbers in the file, and the bytes of an element."""
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
"""The openai-whisper modules that a layer's part holds, stacked by rows."""
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
    """A variable's shape and type, and its place in the file: `start` and `size` in bytes."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int


def is_folder(path: Path) -> bool:
    """Whether `path` is a CTranslate2 folder."""
    return (path / _WEIGHTS).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The one file that holds the weights."""
    return [folder / _WEIGHTS]


def is_float(folder: Path) -> bool:
    """Whether no weight was rounded to an integer. Raises ConfigurationError when model.bin is broken."""
    return not any(name.endswith("weight_scale") for name in variables(folder))


def read_dimensions(folder: Path) -> dict[str, int]:
    """The dimensions, by the names of openai-whisper's `ModelDimensions`.

    Raises ConfigurationError when model.bin is broken.
    """
    stored = variables(folder)
    layers = {side: len({name.split("/")[1] for name in stored if name.startswith(f"{side}/layer_")} - {"layer_norm"}) for side in _SIDES}
    try:
        width, n_mels, _ = stored["encoder/conv1/weight"].shape
        n_audio_ctx, _ = stored["encoder/position_encodings/encodings"].shape
        n_text_ctx, text_width = stored["decoder/position_encodings/encodings"].shape
        n_vocab, _ = stored["decoder/embeddings/weight"].shape
        heads = {side: _integer(folder, stored[f"{side}/num_heads"]) for side in _SIDES}
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
    """The tensors by openai-whisper's names; integers are converted to float32. Raises ConfigurationError."""
    state: dict[str, torch.Tensor] = {}
    stored = variables(folder)
    for name, variable in stored.items():
        names = openai_names(name)
        if names:
            tensor, scale = _tensor(folder, variable), stored.get(f"{name}_scale")
            whole = _rescaled(tensor, _tensor(folder, scale)) if scale else tensor
            state |= zip(names, whole.chunk(len(names)), strict=True)
    return {name: tensor for name, tensor in state.items() if not name.endswith(".key.bias")}  # zeros: keys have no bias


def _rescaled(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The integers divided by their `scale`, (rows,) or ()."""
    by_row = scale.view(-1, *[1] * (integers.dim() - 1)) if scale.dim() else scale
    return integers.float() / by_row.float()


def openai_names(name: str) -> tuple[str, ...]:
    """The openai-whisper names of the tensors in a variable.

    None for scales, settings, and the output, which repeats the embedding.
    """
    match = _VARIABLE.fullmatch(name)
    if not match or match[3] == "projection":
        return ()
    side, layer, module, kind = match.groups()
    if kind == "encodings":
        return (f"{side}.positional_embedding",)
    inside = [f"{side}.blocks.{layer}.{part}" for part in _LAYER.get(module, (module,))]
    modules = inside if layer else [_MODULES.get(f"{side}/{module}", f"{side}/{module}")]
    return tuple(f"{module}.{_KINDS.get(kind, kind)}" for module in modules)


def read_alignment_heads(folder: Path) -> tuple[tuple[int, int], ...] | None:
    """(layer, head) of the decoder's heads that follow the audio, from config.json; None when it names none."""
    return read_heads(folder / "config.json")


def has_valid_heads(folder: Path) -> bool:
    """Whether config.json names alignment heads that all exist in the decoder: CTranslate2 crashes otherwise.

    Raises ConfigurationError.
    """
    heads = read_alignment_heads(folder)
    if not heads:
        return False
    dims = read_dimensions(folder)
    return all(layer < dims["n_text_layer"] and head < dims["n_text_head"] for layer, head in heads)


def variables(folder: Path) -> dict[str, Variable]:
    """The variables of model.bin by name, aliases included.

    Raises ConfigurationError when the file is cut short or of another model.
    """
    path = folder / _WEIGHTS
    try:
        with path.open("rb") as file:
            _check_header(path, (*_numbers(file, "<I"), _string(file), *_numbers(file, "<I")))
            stored = dict(_variables(file, path.stat().st_size))
            (count,) = _numbers(file, "<I")
            return stored | {_string(file): stored[_string(file)] for _ in range(count)}
    except (OSError, EOFError, IndexError, KeyError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read, it may be cut short ({str(error)[:120] or 'it ends too early'}); get it again"
        raise ConfigurationError(message, param="model") from None


def _check_header(path: Path, header: tuple[int | str, ...]) -> None:
    if header != _WHISPER:
        message = f"{path.parent} holds no Whisper model of CTranslate2 4's: its {_WEIGHTS} says {header}, not {_WHISPER}"
        raise ConfigurationError(message, param="model")


def _variables(file: BinaryIO, end: int) -> Iterator[tuple[str, Variable]]:
    (count,) = _numbers(file, "<I")
    for _ in range(count):
        name = _string(file)
        (rank,) = _numbers(file, "<B")
        shape = _numbers(file, f"<{rank}I")
        dtype, size = _numbers(file, "<BI")
        variable = Variable(shape, [*_DTYPES][dtype], file.tell(), size)
        if file.seek(size, 1) > end or size != _DTYPES[variable.dtype] * int(np.prod(shape, dtype=np.int64)):
            raise EOFError(f"{name} has not the {size} bytes it should")
        yield name, variable


def _numbers(file: BinaryIO, layout: str) -> tuple[int, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise EOFError
    return struct.unpack(layout, data)


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "<H")
    return bytes(_numbers(file, f"<{length}B")[:-1]).decode()


def _tensor(folder: Path, variable: Variable) -> torch.Tensor:
    """The variable's data, copied: variables are not aligned in the file."""
    import torch  # here: engine ct2 works without it

    data = np.fromfile(folder / _WEIGHTS, np.uint8, variable.size, offset=variable.start)
    return torch.from_numpy(data).view(getattr(torch, variable.dtype)).reshape(variable.shape)


def _integer(folder: Path, variable: Variable) -> int:
    """A variable that is one integer."""
    return int(np.fromfile(folder / _WEIGHTS, np.dtype(variable.dtype), 1, offset=variable.start)[0])
