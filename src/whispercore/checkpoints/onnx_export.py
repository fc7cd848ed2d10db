"""Exports a checkpoint as two graphs for ONNX Runtime, written node by node: the layers of openai-whisper's model.py.

Attention is ONNX Runtime's own operator, which PyTorch's exporter cannot write. Letters in the shapes: b windows, r
sequences, n new tokens, p past tokens, k positions whose logits are needed, h heads, d width of a head, a alignment
heads, V vocabulary.

encoder.onnx: mel (b, n_mels, 3000) → for each decoder layer cross_key.i, cross_value.i (b, h, 1500, d). decoder.onnx:
tokens (r, n), kept (k,) of 0 … n - 1, attend (), cross_key.i, cross_value.i (r, h, 1500, d), past_key.i, past_value.i
(r, h, p, d) → logits (r, k, V) at the kept positions, present_key.i, present_value.i (r, h, p + n, d), and, if attend
is true, attention (r, a, n, 1500): the alignment heads' scores before the softmax.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder

from ..errors import ConfigurationError
from ..tokenizer import Tokenizer
from .graph_precision import precision as precision
from .staging import staged
from .tensors import AlignmentHeads, State

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.31 sends telemetry
import onnxruntime

OPSET, IR_VERSION = 20, 10
MICROSOFT = "com.microsoft"
QUANTIZED = ("int8", "uint8")
"""8 bits: int8 is symmetric around 0, uint8 has a zero point in each block."""
BLOCK = 32
"""Numbers in a row of a matrix that share a scale. ONNX Runtime quantizes activations in the same blocks, row by row.

The few large activations that Whisper has therefore do not affect the others, and a window's result does not depend on
the rest of the batch. A single scale for the whole tensor, as in `quantize_dynamic`, costs the real base model 2 points
of WER.
"""
LIMITS = {"float32": 1e-3, "float16": 0.1}
"""The largest allowed difference from PyTorch's logits, in their standard deviations.

A larger one means a wrong export.
"""
_MOST_DIVERGENCE = 0.05
"""The largest allowed mean Kullback-Leibler divergence of the next token's probabilities in 8 bits, in nats.

