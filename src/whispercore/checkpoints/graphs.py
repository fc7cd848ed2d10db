"""Reads the folders of ONNX graphs that `onnx_export` and `sherpa_export` write: openai-whisper's dimensions and
tensors.

The weights have openai-whisper's names, with these exceptions. NAME.T is a transposed matrix. qkv holds queries, keys
and values, stacked by rows. NAME.16 is the embedding table in 16 bits. A matrix in 8 bits is NAME_quantized (rows,
blocks, numbers), with NAME_scale and NAME_zero_point (rows, blocks): number = (integer - zero point) * scale. Folders
made by earlier versions hold NAME.T_quantized, with one scale and one zero point per column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError
from .tensors import State

if TYPE_CHECKING:
    import onnx
    import torch

_ENCODER, _DECODER = "encoder.onnx", "decoder.onnx"
_METADATA_KEY = {"onnx": "dims", "sherpa": "sot_sequence"}
"""For each engine, a metadata key that only its graphs have."""
_PARTS = ("query", "key", "value")
_EMBEDDING = "decoder.token_embedding.weight"


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder with ONNX graphs of an encoder or a decoder, by any exporter."""
    return any(file.is_file() for pattern in ("*coder*.onnx", "onnx/*coder*.onnx") for file in path.glob(pattern))


def is_for(folder: Path, engine: str) -> bool:
    """Whether the graphs have the form that engine onnx or sherpa runs.

    Raises ConfigurationError when one is broken.
    """
    return (folder / _DECODER).is_file() and _METADATA_KEY[engine] in read_metadata(folder)


def read_metadata(folder: Path) -> dict[str, str]:
    """The metadata of the encoder's graph. Raises ConfigurationError when the graph cannot be read."""
    return _metadata(_graph(folder / _ENCODER))


def weight_files(folder: Path) -> list[Path]:
    """All files of the folder: a graph may keep its weights in a file of any name."""
    return sorted(filter(Path.is_file, folder.iterdir()))


def read_dimensions(folder: Path) -> dict[str, int]:
    """The dimensions, by the names of openai-whisper's `ModelDimensions`.

    Raises ConfigurationError for other exporters' graphs and broken ones.
    """
    encoder, decoder = _graphs(folder)
    stored = _stored(folder, encoder) | _stored(folder, decoder)
    try:
        width, n_mels, _ = stored["encoder.conv1.weight"].shape
        n_audio_ctx, _ = stored["encoder.positional_embedding"].shape
        n_vocab, text_width = stored[_EMBEDDING].shape
        n_text_ctx, _ = stored["decoder.positional_embedding"].shape
        heads = [next(_heads(graph)) for graph in (encoder, decoder)]
    except (KeyError, ValueError, StopIteration):
        raise ConfigurationError(_unsupported(folder), param="model") from None
    return {
        "n_mels": n_mels,
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": width,
        "n_audio_head": heads[0],
        "n_audio_layer": _layers(stored, "encoder"),
        "n_vocab": n_vocab,
        "n_text_ctx": n_text_ctx,
        "n_text_state": text_width,
        "n_text_head": heads[1],
        "n_text_layer": _layers(stored, "decoder"),
    }


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors by openai-whisper's names, mapped from the files.

    When some are in 8 bits, all are converted to float32.

    Raises ConfigurationError for other exporters' graphs and broken ones.
    """
    encoder, decoder = _graphs(folder)
    stored = _stored(folder, encoder) | _stored(folder, decoder)
    try:
        weights = _rescaled(stored) if any(name.endswith("_quantized") for name in stored) else stored.items()
        return {name: part for stored_name, tensor in weights for name, part in openai_parts(stored_name, tensor)}
    except KeyError:
        raise ConfigurationError(_unsupported(folder), param="model") from None


def openai_parts(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The openai-whisper tensors that a stored tensor holds, with their names, as views.

    The graph's own shapes and indices yield nothing.
    """
    if not name.startswith(("encoder.", "decoder.")):
        return
    name, whole = (name.removesuffix(".T"), tensor.T) if name.endswith(".T") else (name, tensor)
    if ".qkv." not in name:
        yield name, whole
        return
    for part, rows in zip(_PARTS, whole.chunk(len(_PARTS)), strict=True):
        if (part, whole.dim()) != ("key", 1):  # zeros: keys have no bias
            yield name.replace("qkv", part), rows


