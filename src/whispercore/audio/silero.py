"""Silero's voice activity network (v6, the copy inside faster-whisper), rebuilt in two parts for a fifth of the processor time.

The original analyses and remembers in one step, so that a frame heard twice is analysed twice. Here its Fourier transform, written
as a convolution, is a fast one; its four convolutions over the four spectra of a frame are dense layers; and its recurrent layer
follows several memories at once. The numbers are the same.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft

from ..errors import ConfigurationError
from ..types import Samples

FRAME = 512
CONTEXT = 64
FEATURES = 128
_HOP, _SPECTRA = 128, 4
_STRIDES = (1, 2, 2, 1)

_STFT, _OUT, _OUT_BIAS = "encoder.feature_extractor.forward_basis_buffer", "decoder.conv1d.weight", "decoder.conv1d.bias"
_CONVOLUTIONS = [f"encoder.conv_layers.{layer}.{kind}" for layer in range(len(_STRIDES)) for kind in ("weight", "bias")]
_LSTM = ["onnx::LSTM_209", "onnx::LSTM_210", "onnx::LSTM_211"]

Memory = tuple[Samples, Samples]
"""The recurrent layer's h and c, shape (1, b, 128): b memories."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Two sessions, which may be run from many threads, and the window of the Fourier transform."""

    window: Samples
    encoder: Any
    recurrent: Any

    def features(self, frames: Samples) -> Samples:
        """What there is to remember of frames with the 64 samples before each, shape (n, 576): shape (n, 128)."""
        padded = np.pad(frames, ((0, 0), (0, CONTEXT)), mode="reflect")
        pieces = np.lib.stride_tricks.sliding_window_view(padded, len(self.window), axis=1)[:, ::_HOP]
        # SciPy's transforms several rows at a time: NumPy's takes ten times as long, PyTorch's threads spin beside ours
        spectra = scipy.fft.rfft(pieces * self.window)
        magnitudes = np.sqrt(np.square(spectra.real) + np.square(spectra.imag))
        features: Samples = self.encoder.run(None, {"x": magnitudes.reshape(len(frames), -1)})[0]
        return features

    def listen(self, features: Samples, memory: Memory) -> tuple[Samples, Memory]:
        """Speech probabilities, shape (n, b), of features in a row, shape (n, 128), in the light of b memories; the memories after."""
        h, c = memory
        heard = np.repeat(features[:, None], h.shape[1], axis=1)
        probabilities, h, c = self.recurrent.run(None, {"x": heard, "h": h, "c": c})
        return probabilities.reshape(len(features), -1), (h, c)


def nothing() -> Memory:
    """One memory of nothing."""
    return np.zeros((1, 1, FEATURES), np.float32), np.zeros((1, 1, FEATURES), np.float32)


@lru_cache(maxsize=1)
def network() -> Network:
    """The one network of the process. Raises ConfigurationError when faster-whisper is not installed."""
    package = importlib.util.find_spec("faster_whisper")  # not imported: that costs seconds
    if package is None or package.origin is None:
        raise ConfigurationError("the voice activity detector is missing: pip install 'faster-whisper>=1.2.1'")
    weights = _weights((Path(package.origin).parent / "assets" / "silero_vad_v6.onnx").read_bytes())
    return Network(weights[_STFT][0, 0], _session(_encoder(weights)), _session(_recurrent(weights)))


def _weights(model: bytes) -> dict[str, Samples]:
    """The model's weights, by making them its outputs: protobuf merges messages that follow each other."""
    names = [_STFT, *_CONVOLUTIONS, *_LSTM, _OUT, _OUT_BIAS]
    session = _session(model + _field(7, b"".join(_field(12, _field(1, name)) for name in names)))
    h, c = nothing()
    values = session.run(names, {"input": np.zeros((1, CONTEXT + FRAME), np.float32), "h": h, "c": c})
    return dict(zip(names, values, strict=True))


def _encoder(weights: dict[str, Samples]) -> bytes:
    """Four dense layers, (n, 4 * 129) to (n, 128)."""
    nodes, tensors, places = [], {}, _SPECTRA
    for layer, stride in enumerate(_STRIDES):
        kernel, bias = (weights[name] for name in _CONVOLUTIONS[2 * layer : 2 * layer + 2])
        tensors[f"w{layer}"] = _dense(kernel, places, stride)
        places = -(-places // stride)
        tensors[f"b{layer}"] = np.tile(bias, places)
        nodes += [
            _node("Gemm", [f"x{layer}" if layer else "x", f"w{layer}", f"b{layer}"], [f"y{layer}"]),
            _node("Relu", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    return _model(nodes, tensors, ["x"], [f"x{len(_STRIDES)}"])


def _dense(kernel: Samples, places: int, stride: int) -> Samples:
    """A convolution over so many places, padded by one, kernel (out, in, 3), as a matrix (places * in, places // stride * out)."""
    out, channels, taps = kernel.shape
    after = -(-places // stride)
    matrix = np.zeros((places, channels, after, out), np.float32)
    for place in range(after):
        for tap in range(taps):
            if 0 <= (seen := place * stride + tap - 1) < places:
                matrix[seen, :, place] = kernel[:, :, tap].T
    return matrix.reshape(places * channels, after * out)


def _recurrent(weights: dict[str, Samples]) -> bytes:
    """The recurrent layer and the probability: (n, b, 128) to (n, 1, b, 1)."""
    tensors = {name: weights[name] for name in _LSTM} | {"w": weights[_OUT][0], "b": weights[_OUT_BIAS]}
    nodes = [
        _node("LSTM", ["x", *_LSTM, "", "h", "c"], ["y", "h1", "c1"], hidden_size=FEATURES),
        _node("Relu", ["y"], ["z"]),
        _node("MatMul", ["z", "w"], ["u"]),
        _node("Add", ["u", "b"], ["v"]),
        _node("Sigmoid", ["v"], ["p"]),
    ]
    return _model(nodes, tensors, ["x", "h", "c"], ["p", "h1", "c1"])


def _model(nodes: Iterable[bytes], tensors: dict[str, Samples], inputs: Iterable[str], outputs: Iterable[str]) -> bytes:
    """A model of float tensors, its fields numbered as in onnx.proto: the onnx package, 31 MB, is not worth it."""
    graph = [_field(1, node) for node in nodes] + [_field(2, "silero")]
    for name, tensor in tensors.items():
        sizes = b"".join(_field(1, size) for size in tensor.shape)
        graph.append(_field(5, sizes + _field(2, 1) + _field(8, name) + _field(9, np.ascontiguousarray(tensor).tobytes())))
    of_floats = _field(2, _field(1, _field(1, 1)))
    graph += [_field(11, _field(1, name) + of_floats) for name in inputs]
    graph += [_field(12, _field(1, name) + of_floats) for name in outputs]
    return _field(1, 8) + _field(7, b"".join(graph)) + _field(8, _field(2, 18))


def _node(operator: str, inputs: Iterable[str], outputs: Iterable[str], **integers: int) -> bytes:
    names = [_field(1, name) for name in inputs] + [_field(2, name) for name in outputs]
    attributes = [_field(5, _field(1, name) + _field(3, value) + _field(20, 2)) for name, value in integers.items()]
    return b"".join([*names, _field(4, operator), *attributes])


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _session(model: bytes) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.31 has some built in
    import onnxruntime  # costs 0.1 s: only when the filter is used

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"], sess_options=options)