The real base and tiny.en have 0.001 and 0.002. The largest difference of a logit is no criterion: rare tokens differ
much, which changes no word.
"""
_SENTENCE = " The atmosphere is evidently charged and surcharged with electricity, and we are in the middle of it."

_INT8_ACTIVATIONS = 4
"""The `accuracy_level` of MatMulNBits that computes with activations in 8 bits too."""
_LEAST_SCALE = 1e-12
Array = npt.NDArray[np.generic]


def export(dims: ModelDimensions, state: State, folder: Path, dtype: str, *, alignment_heads: AlignmentHeads) -> float:
    """Write a checkpoint's tensors as encoder.onnx and decoder.onnx into `folder`, which appears complete or not at
    all.

    `dtype`: float32, float16, int8 or uint8; the last two keep matrices in 8 bits. Returns the largest difference from
    PyTorch's logits, in standard deviations. Raises ConfigurationError when that is too large, or when the folder
    cannot be written.
    """

    def write(temporary: Path) -> None:
        write_graph(encoder(dims, state, dtype), temporary / "encoder.onnx")
        write_graph(decoder(dims, state, dtype, alignment_heads), temporary / "decoder.onnx")

    return publish(folder, write, lambda temporary: difference(dims, state, partial(_logits, *sessions(temporary)), dtype))


def publish(folder: Path, write: Callable[[Path], None], check: Callable[[Path], float]) -> float:
    """Fill a temporary folder with `write`, and move it into place unless `check` raises.

    Returns the result of `check`.
    """
    with staged(folder, "decoder.onnx") as temporary:
        temporary.mkdir()
        write(temporary)
        return check(temporary)


def encoder(dims: ModelDimensions, state: State, dtype: str) -> onnx.ModelProto:
    """The encoder, and the cross-attention keys and values of all decoder layers."""
    graph = Graph(state, dtype)
    x = graph.encoded("mel", dims.n_audio_layer, dims.n_audio_head)
    outputs = []
    for i in range(dims.n_text_layer):
        for part in ("key", "value"):
            heads = graph.heads(graph.linear(x, f"decoder.blocks.{i}.cross_attn.{part}"), dims.n_text_head)
            outputs.append(graph.output(heads, f"cross_{part}.{i}", _cross(dims, "windows")))
    mel = helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["windows", dims.n_mels, 2 * dims.n_audio_ctx])
    return graph.model("encoder", [mel], outputs, {"dims": json.dumps(asdict(dims)), "dtype": dtype})


def decoder(dims: ModelDimensions, state: State, dtype: str, alignment_heads: AlignmentHeads) -> onnx.ModelProto:
    """The decoder, for any number of new tokens after any number of past tokens."""
    graph = Graph(state, dtype)
    past = graph.add("Shape", "past_key.0", start=2, end=3)
    end = graph.add("Add", past, graph.add("Shape", "tokens", start=1, end=2))
    x, queries, presents = graph.embedded(past, end), list[str](), list[tuple[str, str]]()
    for i in range(dims.n_text_layer):
        block = f"decoder.blocks.{i}"
        parts = graph.query_key_value(graph.norm(x, f"{block}.attn_ln"), f"{block}.attn")
        attention = partial(graph.add, "MultiHeadAttention", domain=MICROSOFT, num_heads=dims.n_text_head)
        attended, *present = attention(*parts, "", "", "", f"past_key.{i}", f"past_value.{i}", outputs=3, unidirectional=1)
        x = graph.add("Add", x, graph.linear(attended, f"{block}.attn.out"))
        queries.append(graph.linear(graph.norm(x, f"{block}.cross_attn_ln"), f"{block}.cross_attn.query"))
        attended = attention(queries[-1], f"cross_key.{i}", f"cross_value.{i}")
        x = graph.feed_forward(graph.add("Add", x, graph.linear(attended, f"{block}.cross_attn.out")), block)
        presents += zip((f"present_key.{i}", f"present_value.{i}"), present, strict=True)
    logits = graph.logits(graph.norm(graph.add("Gather", x, "kept", axis=1), "decoder.ln"))
    outputs = [graph.output(logits, "logits", ["rows", "kept", dims.n_vocab], TensorProto.FLOAT)]
    outputs += [graph.output(present, name, _past(dims, "all")) for name, present in presents]
    outputs.append(graph.attention(queries, alignment_heads, dims.n_text_head))
    return graph.model("decoder", _decoder_inputs(dims, graph.element), outputs, {"alignment_heads": json.dumps(list(alignment_heads))})


def _decoder_inputs(dims: ModelDimensions, element: int) -> list[onnx.ValueInfoProto]:
    layers, value = range(dims.n_text_layer), helper.make_tensor_value_info
    return [
        value("tokens", TensorProto.INT64, ["rows", "new"]),
        value("kept", TensorProto.INT64, ["kept"]),
        value("attend", TensorProto.BOOL, []),
        *(value(f"cross_{part}.{i}", element, _cross(dims, "rows")) for i in layers for part in ("key", "value")),
        *(value(f"past_{part}.{i}", element, _past(dims, "past")) for i in layers for part in ("key", "value")),
    ]


def _cross(dims: ModelDimensions, rows: str) -> list[str | int]:
    return [rows, dims.n_text_head, dims.n_audio_ctx, dims.n_text_state // dims.n_text_head]


def _past(dims: ModelDimensions, length: str) -> list[str | int]:
    return ["rows", dims.n_text_head, length, dims.n_text_state // dims.n_text_head]


class Graph:
    """The nodes and weights of a graph under construction.

    Each method adds nodes and returns the name of the last one's output.
    """

    def __init__(self, state: State, dtype: str) -> None:
        self._state, self._nodes, self._weights = state, list[onnx.NodeProto](), dict[str, onnx.TensorProto]()
        self._quantized = dtype if dtype in QUANTIZED else None
        self._dtype = np.dtype(np.float16 if dtype == "float16" else np.float32)
        self.element = int(helper.np_dtype_to_tensor_dtype(self._dtype))

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node. Returns the name of its output, or a list of names when `outputs` is more than 1."""
        names = [f"{operator}.{len(self._nodes)}.{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, name: str, array: Array) -> str:
        """A weight or a shape under `name`. A name that exists is not added again."""
        self._weights.setdefault(name, numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def weight(self, name: str) -> str:
        """The checkpoint's tensor `name`."""
        return self.constant(name, self._array(name))

    def product(self, x: str, name: str, matrix: Array) -> str:
        """`x` times a weight (out, in), in 8 bits if the graph is quantized."""
        if self._quantized is None:
            product: str = self.add("MatMul", x, self.constant(f"{name}.T", matrix.T))
            return product
        rows, width = matrix.shape
        arrays = zip(("quantized", "scale", "zero_point"), quantized(matrix, self._quantized), strict=True)
        names = [self.constant(f"{name}_{part}", array) for part, array in arrays]
        sizes = {"N": rows, "K": width, "bits": 8, "block_size": BLOCK}
        quantized_product: str = self.add("MatMulNBits", x, *names, domain=MICROSOFT, accuracy_level=_INT8_ACTIVATIONS, **sizes)
        return quantized_product

    def _array(self, name: str) -> Array:
        array: Array = self._state[name].float().numpy().astype(self._dtype)
        return array

    def linear(self, x: str, name: str) -> str:
        """A linear layer; key projections have no bias."""
        product = self.product(x, f"{name}.weight", self._array(f"{name}.weight"))
        return self.add("Add", product, self.weight(f"{name}.bias")) if f"{name}.bias" in self._state else product

    def query_key_value(self, x: str, name: str) -> list[str]:
        """Queries, keys and values of self-attention from a single matrix product."""
        weights = np.concatenate([self._array(f"{name}.{part}.weight") for part in ("query", "key", "value")])
        query, value = self._array(f"{name}.query.bias"), self._array(f"{name}.value.bias")
        bias = np.concatenate([query, np.zeros_like(query), value])
        product = self.product(x, f"{name}.qkv.weight", weights)
        added = self.add("Add", product, self.constant(f"{name}.qkv.bias", bias))
        parts: list[str] = self.add("Split", added, outputs=3, axis=-1, num_outputs=3)
        return parts

    def norm(self, x: str, name: str) -> str:
        """Layer normalisation."""
        normed: str = self.add("LayerNormalization", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), epsilon=1e-5)
        return normed

    def feed_forward(self, x: str, block: str) -> str:
        """The block's feed-forward layer with its residual connection."""
        inner = self.add("Gelu", self.linear(self.norm(x, f"{block}.mlp_ln"), f"{block}.mlp.0"))
        summed: str = self.add("Add", x, self.linear(inner, f"{block}.mlp.2"))
        return summed

    def heads(self, x: str, count: int) -> str:
        """(r, n, h d) → (r, h, n, d)."""
        shaped = self.add("Reshape", x, self.constant("by heads", np.array([0, 0, count, -1])))
        transposed: str = self.add("Transpose", shaped, perm=[0, 2, 1, 3])
        return transposed

    def slice(self, x: str, start: str, end: str, axis: int) -> str:
        """The positions from `start` (1,) up to `end` (1,), exclusive, along an axis."""
        sliced: str = self.add("Slice", x, start, end, self.constant(f"axis {axis}", np.array([axis])))
        return sliced

    def stack(self, layers: Sequence[str]) -> str:
        """Layers (…) → (l, …)."""
        front = self.constant("axis 0", np.array([0]))
        stacked: str = self.add("Concat", *(self.add("Unsqueeze", layer, front) for layer in layers), axis=0)
        return stacked

    def encoded(self, mel: str, layers: int, heads: int) -> str:
        """A log-mel spectrogram (b, n_mels, 2 t) → the encoder's output (b, t, h d)."""
        x = self.add("Cast", mel, to=self.element)
        for name, stride in (("conv1", 1), ("conv2", 2)):
            weights = self.weight(f"encoder.{name}.weight"), self.weight(f"encoder.{name}.bias")
            x = self.add("Gelu", self.add("Conv", x, *weights, kernel_shape=[3], pads=[1, 1], strides=[stride]))
        x = self.add("Transpose", x, perm=[0, 2, 1])
        begin, length = self.constant("axis 0", np.array([0])), self.add("Shape", x, start=1, end=2)
        x = self.add("Add", x, self.slice(self.weight("encoder.positional_embedding"), begin, length, 0))
        for i in range(layers):
            block = f"encoder.blocks.{i}"
            parts = self.query_key_value(self.norm(x, f"{block}.attn_ln"), f"{block}.attn")
            attended = self.add("MultiHeadAttention", *parts, domain=MICROSOFT, num_heads=heads)
            x = self.feed_forward(self.add("Add", x, self.linear(attended, f"{block}.attn.out")), block)
        return self.norm(x, "encoder.ln_post")

    def embedded(self, begin: str, end: str) -> str:
        """The embeddings (r, n, h d) of `tokens` at the positions from `begin` (1,) up to `end` (1,), exclusive."""
        embedding = "decoder.token_embedding.weight"
        if self._quantized:  # the table is in 16 bits, besides the quantized output matrix
            table = self.constant(f"{embedding}.16", self._array(embedding).astype(np.float16))
            vectors = self.add("Cast", self.add("Gather", table, "tokens"), to=self.element)
        else:
            vectors = self.add("Gather", self.weight(embedding), "tokens")
        placed: str = self.add("Add", vectors, self.slice(self.weight("decoder.positional_embedding"), begin, end, 0))
        return placed

    def logits(self, x: str) -> str:
        """(r, k, V) in float32. The output shares the embedding table, except in quantized graphs."""
        embedding = "decoder.token_embedding.weight"
        if self._quantized:
            return self.product(x, embedding, self._array(embedding))
        table = self.add("Transpose", self.weight(embedding), perm=[1, 0])
        logits: str = self.add("Cast", self.add("MatMul", x, table), to=TensorProto.FLOAT)
        return logits

    def attention(self, queries: Sequence[str], alignment_heads: AlignmentHeads, count: int) -> onnx.ValueInfoProto:
        """The output `attention`: the alignment heads' scores (r, a, n, 1500), ordered by layer, if `attend` is true;
        else empty."""
        shape = helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["rows", "heads", "new", "steps"])
        self.add("Constant", value=numpy_helper.from_array(np.zeros((0, 0, 0, 0), np.float32)))
        nothing = helper.make_graph([self._nodes.pop()], "nothing", [], [shape])
        nothing.node[0].output[0] = "attention"
        before, weights = len(self._nodes), []
        for layer in sorted({layer for layer, _ in alignment_heads}):
            chosen = self.constant(f"heads.{layer}", np.array([head for of, head in alignment_heads if of == layer]))
            query = self.add("Gather", self.heads(queries[layer], count), chosen, axis=1)
            key = self.add("Transpose", self.add("Gather", f"cross_key.{layer}", chosen, axis=1), perm=[0, 1, 3, 2])
            width = self._state["decoder.ln.weight"].shape[0] // count
            scaled = self.add("Mul", query, self.constant("scale", np.array(width**-0.5, self._dtype)))
            weights.append(self.add("MatMul", scaled, key))
        self.add("Cast", self.add("Concat", *weights, axis=1), to=TensorProto.FLOAT)
        nodes = self._nodes[before:]
        del self._nodes[before:]
        nodes[-1].output[0] = "attention"
        attending = helper.make_graph(nodes, "attending", [], [shape])
        self._nodes.append(helper.make_node("If", ["attend"], ["attention"], then_branch=attending, else_branch=nothing))
        return shape

    def output(self, name: str, public: str, shape: list[str | int], element: int | None = None) -> onnx.ValueInfoProto:
        """Declare the node output `name` as the graph's output `public`."""
        self._nodes.append(helper.make_node("Identity", [name], [public]))
        return helper.make_tensor_value_info(public, element or self.element, shape)

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="whispercore")
        helper.set_model_props(model, metadata)
        return model


