"""A request of each kind, for the tests of this folder."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from whispercore.api.request import parse
from whispercore.errors import WhisperError
from whispercore.options import Options

SOUND = bytearray(b"RIFF....WAVE")


BASE64 = base64.b64encode(SOUND).decode()


SAMPLES: dict[str, tuple[str, Any, Any]] = {
    "task": ("translate", "translate", "translate"),
    "strategy": ("Sequential", "sequential", "sequential"),
    "language": ("German", "de", "de"),
    "languages": ("en, German", ["english", "de"], ("en", "de")),
    "multilingual": ("true", True, True),
    "initial_prompt": ("Zürich, naïve 你好", "Zürich, naïve 你好", "Zürich, naïve 你好"),
    "carry_initial_prompt": ("1", True, True),
    "condition_on_previous_text": ("false", False, False),
    "hotwords": ("Zürich, Bern", ["Zürich", " Bern "], "Zürich, Bern"),
    "temperature": ("0, 0.5", [0, 0.5], (0.0, 0.5)),
    "beam_size": ("5", 5, 5),
    "best_of": ("3", 3, 3),
    "patience": ("1.5", 1.5, 1.5),
    "length_penalty": ("0.5", 0.5, 0.5),
    "repetition_penalty": ("1.2", 1.2, 1.2),
    "no_repeat_ngram_size": ("3", 3, 3),
    "suppress_tokens": ("[-1, 50]", [-1, 50], (-1, 50)),
    "suppress_blank": ("false", False, False),
    "max_initial_timestamp": ("2", 2.0, 2.0),
    "max_new_tokens": ("100", 100, 100),
    "without_timestamps": ("true", True, True),
    "compression_ratio_threshold": ("none", "none", None),
    "logprob_threshold": ("-0.5", -0.5, -0.5),
    "no_speech_threshold": ("0.25", 0.25, 0.25),
    "word_timestamps": ("true", True, True),
    "token_logprobs": ("true", True, True),
    "prepend_punctuations": ("¿(", "¿(", "¿("),
    "append_punctuations": (".!", ".!", ".!"),
    "hallucination_silence_threshold": ("2", 2, 2.0),
    "clip_timestamps": ("0,2.5,4", [0, 2.5, 4], (0.0, 2.5, 4.0)),
    "channels": ("separate", "separate", "separate"),
    "audio_track": ("1", 1, "1"),
    "vad_filter": ("false", False, False),
    "vad_threshold": ("0.7", 0.7, 0.7),
    "vad_neg_threshold": ("0.3", 0.3, 0.3),
    "vad_min_speech_duration_ms": ("100", 100, 100),
    "vad_min_silence_duration_ms": ("500", 500, 500),
    "vad_speech_pad_ms": ("200", 200, 200),
}


NATIVE: dict[str, str] = {}
TRANSCRIPTIONS = {"url_path": "v1/audio/transcriptions"}
TRANSLATIONS = {"url_path": "v1/audio/translations"}


def refused(row: dict[str, Any], headers: dict[str, Any] | None = None) -> WhisperError:
    with pytest.raises(WhisperError) as caught:
        parse(row, headers or {})
    return caught.value


def parsed_options(**row: Any) -> Options:
    return parse({"file": SOUND, **{name: str(value).encode() for name, value in row.items()}}, {}).options
