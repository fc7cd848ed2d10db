"""Converts a checkpoint to a CTranslate2 folder.

CTranslate2's own converters read Hugging Face's checkpoints, not OpenAI's.
"""

from __future__ import annotations

import json
from pathlib import Path

from ctranslate2.converters.utils import fuse_linear
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.common_spec import LayerNormSpec, LinearSpec
from ctranslate2.specs.transformer_spec import FeedForwardSpec
from ctranslate2.specs.whisper_spec import WhisperConfig, WhisperSpec
from whisper.model import ModelDimensions

from ..tokenizer import Tokenizer
from .huggingface import generation_config
from .staging import staged
from .tensors import AlignmentHeads, State
from .vocabulary import token_names, tokenizer_json


def convert(dims: ModelDimensions, state: State, folder: Path, quantization: str, *, alignment_heads: AlignmentHeads) -> None:
    """Write a checkpoint's tensors as a CTranslate2 model into `folder`, which appears complete or not at all.

    tokenizer.json and preprocessor_config.json let faster-whisper load the folder offline. Raises ConfigurationError
    when the folder cannot be written.
    """
    spec = _spec(dims, state, alignment_heads)
    spec.validate()
    spec.optimize(quantization)
    with staged(folder, "model.bin") as temporary:
        temporary.mkdir()
        spec.save(str(temporary))
        tokenizer_json(Tokenizer(dims.n_vocab)).save(str(temporary / "tokenizer.json"))
        (temporary / "preprocessor_config.json").write_text(json.dumps({"feature_size": dims.n_mels}))


def _spec(dims: ModelDimensions, state: State, alignment_heads: AlignmentHeads) -> WhisperSpec:
    """The model in CTranslate2's description: the layers of openai-whisper's model.py under other names."""
    state = {name: tensor.clone() for name, tensor in state.items()}  # CTranslate2 quantizes in place
    spec = WhisperSpec(dims.n_audio_layer, dims.n_audio_head, dims.n_text_layer, dims.n_text_head)
    _set_encoder(spec, state)
    _set_decoder(spec, state)
    spec.register_vocabulary(token_names(Tokenizer(dims.n_vocab)))
    _set_config(spec.config, dims, alignment_heads)
    return spec


def _set_encoder(spec: WhisperSpec, state: State) -> None:
    encoder = spec.encoder
    for convolution, name in ((encoder.conv1, "conv1"), (encoder.conv2, "conv2")):
        convolution.weight, convolution.bias = state[f"encoder.{name}.weight"], state[f"encoder.{name}.bias"]
    encoder.position_encodings.encodings = state["encoder.positional_embedding"]
    for i, layer in enumerate(encoder.layer):
        _set_self_attention(layer.self_attention, state, f"encoder.blocks.{i}.attn")
        _set_feed_forward(layer.ffn, state, f"encoder.blocks.{i}.mlp")
    _set_norm(encoder.layer_norm, state, "encoder.ln_post")


def _set_decoder(spec: WhisperSpec, state: State) -> None:
    decoder = spec.decoder
    decoder.embeddings.weight = decoder.projection.weight = state["decoder.token_embedding.weight"]
    decoder.position_encodings.encodings = state["decoder.positional_embedding"]
    for i, layer in enumerate(decoder.layer):
        _set_self_attention(layer.self_attention, state, f"decoder.blocks.{i}.attn")
        _set_cross_attention(layer.attention, state, f"decoder.blocks.{i}.cross_attn")
        _set_feed_forward(layer.ffn, state, f"decoder.blocks.{i}.mlp")
    _set_norm(decoder.layer_norm, state, "decoder.ln")


def _set_self_attention(spec: MultiHeadAttentionSpec, state: State, name: str) -> None:
    fuse_linear(spec.linear[0], [_linear(state, f"{name}.{part}") for part in ("query", "key", "value")])
    _set_linear(spec.linear[1], state, f"{name}.out")
    _set_norm(spec.layer_norm, state, f"{name}_ln")


def _set_cross_attention(spec: MultiHeadAttentionSpec, state: State, name: str) -> None:
    _set_linear(spec.linear[0], state, f"{name}.query")
    fuse_linear(spec.linear[1], [_linear(state, f"{name}.{part}") for part in ("key", "value")])
    _set_linear(spec.linear[2], state, f"{name}.out")
    _set_norm(spec.layer_norm, state, f"{name}_ln")


def _set_feed_forward(spec: FeedForwardSpec, state: State, name: str) -> None:
    _set_linear(spec.linear_0, state, f"{name}.0")
    _set_linear(spec.linear_1, state, f"{name}.2")
    _set_norm(spec.layer_norm, state, f"{name}_ln")


def _set_norm(spec: LayerNormSpec, state: State, name: str) -> None:
    spec.gamma, spec.beta = state[f"{name}.weight"], state[f"{name}.bias"]


def _set_linear(spec: LinearSpec, state: State, name: str) -> None:
    spec.weight = state[f"{name}.weight"]
    if f"{name}.bias" in state:  # key projections have no bias
        spec.bias = state[f"{name}.bias"]


def _linear(state: State, name: str) -> LinearSpec:
    spec = LinearSpec()
    _set_linear(spec, state, name)
    return spec


def _set_config(config: WhisperConfig, dims: ModelDimensions, alignment_heads: AlignmentHeads) -> None:
    """The decoding rules in config.json, which CTranslate2 and faster-whisper read."""
    generation = generation_config(dims, alignment_heads)
    config.suppress_ids, config.suppress_ids_begin = generation["suppress_tokens"], generation["begin_suppress_tokens"]
    config.lang_ids = sorted(Tokenizer(dims.n_vocab).openai.all_language_tokens)
    config.alignment_heads = list(alignment_heads)