def quantized(matrix: Array, dtype: str) -> tuple[Array, Array, Array]:
    """Quantize a weight (out, in) by blocks to 8 bits: integers uint8 (out, blocks, BLOCK), scales and zero points
    (out, blocks).

    number = (integer - zero point) * scale.
    """
    blocks = matrix.astype(np.float32).reshape(len(matrix), -1, BLOCK)
    least, most = blocks.min(axis=2, initial=0.0), blocks.max(axis=2, initial=0.0)
    if dtype == "int8":
        scale = np.maximum(most, -least) / 127
        zero = np.full_like(scale, 128)
    else:
        scale = (most - least) / 255
        zero = np.round(-least / np.maximum(scale, _LEAST_SCALE))
    scale = np.maximum(scale, _LEAST_SCALE)
    integers = np.round(blocks / scale[..., None]) + zero[..., None]
    return integers.clip(0, 255).astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)


def write_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph and its weights to separate files, because a protobuf file holds at most 2 GB."""
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", convert_attribute=False)


def sessions(folder: Path) -> tuple[Any, Any]:
    """The two graphs in ONNX Runtime on the CPU."""
    paths = (str(folder / "encoder.onnx"), str(folder / "decoder.onnx"))
    encoder, decoder = (onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths)
    return encoder, decoder


@torch.no_grad()
def difference(dims: ModelDimensions, state: State, logits: Callable[[Array, Sequence[Array]], Array], dtype: str) -> float:
    """The largest difference between the exported model's logits and PyTorch's, in standard deviations of PyTorch's.

    `logits`: runs the exported model on a log-mel spectrogram and on tokens in two steps. Raises ConfigurationError
    when the difference is too large; in 8 bits, when the probabilities of the next token diverge too much.
    """
    mel = torch.rand(1, dims.n_mels, 2 * dims.n_audio_ctx, generator=torch.Generator().manual_seed(0))
    tokenizer = Tokenizer(dims.n_vocab)
    tokens = torch.tensor([[*tokenizer.openai_for("en", "transcribe").sot_sequence_including_notimestamps, *tokenizer.encode(_SENTENCE)]])
    expected = _reference(dims, state, mel, tokens)
    exported = torch.from_numpy(logits(mel.numpy(), [tokens[:, :4].numpy(), tokens[:, 4:].numpy()]))
    deviations = float((exported - expected).abs().max() / expected.std())
    nats = divergence(expected, exported)
    if not (nats <= _MOST_DIVERGENCE if dtype in QUANTIZED else deviations <= LIMITS[dtype]):
        message = f"the exported logits are {deviations:.2g} standard deviations off PyTorch's at most, their probabilities {nats:.2g} nats"
        raise ConfigurationError(f"{message}: choose another dtype", param="dtype")
    return deviations


def divergence(expected: torch.Tensor, exported: torch.Tensor) -> float:
    """The mean Kullback-Leibler divergence of the next token's probabilities, in nats; logits (1, tokens, V)."""
    expected, exported = (logits.double().log_softmax(dim=-1) for logits in (expected, exported))
    return float((expected.exp() * (expected - exported)).sum(dim=-1).mean())


