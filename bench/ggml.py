"""Checkpoints in whisper.cpp's ggml format with q8_0 weights, as its `convert-pt-to-ggml.py` and `quantize` write them.

The layout follows whisper.cpp's loader (src/whisper.cpp, whisper_model_load): magic, dimensions, mel filters, vocabulary, tensors.
"""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
import whisper
from whisper.audio import N_FFT, mel_filters

from whispercore.checkpoints import load_checkpoint

from .work import SCRATCH

MAGIC = 0x67676D6C
F32, F16, Q8_0 = 0, 1, 8
MOSTLY_Q8_0, QUANTIZATION_VERSION = 7, 2
BLOCK = 32
"""The number of weights that share a scale in q8_0."""
EOT = "decoder.token_embedding.weight"


def converted(checkpoint: Path, *, endless: bool) -> Path:
    """The converted file in `SCRATCH`. Written once. For `endless` see `write`."""
    path = SCRATCH / f"{checkpoint.stem}{'-endless' if endless else ''}.ggml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            write(checkpoint, file, endless=endless)
        unfinished.rename(path)
    return path


def write(checkpoint: Path, file: BinaryIO, *, endless: bool) -> None:
    """Write the checkpoint. `endless`: its end token gets zero weights, so that whisper.cpp decodes up to its token limit."""
    loaded = load_checkpoint(checkpoint)
    dims = loaded.dims
    audio = (dims.n_vocab, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
    text = (dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer, dims.n_mels)
    file.write(struct.pack("12i", MAGIC, *audio, *text, MOSTLY_Q8_0 + 1000 * QUANTIZATION_VERSION))
    filters = mel_filters("cpu", dims.n_mels).numpy().astype(np.float32)
    file.write(struct.pack("2i", dims.n_mels, N_FFT // 2 + 1) + filters.tobytes())
    _vocabulary(file, multilingual=dims.n_vocab >= 51_865)
    for name, tensor in loaded.state.items():
        _tensor(file, name, tensor.float(), endless=endless)


def _vocabulary(file: BinaryIO, *, multilingual: bool) -> None:
    """The bytes of the text tokens; whisper.cpp adds the special tokens itself."""
    name = "multilingual" if multilingual else "gpt2"
    lines = (Path(whisper.__file__).parent / "assets" / f"{name}.tiktoken").read_text().splitlines()
    file.write(struct.pack("i", len(lines)))
    for line in lines:
        token = base64.b64decode(line.split()[0])
        file.write(struct.pack("i", len(token)) + token)


def _tensor(file: BinaryIO, name: str, tensor: torch.Tensor, *, endless: bool) -> None:
    values = tensor.numpy().copy()
    if name == EOT and endless:
        values[50_257 if len(values) >= 51_865 else 50_256] = 0.0
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values.reshape(-1, 1)
    kind, data = _encoded(name, values)
    shape, key = values.shape[::-1], name.encode()
    file.write(struct.pack("3i", len(shape), len(key), kind) + struct.pack(f"{len(shape)}i", *shape) + key + data)


def _encoded(name: str, values: npt.NDArray[np.float32]) -> tuple[int, bytes]:
    """The tensor's type and bytes: matrices in q8_0, convolutions in fp16, all others in float32."""
    if values.ndim == 3:
        return F16, values.astype(np.float16).tobytes()
    if values.ndim < 2 or "positional" in name or "bias" in name:
        return F32, values.astype(np.float32).tobytes()
    return Q8_0, q8_0(values)


def q8_0(values: npt.NDArray[np.float32]) -> bytes:
    """Quantize in blocks of 32 weights: an fp16 scale and 32 signed bytes each (ggml's block_q8_0)."""
    blocks = values.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    rounded = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0).round().astype(np.int8)
    packed = np.zeros(len(blocks), dtype=[("scale", "<f2"), ("weights", "i1", BLOCK)])
    packed["scale"], packed["weights"] = scales[:, 0].astype(np.float16), rounded
    return packed.tobytes()
