"""Folders of ONNX graphs, as `onnx_export` and `sherpa_export` write them, read as openai-whisper's dimensions and tensors.

The weights keep openai-whisper's names there, but: NAME.T is a matrix transposed; qkv holds queries, keys and values, one below the other;
NAME.16 is the table of embeddings in 16 bits. A matrix in 8 bits is NAME_quantized (rows, blocks, numbers), with NAME_scale and
NAME_zero_point (rows, blocks): number = (integer - zero point) * scale. Folders made by earlier versions hold NAME.T_quantized, with a
scale and a zero point for each column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigurationError

if TYPE_CHECKING:
    import onnx

_ENCODER, _DECODER = "encoder.onnx", "decoder.onnx"
_FORMS = {"onnx": "dims", "sherpa": "sot_sequence"}
"""What only the graphs for an engine tell of themselves."""
_PARTS = ("query", "key", "value")
_EMBEDDING = "decoder.token_embedding.weight"

Stored = Mapping[str, torch.Tensor]


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder of graphs of an encoder and a decoder, whoever wrote them."""
    return any(file.is_file() for pattern in ("*coder*.onnx", "onnx/*coder*.onnx") for file in path.glob(pattern))


def is_for(folder: Path, engine: str) -> bool:
    """Whether the graphs have the form that engine onnx or sherpa runs. Raises ConfigurationError when one is broken."""
    return (folder / _DECODER).is_file() and _FORMS[engine] in told(folder)


def told(folder: Path) -> dict[str, str]:
    """What graphs tell of themselves: the metadata of the encoder. Raises ConfigurationError when there is none to read."""
    return _metadata(_graph(folder / _ENCODER))


def weight_files(folder: Path) -> list[Path]:
    """All of its files: weights may lie beside a graph under any name."""
    return sorted(filter(Path.is_file, folder.iterdir()))


def read_dimensions(folder: Path) -> dict[str, int]:
    """The dimensions, by the names of openai-whisper's `ModelDimensions`. Raises ConfigurationError for others' graphs and broken ones."""
    encoder, decoder = _graphs(folder)
    known = _stored(folder, encoder) | _stored(folder, decoder)
    try:
        width, n_mels, _ = known["encoder.conv1.weight"].shape
        n_audio_ctx, _ = known["encoder.positional_embedding"].shape
        n_vocab, text_width = known[_EMBEDDING].shape
        n_text_ctx, _ = known["decoder.positional_embedding"].shape
        heads = [next(_heads(graph)) for graph in (encoder, decoder)]
    except (KeyError, ValueError, StopIteration):
        raise ConfigurationError(_others(folder), param="model") from None
    return {
        "n_mels": n_mels,
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": width,
        "n_audio_head": heads[0],
        "n_audio_layer": _layers(known, "encoder"),
        "n_vocab": n_vocab,
        "n_text_ctx": n_text_ctx,
        "n_text_state": text_width,
        "n_text_head": heads[1],
        "n_text_layer": _layers(known, "decoder"),
    }


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors by openai-whisper's names, mapped from the files; where some are in 8 bits, all as the float32 they stand for.

    Raises ConfigurationError for others' graphs and broken ones.
    """
    encoder, decoder = _graphs(folder)
    stored = _stored(folder, encoder) | _stored(folder, decoder)
    try:
        weights = _rescaled(stored) if any(name.endswith("_quantized") for name in stored) else stored.items()
        return {name: part for stored_name, tensor in weights for name, part in openai_parts(stored_name, tensor)}
    except KeyError:
        raise ConfigurationError(_others(folder), param="model") from None


def openai_parts(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A stored tensor as openai-whisper's, with their names: nothing is copied. A shape or an index of the graph's is none."""
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
    """(layer, head) of the decoder's heads that follow the sound, from its metadata; None when these do not say."""
    heads = json.loads(_metadata(_graph(folder / _DECODER)).get("alignment_heads", "[]"))
    return tuple((int(layer), int(head)) for layer, head in heads) or None


def _rescaled(stored: Stored) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in float32, of the output's matrix that of the embeddings, which are in 16 bits."""
    for name, tensor in stored.items():
        whole = name.removesuffix("_quantized")
        if whole == name and not name.endswith(("_scale", "_zero_point")):
            yield name, tensor.float()
        elif whole not in (name, _EMBEDDING, f"{_EMBEDDING}.T"):
            scale, zero = (stored[f"{whole}_{part}"].float() for part in ("scale", "zero_point"))
            if scale.dim() > 1:  # of blocks
                yield whole, ((tensor.float() - zero[..., None]) * scale[..., None]).flatten(1)
            else:
                yield whole, (tensor.float() - zero) * scale


def _layers(known: Stored, side: str) -> int:
    return len({name.split(".")[2] for name in known if name.startswith(f"{side}.blocks.") and ".mlp_ln." in name})


def _heads(graph: onnx.ModelProto) -> Iterator[int]:
    """Of every attention."""
    for node in graph.graph.node:
        yield from (attribute.i for attribute in node.attribute if attribute.name == "num_heads")


def _metadata(graph: onnx.ModelProto) -> dict[str, str]:
    return {each.key: each.value for each in graph.metadata_props}


def _graphs(folder: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Encoder and decoder, without what lies beside them. Raises ConfigurationError."""
    if not all((folder / name).is_file() for name in (_ENCODER, _DECODER)):
        raise ConfigurationError(_others(folder), param="model")
    return _graph(folder / _ENCODER), _graph(folder / _DECODER)


def _graph(path: Path) -> onnx.ModelProto:
    try:
        import onnx  # here: other forms need no onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        message = f"{path.parent} holds ONNX graphs, to read which takes more ({error}); run: pip install -r requirements-onnx.txt"
        raise ConfigurationError(message, param="model") from error
    try:
        graph = onnx.load(path, load_external_data=False)
        if not graph.graph.node:
            raise EOFError("it holds no graph")
    except (OSError, EOFError, DecodeError) as error:
        raise ConfigurationError(_broken(path, error), param="model") from None
    return graph


def _stored(folder: Path, graph: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """What a graph holds, by its name there, the embeddings by their own; large ones mapped. Raises ConfigurationError."""
    from onnx import numpy_helper

    mapped = cache(lambda path: np.memmap(path, np.uint8, mode="c"))  # one map a file: each keeps the file open
    found = dict[str, torch.Tensor]()
    for each in graph.graph.initializer:
        place = {entry.key: entry.value for entry in each.external_data}
        path = folder / Path(place.get("location", "")).name  # in the folder, wherever a graph may point to
        try:
            array = _mapped(each, mapped(path), int(place.get("offset", 0))) if place else numpy_helper.to_array(each).copy()
            found[each.name.removesuffix(".16")] = torch.from_numpy(array)
        except (OSError, ValueError) as error:
            raise ConfigurationError(_broken(path, error), param="model") from None
        except (KeyError, TypeError):  # numbers that PyTorch or NumPy does not know
            raise ConfigurationError(_others(folder), param="model") from None
    return found


def _mapped(stored: onnx.TensorProto, data: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.generic]:
    """What lies in the bytes of a file from `start` on. Raises ValueError when they end too early."""
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


def _others(folder: Path) -> str:
    return (
        f"{folder} holds ONNX graphs of another form, such as Optimum's or sherpa-onnx's own, from which no weights are read: name what "
        "they were made from, OpenAI's or Hugging Face's (clients/download_model.py), or what clients/convert_model.py made of that"
    )