def _logits(encoder: Any, decoder: Any, mel: Array, steps: Sequence[Array]) -> Array:
    """The logits (1, all, V) of tokens that are fed in steps, each with the KV cache of the previous one."""
    cross = dict(zip((output.name for output in encoder.get_outputs()), encoder.run(None, {"mel": mel}), strict=True))
    names = [node.name.removeprefix("past_") for node in decoder.get_inputs() if node.name.startswith("past_")]
    past, steps_logits = [cross[f"cross_{name}"][:, :, :0] for name in names], []
    for tokens in steps:
        inputs = {"tokens": tokens, "kept": np.arange(tokens.shape[1]), "attend": np.array(False), **cross}
        inputs |= {f"past_{name}": cache for name, cache in zip(names, past, strict=True)}
        logits, *past = decoder.run(["logits", *(f"present_{name}" for name in names)], inputs)
        steps_logits.append(logits)
    return np.concatenate(steps_logits, axis=1)


def _reference(dims: ModelDimensions, state: State, mel: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """openai-whisper's logits, in float32."""
    with torch.device("meta"):  # skips the initialisation of weights that are replaced
        halves = {
            "encoder.": AudioEncoder(dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer),
            "decoder.": TextDecoder(dims.n_vocab, dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer),
        }
    for prefix, half in halves.items():
        own = {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}
        half.load_state_dict(own, assign=True)
    halves["decoder."].register_buffer("mask", torch.full((dims.n_text_ctx,) * 2, -torch.inf).triu_(1), persistent=False)
    logits: torch.Tensor = halves["decoder."](tokens, halves["encoder."](mel))
    return logits
