"""Reads and writes Hugging Face's folders of Whisper models: config.json and safetensors, with transformers' names of
the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..tokenizer import Tokenizer
from .tensors import AlignmentHeads, State

if TYPE_CHECKING:  # engine ct2 works without them
    import torch
    from whisper.model import ModelDimensions

_WEIGHTS = "model.safetensors"
_OUTPUT, _EMBEDDING = "proj_out.weight", "model.decoder.embed_tokens.weight"
"""The output layer and the embedding are one tensor, with two names in transformers and one in openai-whisper."""
_NAMES = (
    (".layers.", ".blocks."),
    (".encoder_attn_layer_norm.", ".cross_attn_ln."),
    (".self_attn_layer_norm.", ".attn_ln."),
    (".final_layer_norm.", ".mlp_ln."),
    (".encoder_attn.", ".cross_attn."),
    (".self_attn.", ".attn."),
    (".q_proj.", ".query."),
    (".k_proj.", ".key."),
    (".v_proj.", ".value."),
    (".out_proj.", ".out."),
    (".fc1.", ".mlp.0."),
    (".fc2.", ".mlp.2."),
    ("encoder.layer_norm.", "encoder.ln_post."),
    ("decoder.layer_norm.", "decoder.ln."),
    (".embed_tokens.", ".token_embedding."),
    (".embed_positions.weight", ".positional_embedding"),
)
"""Parts of tensor names: transformers', and openai-whisper's."""
_DIMENSIONS = {
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
"""Names of dimensions: openai-whisper's, and transformers'."""
_ACTIVATION = "gelu"


def config(dims: ModelDimensions) -> dict[str, Any]:
    """transformers' configuration of a model with these dimensions, for `WhisperConfig(**config(dims))` and
    config.json."""
    openai = Tokenizer(dims.n_vocab).openai
    return {
        **{theirs: getattr(dims, ours) for ours, theirs in _DIMENSIONS.items()},
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "activation_function": _ACTIVATION,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), int(openai.eot)),
        "decoder_start_token_id": int(openai.sot),
    }


def generation_config(dims: ModelDimensions, alignment_heads: AlignmentHeads) -> dict[str, Any]:
    """The configuration of transformers' `generate` for such a model: special tokens, suppressed tokens, alignment
    heads."""
    tokenizer = Tokenizer(dims.n_vocab)
    openai = tokenizer.openai
    special = (openai.sot, openai.translate, openai.transcribe, openai.sot_lm, openai.sot_prev, openai.no_speech)
    languages = {f"<|{code}|>": token for code, token in zip(openai.all_language_codes, openai.all_language_tokens, strict=True)}
    tasks = {"transcribe": openai.transcribe, "translate": openai.translate}
    return {
        "alignment_heads": [list(pair) for pair in alignment_heads],
        "begin_suppress_tokens": [*openai.encode(" "), openai.eot],
        "suppress_tokens": sorted({*openai.non_speech_tokens, *special}),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), openai.eot),
        "decoder_start_token_id": openai.sot,
        "prev_sot_token_id": openai.sot_prev,
        "no_timestamps_token_id": openai.no_timestamps,
        "max_initial_timestamp_index": 50,
        "max_length": dims.n_text_ctx,
        "return_timestamps": False,
        "is_multilingual": tokenizer.multilingual,
        **({"lang_to_id": languages, "task_to_id": tasks} if tokenizer.multilingual else {}),
    }


def state(tensors: State, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """openai-whisper's tensors by the names in `WhisperForConditionalGeneration`, cast to `dtype` if given.

    For `load_state_dict`: the output layer and the embedding are the same tensor object.
    """
    named = {transformers_name(name): tensor.to(dtype) if dtype else tensor for name, tensor in tensors.items()}
    return {**named, _OUTPUT: named[_EMBEDDING]}


def transformers_name(name: str) -> str:
    """transformers' name for a tensor of openai-whisper."""
    for theirs, ours in _NAMES:
        name = name.replace(ours, theirs)
    return f"model.{name}"


def openai_name(name: str) -> str:
    """openai-whisper's name for a tensor of transformers."""
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name.removeprefix("model.")


