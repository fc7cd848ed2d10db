"""Silero's voice activity network (v6, from the faster-whisper package), rebuilt in two parts that need a fifth of the
CPU time.

The original encodes frames and updates its recurrent state in one step, so a frame that is needed with two states is
encoded twice. Here the Fourier transform is an FFT instead of a convolution, the four convolutions over a frame's four
spectra are dense layers, and the recurrent layer runs several states as a batch. The results are the same.
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

State = tuple[Samples, Samples]
"""A batch of b LSTM states: h and c, shape (1, b, 128) each."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The window of the Fourier transform and two onnxruntime sessions. Any number of threads may run them."""

    window: Samples
    encoder: Any
    recurrent: Any

    def features(self, frames: Samples) -> Samples:
        """Frames, each after the 64 samples before it, shape (n, 576) → the LSTM's input, shape (n, 128)."""
        padded = np.pad(frames, ((0, 0), (0, CONTEXT)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(self.window), axis=1)[:, ::_HOP]
        # SciPy transforms several rows at a time. NumPy takes ten times as long, and PyTorch's idle threads busy-wait.
        spectra = scipy.fft.rfft(windows * self.window)
        magnitudes = np.sqrt(np.square(spectra.real) + np.square(spectra.imag))
        features: Samples = self.encoder.run(None, {"x": magnitudes.reshape(len(frames), -1)})[0]
        return features

    def probabilities(self, features: Samples, state: State) -> tuple[Samples, State]:
        """Features in order, shape (n, 128), and b states → speech probabilities, shape (n, b), and the new states."""
        h, c = state
        repeated = np.repeat(features[:, None], h.shape[1], axis=1)
        probabilities, h, c = self.recurrent.run(None, {"x": repeated, "h": h, "c": c})
        return probabilities.reshape(len(features), -1), (h, c)


def initial_state() -> State:
    """A batch of one state, before any audio."""
    return np.zeros((1, 1, FEATURES), np.float32), np.zeros((1, 1, FEATURES), np.float32)


@lru_cache(maxsize=1)
def network() -> Network:
    """The process's only copy of the network. Raises ConfigurationError when faster-whisper is not installed."""
    package = importlib.util.find_spec("faster_whisper")  # importing it would take seconds
    if package is None or package.origin is None:
        raise ConfigurationError("the voice activity detector is missing: pip install 'faster-whisper>=1.2.1'")
    weights = _weights((Path(package.origin).parent / "assets" / "silero_vad_v6.onnx").read_bytes())
    return Network(weights[_STFT][0, 0], _session(_encoder(weights)), _session(_recurrent(weights)))


def _weights(model: bytes) -> dict[str, Samples]:
    """The model's weights by name.

    Appending a second protobuf message merges it into the model and makes the weights its outputs.
    """
    names = [_STFT, *_CONVOLUTIONS, *_LSTM, _OUT, _OUT_BIAS]
    session = _session(model + _field(7, b"".join(_field(12, _field(1, name)) for name in names)))
    h, c = initial_state()
    values = session.run(names, {"input": np.zeros((1, CONTEXT + FRAME), np.float32), "h": h, "c": c})
    return dict(zip(names, values, strict=True))


def _encoder(weights: dict[str, Samples]) -> bytes:
    """Four dense layers, (n, 4 * 129) to (n, 128)."""
    nodes, tensors, positions = [], {}, _SPECTRA
    for layer, stride in enumerate(_STRIDES):
        kernel, bias = (weights[name] for name in _CONVOLUTIONS[2 * layer : 2 * layer + 2])
        tensors[f"w{layer}"] = _dense(kernel, positions, stride)
        positions = -(-positions // stride)
        tensors[f"b{layer}"] = np.tile(bias, positions)
        nodes += [
            _node("Gemm", [f"x{layer}" if layer else "x", f"w{layer}", f"b{layer}"], [f"y{layer}"]),
            _node("Relu", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    return _model(nodes, tensors, ["x"], [f"x{len(_STRIDES)}"])


def _dense(kernel: Samples, positions: int, stride: int) -> Samples:
    """A convolution, padded by one, kernel (out, in, 3), as a matrix (positions * in, positions / stride * out)."""
    out, channels, taps = kernel.shape
    outputs = -(-positions // stride)
    matrix = np.zeros((positions, channels, outputs, out), np.float32)
    for output in range(outputs):
        for tap in range(taps):
            if 0 <= (position := output * stride + tap - 1) < positions:
                matrix[position, :, output] = kernel[:, :, tap].T
    return matrix.reshape(positions * channels, outputs * out)


def _recurrent(weights: dict[str, Samples]) -> bytes:
    """The LSTM and the output layer, (n, b, 128) to (n, 1, b, 1)."""
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
    """A serialized ONNX model of float tensors, written by hand to avoid the onnx package (31 MB)."""
    graph = [_field(1, node) for node in nodes] + [_field(2, "silero")]
    for name, tensor in tensors.items():
        sizes = b"".join(_field(1, size) for size in tensor.shape)
        graph.append(_field(5, sizes + _field(2, 1) + _field(8, name) + _field(9, np.ascontiguousarray(tensor).tobytes())))
    float_type = _field(2, _field(1, _field(1, 1)))
    graph += [_field(11, _field(1, name) + float_type) for name in inputs]
    graph += [_field(12, _field(1, name) + float_type) for name in outputs]
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
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # built into onnxruntime since 1.31
    import onnxruntime  # here: it takes 0.1 s, and only voice detection needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"], sess_options=options)
