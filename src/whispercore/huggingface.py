"""Hugging Face's folders of Whisper models: config.json and safetensors, read as openai-whisper's dimensions and tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import ConfigurationError

_WEIGHTS = "model.safetensors"
_NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn\.", ".attn."),
    (r"attn\.q_proj\.", "attn.query."),
    (r"attn\.k_proj\.", "attn.key."),
    (r"attn\.v_proj\.", "attn.value."),
    (r"attn\.out_proj\.", "attn.out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"embed_tokens\.", "token_embedding."),
    (r"embed_positions\.weight$", "positional_embedding"),
)
_ACTIVATION = "gelu"


def is_folder(path: Path) -> bool:
    """Whether `path` is such a folder."""
    return (path / "config.json").is_file()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or the parts that model.safetensors.index.json lists. Raises ConfigurationError."""
    index = folder / f"{_WEIGHTS}.index.json"
    names = sorted(set(_json(index).get("weight_map", {}).values())) if index.is_file() else [_WEIGHTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        message = (
            f"{folder} has no {(missing or [_WEIGHTS])[0]}: the weights must be safetensors; save the model again with save_pretrained"
        )
        raise ConfigurationError(message, param="model")
    return [folder / name for name in names]


def read_dimensions(folder: Path) -> dict[str, int]:
    """The dimensions that config.json tells, by the names of openai-whisper's `ModelDimensions`. Raises ConfigurationError."""
    config = _json(folder / "config.json")
    if config.get("model_type") != "whisper" or config.get("activation_function", _ACTIVATION) != _ACTIVATION:
        raise ConfigurationError(f"{folder} holds no Whisper model: its config.json says {config.get('model_type')!r}", param="model")
    names = {
        "n_mels": "num_mel_bins",
        "n_audio_ctx": "max_source_positions",
        "n_audio_state": "d_model",
        "n_audio_head": "encoder_attention_heads",
        "n_audio_layer": "encoder_layers",
        "n_vocab": "vocab_size",
        "n_text_ctx": "max_target_positions",
        "n_text_state": "d_model",
        "n_text_head": "decoder_attention_heads",
        "n_text_layer": "decoder_layers",
    }
    try:
        return {ours: int(config[theirs]) for ours, theirs in names.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{folder / 'config.json'} lacks {error}, which a Whisper model has", param="model") from None


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors by openai-whisper's names, mapped from the files. Raises ConfigurationError when a file is broken."""
    state: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                state |= {openai_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            message = f"{path} cannot be read, it may be cut short ({str(error)[:120]}); get it again"
            raise ConfigurationError(message, param="model") from None
    return {name: tensor for name, tensor in state.items() if name != "proj_out.weight"}  # it is the embedding once more


def openai_name(name: str) -> str:
    """openai-whisper's name of a tensor."""
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name


def read_alignment_heads(folder: Path) -> tuple[tuple[int, int], ...] | None:
    """(layer, head) of the decoder's heads that follow the sound, from generation_config.json; None when it does not say."""
    path = folder / "generation_config.json"
    heads = _json(path).get("alignment_heads") if path.is_file() else None
    return tuple((int(layer), int(head)) for layer, head in heads) if heads else None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}", param="model") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a JSON object", param="model")
    return content
