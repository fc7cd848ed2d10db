"""A checkpoint as transformers' speech recognition pipeline, made in memory: OpenAI's tensors under Hugging Face's names."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from whisper.model import ModelDimensions

from whispercore.checkpoints import load_checkpoint

_NAMES = (
    (r"\.blocks\.", ".layers."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"attn\.query\.", "attn.q_proj."),
    (r"attn\.key\.", "attn.k_proj."),
    (r"attn\.value\.", "attn.v_proj."),
    (r"attn\.out\.", "attn.out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.ln_post\.", ".layer_norm."),
    (r"decoder\.ln\.", "decoder.layer_norm."),
    (r"token_embedding", "embed_tokens"),
    (r"positional_embedding$", "embed_positions.weight"),
)


def pipeline(checkpoint: Path, tokenizer: Path, device: str, threads: int, tokens: int) -> tuple[Any, list[int]]:
    """The pipeline, and the list to which it adds the number of tokens of every window it decodes.

    `tokenizer`: a folder with tokenizer.json. Exactly `tokens` of every window, greedily, without timestamps.
    """
    torch.set_num_threads(threads)
    transformers().logging.set_verbosity_error()
    model, counts = _model(checkpoint, tokens).to(device), list[int]()
    if device != "cpu":
        model = model.half()
    generate = model.generate

    def counted(*arguments: Any, **options: Any) -> Any:
        sequences = generate(*arguments, **options)
        counts.extend([tokens if sequences.shape[-1] in (tokens, tokens + _PROMPT) else sequences.shape[-1]] * len(sequences))
        return sequences

    model.generate = counted
    words = transformers().WhisperTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), pad_token="<|endoftext|>")
    extractor = transformers().WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    made = transformers().AutomaticSpeechRecognitionPipeline(
        model=model, feature_extractor=extractor, tokenizer=words, device=device, chunk_length_s=30, stride_length_s=0
    )
    return made, counts


_PROMPT = 4
"""<|startoftranscript|>, language, task, <|notimestamps|>."""


def _model(checkpoint: Path, tokens: int) -> Any:
    loaded = load_checkpoint(checkpoint)
    model: Any = transformers().WhisperForConditionalGeneration(_config(loaded.dims))
    state = {f"model.{renamed(name)}": tensor.float() for name, tensor in loaded.state.items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    eot = _eot(loaded.dims)
    timestamps = loaded.dims.n_vocab - 1501
    model.generation_config = transformers().GenerationConfig(
        decoder_start_token_id=eot + 1,
        eos_token_id=eot,
        pad_token_id=eot,
        is_multilingual=True,
        lang_to_id={"<|en|>": eot + 2},
        task_to_id={"transcribe": timestamps - 5, "translate": timestamps - 6},
        no_timestamps_token_id=timestamps - 1,
        prev_sot_token_id=timestamps - 3,
        suppress_tokens=list(range(timestamps, loaded.dims.n_vocab)),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        language="en",
        task="transcribe",
        return_timestamps=False,
    )
    return model.eval()


def transformers() -> Any:
    """The package, which need not be there. Raises RuntimeError with what to do."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise RuntimeError(f"{error}; run: pip install -r requirements-bench.txt") from error


def renamed(name: str) -> str:
    """Hugging Face's name of one of OpenAI's tensors."""
    for old, new in _NAMES:
        name = re.sub(old, new, name)
    return name


def _eot(dims: ModelDimensions) -> int:
    if dims.n_vocab < 51_865:
        raise RuntimeError("only multilingual checkpoints")
    return 50_257


def _config(dims: ModelDimensions) -> Any:
    return transformers().WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        max_source_positions=dims.n_audio_ctx,
        max_target_positions=dims.n_text_ctx,
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_layers=dims.n_text_layer,
        decoder_attention_heads=dims.n_text_head,
        decoder_ffn_dim=4 * dims.n_text_state,
        bos_token_id=_eot(dims),
        eos_token_id=_eot(dims),
        pad_token_id=_eot(dims),
        decoder_start_token_id=_eot(dims) + 1,
    )
