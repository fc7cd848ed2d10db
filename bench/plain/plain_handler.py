"""The simplest handler: whisper.transcribe, one request at a time. A contender of bench/serve.py.

PLAIN_MODEL is the checkpoint. PLAIN_TOKENS, when not 0, is the number of tokens to decode from every window, for random weights.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import soundfile
import torch
import whisper


class PlainHandler:
    """Loads the model once, and calls whisper.transcribe for every request."""

    model: whisper.Whisper
    options: dict[str, Any]

    def initialize(self, context: Any) -> None:
        """Load the checkpoint as openai-whisper does."""
        self.model = whisper.load_model(os.environ["PLAIN_MODEL"])
        self.options = options(self.model, int(os.environ["PLAIN_TOKENS"]))

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Transcripts of the batch, which holds one request."""
        return [self._transcribe(row.get("body") or row.get("data")) for row in rows]

    def _transcribe(self, body: Any) -> dict[str, Any]:
        # 16 kHz mono only, read in memory: faster than whisper.load_audio, which starts ffmpeg for each request
        samples, _ = soundfile.read(io.BytesIO(body), dtype="float32")
        result = whisper.transcribe(self.model, samples, **self.options)
        tokens = [len(segment["tokens"]) for segment in result["segments"]]
        return {"text": result["text"], "tokens": tokens, "threads": torch.get_num_threads()}


def options(model: whisper.Whisper, tokens: int) -> dict[str, Any]:
    """Arguments of whisper.transcribe for exactly `tokens` tokens from every window without fallback; when 0, its
    defaults in English."""
    arguments: dict[str, Any] = {"language": "en", "fp16": torch.cuda.is_available()}
    if not tokens:
        return arguments
    tokenizer = whisper.tokenizer.get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
    # Random weights sample timestamps anywhere, and whisper.transcribe would decode the window again from there
    never = [-1, tokenizer.eot, *range(tokenizer.timestamp_begin, model.dims.n_vocab)]
    return arguments | {
        "temperature": 0.0,
        "sample_len": tokens,
        "suppress_tokens": never,
        "without_timestamps": True,
        "condition_on_previous_text": False,
        "compression_ratio_threshold": None,
        "logprob_threshold": None,
        "no_speech_threshold": None,
    }
