"""The values that travel between the stages: windows in, decoded text out. Plain Python and numpy, no vendor types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30.0
WINDOW_SAMPLES = 480_000

Samples = npt.NDArray[np.float32]
Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How an engine decodes one window; names and meaning as in openai-whisper's DecodingOptions.

    `language` is an ISO code, None to detect it from the window. `prompt` holds the tokens of the text before the window
    (they follow <|startofprev|>). `max_tokens` bounds the sampled tokens, None: half the text context.
    `ignore_eot` decodes exactly `max_tokens` tokens: for benchmarks on random weights only.
    """

    task: Task = "transcribe"
    language: str | None = None
    temperature: float = 0.0
    beam_size: int | None = None
    best_of: int | None = None
    patience: float | None = None
    length_penalty: float | None = None
    timestamps: bool = True
    prompt: tuple[int, ...] = ()
    max_tokens: int | None = None
    ignore_eot: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """At most 30 s of a recording and how to decode it.

    `samples`: float32, shape (n,), 0 < n <= 480,000, mono at 16 kHz, in [-1, 1]. `start`: seconds from the recording's beginning.
    """

    samples: Samples
    start: float
    decoding: Decoding

    @property
    def duration(self) -> float:
        """Seconds of audio in the window."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Decoded:
    """What an engine made of one window. `tokens`: text and timestamp tokens, without the start sequence and <|endoftext|>.

    `avg_logprob` is openai-whisper's: the sum of the sampled tokens' log-probabilities, <|endoftext|> included, over
    their count with it. `no_speech_prob` is the probability of <|nospeech|> at <|startoftranscript|>.
    """

    tokens: tuple[int, ...]
    text: str
    language: str
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its times in seconds from the recording's beginning."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, subtitle sized; times in seconds from the recording's beginning."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """The answer to one request. `duration` is the recording's, in seconds; `warnings` tell what was wrong with the input."""

    text: str
    language: str
    duration: float
    task: Task
    segments: tuple[Segment, ...]
    warnings: tuple[str, ...] = ()
