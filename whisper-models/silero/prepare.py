#!/usr/bin/env python3
"""Makes the two networks of src/whispercore/audio/silero_vad_v6/ from Silero's voice activity detector, version 6.

python whisper-models/silero/prepare.py MODEL.onnx [FOLDER]

MODEL.onnx is silero_vad_v6.onnx, which faster-whisper 1.2 has in its folder `assets`: one step of 512 samples with the 64
samples before them. Needs the packages onnx and numpy. Silero VAD: https://github.com/snakers4/silero-vad, MIT licence.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whispercore.types import Samples

FOLDER = Path(__file__).parents[2] / "src" / "whispercore" / "audio" / "silero_vad_v6"
FEATURES = 128
SPECTRA, BINS = 4, 129
"""A frame's spectra, and the frequencies of each."""
STRIDES = (1, 2, 2, 1)
"""Of the four convolutions over a frame's spectra."""
LSTM = ("onnx::LSTM_209", "onnx::LSTM_210", "onnx::LSTM_211")
"""The names of the LSTM's weights in the model: of the input, of the state, biases."""

Weights = Mapping[str, Samples]
Shape = Sequence[int | str]


def encoder(weights: Weights) -> onnx.ModelProto:
    """Magnitudes of the spectra, shape (n, 4 * 129) → features, shape (n, 128): the convolutions as four dense layers.

    The original runs the convolutions for one frame at a time. Dense layers take any number of frames at once.
    """
    nodes, tensors, positions = [], {}, SPECTRA
    for layer, stride in enumerate(STRIDES):
        name = f"encoder.conv_layers.{layer}"
        tensors[f"w{layer}"] = dense(weights[f"{name}.weight"], positions, stride)
        positions = -(-positions // stride)
        tensors[f"b{layer}"] = np.tile(weights[f"{name}.bias"], positions)
        nodes += [
            helper.make_node("Gemm", [f"x{layer}" if layer else "x", f"w{layer}", f"b{layer}"], [f"y{layer}"]),
            helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    return model(nodes, tensors, {"x": ["n", SPECTRA * BINS]}, {f"x{len(STRIDES)}": ["n", FEATURES]})


def dense(kernel: Samples, positions: int, stride: int) -> Samples:
    """A convolution, padded by one, kernel (out, in, 3), as a matrix (positions * in, positions / stride * out)."""
    out, channels, taps = kernel.shape
    outputs = -(-positions // stride)
    matrix = np.zeros((positions, channels, outputs, out), np.float32)
    for output in range(outputs):
        for tap in range(taps):
            if 0 <= (position := output * stride + tap - 1) < positions:
                matrix[position, :, output] = kernel[:, :, tap].T
    return matrix.reshape(positions * channels, outputs * out)


def recurrent(weights: Weights) -> onnx.ModelProto:
    """The LSTM and the output layer: features (n, b, 128) and b states → probabilities (n, 1, b, 1) and the new states."""
    tensors = {name: weights[name] for name in LSTM}
    tensors |= {"w": weights["decoder.conv1d.weight"][0], "b": weights["decoder.conv1d.bias"]}
    nodes = [
        helper.make_node("LSTM", ["x", *LSTM, "", "h", "c"], ["y", "h1", "c1"], hidden_size=FEATURES),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["u"]),
        helper.make_node("Add", ["u", "b"], ["v"]),
        helper.make_node("Sigmoid", ["v"], ["p"]),
    ]
    state: Shape = [1, "b", FEATURES]
    return model(nodes, tensors, {"x": ["n", "b", FEATURES], "h": state, "c": state}, {"p": ["n", 1, "b", 1], "h1": state, "c1": state})


def model(nodes: Sequence[onnx.NodeProto], tensors: Weights, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> onnx.ModelProto:
    """A checked model of float tensors."""
    ends = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in end.items()] for end in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.ascontiguousarray(tensor), name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, "silero_vad_v6", ends[0], ends[1], initializer=initializers)
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(made, full_check=True)
    return made


def prepare(source: Path, folder: Path) -> None:
    """Write encoder.onnx and recurrent.onnx into `folder`."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    (folder / "encoder.onnx").write_bytes(encoder(weights).SerializeToString(deterministic=True))
    (folder / "recurrent.onnx").write_bytes(recurrent(weights).SerializeToString(deterministic=True))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else FOLDER)
