"""A checkpoint as transformers' speech recognition pipeline, converted in memory to Hugging Face's tensor names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from whispercore.checkpoints import load_checkpoint
from whispercore.checkpoints.huggingface import generation_config
from whispercore.tokenizer import Tokenizer


def pipeline(checkpoint: Path, tokenizer: Path, device: str, threads: int, tokens: int) -> tuple[Any, list[int]]:
    """The pipeline, and a list to which it appends the token count of every decoded window.

    It decodes greedily, without timestamps: exactly `tokens` tokens of every window, or for 0 until the model ends. `tokenizer`: a folder
    with tokenizer.json.
    """
    torch.set_num_threads(threads)
    transformers().logging.set_verbosity_error()
    model, counts = _model(checkpoint, device, tokens), list[int]()
    generate = model.generate

    def counted(*arguments: Any, **options: Any) -> Any:
        sequences = generate(*arguments, **options)
        counts.extend([tokens if sequences.shape[-1] in (tokens, tokens + _PROMPT) else sequences.shape[-1]] * len(sequences))
        return sequences

    model.generate = counted
    words = transformers().WhisperTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), pad_token="<|endoftext|>")
    extractor = transformers().WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    recognizer = transformers().AutomaticSpeechRecognitionPipeline(
        model=model,
        feature_extractor=extractor,
        tokenizer=words,
        device=device,
        chunk_length_s=30,
        stride_length_s=0 if tokens else None,
        generate_kwargs={"num_beams": 1},  # the pipeline's default is 5
    )
    return recognizer, counts


_PROMPT = 4
"""<|startoftranscript|>, language, task, <|notimestamps|>."""


def _model(checkpoint: Path, device: str, tokens: int) -> Any:
    from whispercore.engines.hf import transformers_model

    loaded = load_checkpoint(checkpoint)
    model: Any = transformers_model(loaded, device, torch.float32 if device == "cpu" else torch.float16)
    config = generation_config(loaded.dims, loaded.alignment_heads) | {"language": "en", "task": "transcribe"}
    if tokens:
        timestamps = list(range(Tokenizer(loaded.dims.n_vocab).timestamp_begin, loaded.dims.n_vocab))
        config |= {"min_new_tokens": tokens, "max_new_tokens": tokens, "suppress_tokens": timestamps}
    model.generation_config = transformers().GenerationConfig(**config)
    return model


def transformers() -> Any:
    """The package. Raises RuntimeError with the install command when it is missing."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise RuntimeError(f"{error}; run: pip install -r requirements-bench.txt") from error