def is_folder(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder; a CTranslate2 folder with a config.json passes too."""
    return (path / "config.json").is_file()


def weight_files(folder: Path) -> list[Path]:
    """The files of weights: a single one, or the shards in model.safetensors.index.json.

    Raises ConfigurationError if one is missing.
    """
    index = folder / f"{_WEIGHTS}.index.json"
    names = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else [_WEIGHTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        message = (
            f"{folder} has no {(missing or [_WEIGHTS])[0]}: the weights must be safetensors; save the model again with save_pretrained"
        )
        raise ConfigurationError(message, param="model")
    return [folder / name for name in names]


def read_dimensions(folder: Path) -> dict[str, int]:
    """The dimensions in config.json, by the names of openai-whisper's `ModelDimensions`. Raises ConfigurationError."""
    content = read_json(folder / "config.json")
    kind, activation = content.get("model_type"), content.get("activation_function", _ACTIVATION)
    if (kind, activation) != ("whisper", _ACTIVATION):
        message = f"{folder} holds no Whisper model: its config.json says {(activation if kind == 'whisper' else kind)!r}"
        raise ConfigurationError(message, param="model")
    try:
        return {ours: int(content[theirs]) for ours, theirs in _DIMENSIONS.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{folder / 'config.json'} lacks {error}, which a Whisper model has", param="model") from None


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors by openai-whisper's names, mapped from the files.

    Raises ConfigurationError when a file is broken, or the output layer differs from the embedding.
    """
    import torch  # here: engine ct2 works without both
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {openai_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            message = f"{path} cannot be read, it may be cut short ({str(error)[:120]}); get it again"
            raise ConfigurationError(message, param="model") from None
    output, embedding = tensors.pop(_OUTPUT, None), tensors.get(openai_name(_EMBEDDING))
    if output is not None and embedding is not None and not torch.equal(output, embedding):
        raise ConfigurationError(f"{folder} has an output layer of its own, {_OUTPUT}: Whisper's is the embedding", param="model")
    return tensors


def read_alignment_heads(folder: Path) -> tuple[tuple[int, int], ...] | None:
    """(layer, head) of the decoder's heads that follow the audio, from generation_config.json; None when it names none."""
    return read_heads(folder / "generation_config.json")


def read_heads(path: Path) -> tuple[tuple[int, int], ...] | None:
    """The (layer, head) pairs under `alignment_heads` in a JSON file; None without any.

    Raises ConfigurationError for anything else.
    """
    heads = read_json(path).get("alignment_heads") if path.is_file() else None
    try:
        return tuple((int(layer), int(head)) for layer, head in heads) if heads else None
    except (TypeError, ValueError):
        raise ConfigurationError(f"{path}: alignment_heads must be pairs of a layer and a head", param="model") from None


def write(dims: ModelDimensions, tensors: State, folder: Path, *, alignment_heads: AlignmentHeads) -> None:
    """Write a new `folder` that transformers loads: weights in their own precision, configuration, tokenizer, feature
    extractor."""
    from safetensors.torch import save_file  # here: engine ct2 works without both

    from .vocabulary import tokenizer_json

    folder.mkdir()
    named = {name: tensor.contiguous() for name, tensor in state(tensors).items() if name != _OUTPUT}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})
    tokenizer = Tokenizer(dims.n_vocab)
    tokenizer_json(tokenizer).save(str(folder / "tokenizer.json"))
    dtype = str(named[_EMBEDDING].dtype).removeprefix("torch.")
    model = {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "dtype": dtype, "tie_word_embeddings": True}
    files = {
        "config.json": {**model, **config(dims)},
        "generation_config.json": generation_config(dims, alignment_heads),
        "preprocessor_config.json": _FEATURES | {"feature_size": dims.n_mels},
        "tokenizer_config.json": _TOKENIZER,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / _WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # safetensors makes it readable by its owner only


_FEATURES = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "sampling_rate": 16_000,
    "chunk_length": 30,
    "hop_length": 160,
    "n_fft": 400,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
}
_TOKENIZER = {
    "tokenizer_class": "WhisperTokenizer",
    "processor_class": "WhisperProcessor",
    **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "model_max_length": 448,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "errors": "replace",
}


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file. Raises ConfigurationError when the file cannot be read or holds no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}", param="model") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a JSON object", param="model")
    return content
