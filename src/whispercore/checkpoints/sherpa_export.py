"""Exports a checkpoint for sherpa-onnx: encoder.onnx, decoder.onnx and tokens.txt, with the names and shapes of its own
exporter.

sherpa-onnx's scripts/whisper/export-onnx.py defines the form. The layers are those of `onnx_export`; inputs and outputs
differ. Letters in the shapes: l decoder layers, b windows, t steps of the encoder's output, n new tokens, c = 448
positions, w width, V vocabulary.

encoder.onnx: mel (b, n_mels, 2 t) → n_layer_cross_k, n_layer_cross_v (l, b, t, w); its metadata holds the dimensions
and special tokens. decoder.onnx: tokens (b, n), in_n_layer_self_k_cache, in_n_layer_self_v_cache (l, b, c, w),
n_layer_cross_k, n_layer_cross_v, offset (1,) → logits (b, n, V) and the caches with the new tokens. sherpa-onnx passes
the caches on unread; each layer's memory is (b, heads, c, w / heads).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from whisper.model import ModelDimensions

from ..tokenizer import Tokenizer
from .onnx_export import MICROSOFT, Array, Graph, difference, publish, sessions, write_graph
from .tensors import AlignmentHeads, State

_CACHES = ("k", "v")


def export(dims: ModelDimensions, state: State, folder: Path, dtype: str, *, alignment_heads: AlignmentHeads) -> float:
    """Write a checkpoint's tensors into `folder`, which appears complete or not at all; see `onnx_export.export`.

    sherpa-onnx does not use the alignment heads; they are stored for conversions of the folder.
    """

    def write(temporary: Path) -> None:
        write_graph(encoder(dims, state, dtype), temporary / "encoder.onnx")
        write_graph(decoder(dims, state, dtype, alignment_heads), temporary / "decoder.onnx")
        (temporary / "tokens.txt").write_text(_tokens(Tokenizer(dims.n_vocab)))

    return publish(folder, write, lambda temporary: difference(dims, state, partial(_logits, dims, *sessions(temporary)), dtype))


def encoder(dims: ModelDimensions, state: State, dtype: str) -> onnx.ModelProto:
    """The encoder for log-mel spectrograms of up to 30 s, and the cross-attention keys and values of all decoder
    layers."""
    graph = Graph(state, dtype)
    x = graph.encoded("mel", dims.n_audio_layer, dims.n_audio_head)
    outputs = []
    for name, part in zip(_CACHES, ("key", "value"), strict=True):
        layers = [graph.linear(x, f"decoder.blocks.{i}.cross_attn.{part}") for i in range(dims.n_text_layer)]
        outputs.append(graph.output(graph.stack(layers), f"n_layer_cross_{name}", _cross(dims)))
    mel = helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["windows", dims.n_mels, "frames"])
    return graph.model("encoder", [mel], outputs, _metadata(dims) | {"dtype": dtype})


def decoder(dims: ModelDimensions, state: State, dtype: str, alignment_heads: AlignmentHeads) -> onnx.ModelProto:
    """The decoder. Its KV caches have the size of all positions from the start."""
    graph = Graph(state, dtype)
    end = graph.add("Add", "offset", graph.add("Shape", "tokens", start=1, end=2))
    x = graph.embedded("offset", end)
    caches: dict[str, list[str]] = {name: [] for name in _CACHES}
    for i in range(dims.n_text_layer):
        block, heads = f"decoder.blocks.{i}", partial(graph.add, domain=MICROSOFT, num_heads=dims.n_text_head)
        layer = graph.constant(f"layer.{i}", np.array(i))
        query, key, value = graph.query_key_value(graph.norm(x, f"{block}.attn_ln"), f"{block}.attn")
        own = [_by_heads(graph, graph.add("Gather", f"in_n_layer_self_{name}_cache", layer, axis=0), dims) for name in _CACHES]
        past = [graph.slice(cache, graph.constant("axis 0", np.array([0])), "offset", 2) for cache in own]
        attended, *present = heads("MultiHeadAttention", query, key, value, "", "", "", *past, outputs=3, unidirectional=1)
        for name, cache, new in zip(_CACHES, own, present, strict=True):
            rest = graph.slice(cache, end, graph.constant("all", np.array([dims.n_text_ctx])), 2)
            caches[name].append(_flat(graph, graph.add("Concat", new, rest, axis=2), dims))
        x = graph.add("Add", x, graph.linear(attended, f"{block}.attn.out"))
        query = graph.linear(graph.norm(x, f"{block}.cross_attn_ln"), f"{block}.cross_attn.query")
        cross = [graph.add("Gather", f"n_layer_cross_{name}", layer, axis=0) for name in _CACHES]
        x = graph.add("Add", x, graph.linear(heads("MultiHeadAttention", query, *cross), f"{block}.cross_attn.out"))
        x = graph.feed_forward(x, block)
    outputs = [graph.output(graph.logits(graph.norm(x, "decoder.ln")), "logits", ["windows", "new", dims.n_vocab], TensorProto.FLOAT)]
    outputs += [graph.output(graph.stack(caches[name]), f"out_n_layer_self_{name}_cache", _cache(dims)) for name in _CACHES]
    return graph.model("decoder", _decoder_inputs(dims, graph.element), outputs, {"alignment_heads": json.dumps(list(alignment_heads))})


def _by_heads(graph: Graph, cache: str, dims: ModelDimensions) -> str:
    """(b, c, w) → (b, heads, c, w / heads), without moving data."""
    shape = graph.constant("by heads, of a cache", np.array([0, dims.n_text_head, dims.n_text_ctx, -1]))
    reshaped: str = graph.add("Reshape", cache, shape)
    return reshaped


def _flat(graph: Graph, cache: str, dims: ModelDimensions) -> str:
    """(b, heads, c, w / heads) → (b, c, w), without moving data."""
    reshaped: str = graph.add("Reshape", cache, graph.constant("flat, of a cache", np.array([0, dims.n_text_ctx, dims.n_text_state])))
    return reshaped


def _decoder_inputs(dims: ModelDimensions, element: int) -> list[onnx.ValueInfoProto]:
    value = helper.make_tensor_value_info
    return [
        value("tokens", TensorProto.INT64, ["windows", "new"]),
        *(value(f"in_n_layer_self_{name}_cache", element, _cache(dims)) for name in _CACHES),
        *(value(f"n_layer_cross_{name}", element, _cross(dims)) for name in _CACHES),
        value("offset", TensorProto.INT64, [1]),
    ]


def _cross(dims: ModelDimensions) -> list[str | int]:
    return [dims.n_text_layer, "windows", "steps", dims.n_text_state]


def _cache(dims: ModelDimensions) -> list[str | int]:
    return [dims.n_text_layer, "windows", dims.n_text_ctx, dims.n_text_state]


def _metadata(dims: ModelDimensions) -> dict[str, str]:
    """The encoder's metadata for sherpa-onnx: dimensions, special tokens, and the languages in the order of their
    tokens."""
    tokenizer = Tokenizer(dims.n_vocab)
    openai = tokenizer.openai_for("en", "transcribe")
    sizes = {name: getattr(dims, name) for name in ("n_mels", "n_audio_ctx", "n_text_layer", "n_text_ctx", "n_text_state", "n_vocab")}
    special = {name: getattr(openai, name) for name in ("sot", "eot", "translate", "transcribe", "no_timestamps", "no_speech")}
    languages = {"all_language_tokens": openai.all_language_tokens, "all_language_codes": openai.all_language_codes}
    lists = {"sot_sequence": openai.sot_sequence, **(languages if tokenizer.multilingual else {})}
    metadata: dict[str, Any] = {"model_type": "whisper", **sizes, **special, "is_multilingual": int(tokenizer.multilingual)}
    metadata |= {"blank_id": tokenizer.encode(" ")[0], **{name: ",".join(map(str, values)) for name, values in lists.items()}}
    return {name: str(value) for name, value in metadata.items()}


def _tokens(tokenizer: Tokenizer) -> str:
    """tokens.txt: a line for each text token with its bytes in base64 and its id."""
    encoding = tokenizer.openai.encoding
    names = (base64.b64encode(encoding.decode_single_token_bytes(token)).decode() for token in range(tokenizer.eot))
    return "".join(f"{name} {token}\n" for token, name in enumerate(names))


def _logits(dims: ModelDimensions, encoder: Any, decoder: Any, mel: Array, steps: Sequence[Array]) -> Array:
    """The logits (1, all, V) of tokens that are fed in steps, as sherpa-onnx does."""
    cross, offset = encoder.run(None, {"mel": mel}), 0
    caches = [np.zeros((dims.n_text_layer, 1, dims.n_text_ctx, dims.n_text_state), np.float32)] * 2
    steps_logits = []
    for tokens in steps:
        names = [node.name for node in decoder.get_inputs()]
        logits, *caches = decoder.run(None, dict(zip(names, (tokens, *caches, *cross, np.array([offset])), strict=True)))
        steps_logits.append(logits)
        offset += tokens.shape[1]
    return np.concatenate(steps_logits, axis=1)