def read_alignment_heads(folder: Path) -> tuple[tuple[int, int], ...] | None:
    """(layer, head) of the decoder's heads that follow the audio, from its metadata; None when it has none."""
    heads = json.loads(_metadata(_graph(folder / _DECODER)).get("alignment_heads", "[]"))
    return tuple((int(layer), int(head)) for layer, head in heads) or None


def _rescaled(stored: State) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in float32.

    The output's 8-bit matrix is left out: the embedding table holds the same weights in 16 bits.
    """
    for name, tensor in stored.items():
        whole = name.removesuffix("_quantized")
        if whole == name and not name.endswith(("_scale", "_zero_point")):
            yield name, tensor.float()
        elif whole not in (name, _EMBEDDING, f"{_EMBEDDING}.T"):
            scale, zero = (stored[f"{whole}_{part}"].float() for part in ("scale", "zero_point"))
            if scale.dim() > 1:  # one scale per block
                yield whole, ((tensor.float() - zero[..., None]) * scale[..., None]).flatten(1)
            else:
                yield whole, (tensor.float() - zero) * scale


def _layers(stored: State, side: str) -> int:
    return len({name.split(".")[2] for name in stored if name.startswith(f"{side}.blocks.") and ".mlp_ln." in name})


def _heads(graph: onnx.ModelProto) -> Iterator[int]:
    """The number of heads of each attention node."""
    for node in graph.graph.node:
        yield from (attribute.i for attribute in node.attribute if attribute.name == "num_heads")


def _metadata(graph: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in graph.metadata_props}


def _graphs(folder: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Encoder and decoder, without their external data. Raises ConfigurationError."""
    if not all((folder / name).is_file() for name in (_ENCODER, _DECODER)):
        raise ConfigurationError(_unsupported(folder), param="model")
    return _graph(folder / _ENCODER), _graph(folder / _DECODER)


def _graph(path: Path) -> onnx.ModelProto:
    try:
        import onnx  # here: the other forms work without it
        from google.protobuf.message import DecodeError
    except ImportError as error:
        message = f"{path.parent} holds ONNX graphs, which need a package to read ({error}); run: pip install -r requirements-onnx.txt"
        raise ConfigurationError(message, param="model") from error
    try:
        graph = onnx.load(path, load_external_data=False)
        if not graph.graph.node:
            raise EOFError("it holds no graph")
    except (OSError, EOFError, DecodeError) as error:
        raise ConfigurationError(_broken(path, error), param="model") from None
    return graph


def _stored(folder: Path, graph: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """A graph's tensors by their names in it, the embedding table without .16; large ones are mapped.

    Raises ConfigurationError.
    """
    import torch  # here: engine ct2 works without both
    from onnx import numpy_helper

    open_map = cache(lambda path: np.memmap(path, np.uint8, mode="c"))  # one map per file: each keeps the file open
    tensors: dict[str, torch.Tensor] = {}
    for initializer in graph.graph.initializer:
        external = {entry.key: entry.value for entry in initializer.external_data}
        path = folder / Path(external.get("location", "")).name  # a graph cannot point outside its folder
        try:
            array = (
                _mapped(initializer, open_map(path), int(external.get("offset", 0)))
                if external
                else numpy_helper.to_array(initializer).copy()
            )
            tensors[initializer.name.removesuffix(".16")] = torch.from_numpy(array)
        except (OSError, ValueError) as error:
            raise ConfigurationError(_broken(path, error), param="model") from None
        except (KeyError, TypeError):  # a type of number that PyTorch or NumPy lacks
            raise ConfigurationError(_unsupported(folder), param="model") from None
    return tensors


def _mapped(stored: onnx.TensorProto, data: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.generic]:
    """A tensor in a file's bytes from `start` on, as a view. Raises ValueError when the bytes end too early."""
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(stored.data_type)
    end = start + dtype.itemsize * int(np.prod(stored.dims, dtype=np.int64))
    if end > len(data):
        raise ValueError(f"it has {len(data)} bytes, and {stored.name} ends at {end}")
    array: npt.NDArray[np.generic] = data[start:end].view(dtype).reshape(tuple(stored.dims))
    return array


def _broken(path: Path, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return f"{path} cannot be read, it may be cut short ({reason}); make its folder again, or delete it when it lies in converted_dir"


def _unsupported(folder: Path) -> str:
    return (
        f"{folder} holds ONNX graphs of another form, such as Optimum's or sherpa-onnx's own, from which no weights are read: name what "
        "they were made from, OpenAI's or Hugging Face's (clients/download_model.py), or its conversion by clients/convert_model.py"
    )
