"""The values passed between the stages: windows in, decoded text out. Plain Python and numpy, no vendor types."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30.0
WINDOW_SAMPLES = 480_000
HOP = 160
FRAMES_PER_SECOND = 100
WINDOW_FRAMES = 3_000
"""Spectrogram frames, one every 160 samples."""
TEXT_CONTEXT = 448
"""The decoder's context in tokens."""
MAX_SAMPLED = TEXT_CONTEXT // 2
"""The most tokens sampled for one window."""
MAX_PROMPT = TEXT_CONTEXT // 2 - 1
"""The most tokens of earlier text in a window's prompt."""

Samples = npt.NDArray[np.float32]
Task = Literal["transcribe", "translate"]
Alignment = Literal["none", "all", "complete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How an engine decodes one window. Names and meaning are those of openai-whisper's DecodingOptions.

    `language`: an ISO code; None: detect it from the window, among `languages` if any are given. `prompt`: the tokens
    of the text before the window, which follow <|startofprev|>. `suppress_tokens`: tokens never sampled; -1 stands for
    openai-whisper's list of non-speech tokens; special tokens are always suppressed. `max_initial_timestamp`: seconds;
    None: no limit. `repetition_penalty` and `no_repeat_ngram_size` are CTranslate2's. `max_tokens`: the most tokens to
    sample; None: half the text context. `alignment`: give times to no tokens, to all text tokens, or to those of
    complete segments (`tokenizer.complete_segments`), as openai-whisper's transcribe does. `ignore_eot`: decode exactly
    `max_tokens` tokens; for benchmarks on random weights only.
    """

    task: Task = "transcribe"
    language: str | None = None
    languages: tuple[str, ...] = ()
    temperature: float = 0.0
    beam_size: int | None = None
    best_of: int | None = None
    patience: float | None = None
    length_penalty: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    suppress_tokens: tuple[int, ...] = (-1,)
    suppress_blank: bool = True
    max_initial_timestamp: float | None = 1.0
    timestamps: bool = True
    prompt: tuple[int, ...] = ()
    max_tokens: int | None = None
    alignment: Alignment = "none"
    ignore_eot: bool = False

    @property
    def cost(self) -> float:
        """An estimate of the work for one window, 1.0 for a greedy search: the decoder's part grows with the texts it keeps."""
        return 1.0 + ((self.beam_size or self.best_of or 1) * (self.patience or 1.0) - 1.0) / 4

    @property
    def max_sampled(self) -> int:
        """The most tokens to sample: `max_tokens`, but at most 224, half the text context."""
        return min(self.max_tokens or MAX_SAMPLED, MAX_SAMPLED)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """At most 30 s of a recording, and how to decode it.

    `samples`: float32, shape (before + n + after,), 0 < n <= 480,000, mono at 16 kHz, in [-1, 1]. `margin`: (before,
    after), the samples around the window that only its first and last spectrogram frames depend on. `start`: seconds
    from the recording's start. `loudest`: log10 of the strongest mel power of the whole recording, by which
    whisper.transcribe scales; None: the window's own.
    """

    samples: Samples
    start: float
    decoding: Decoding
    margin: tuple[int, int] = (0, 0)
    loudest: float | None = None

    @property
    def duration(self) -> float:
        """Seconds of audio in the window."""
        return (len(self.samples) - sum(self.margin)) / SAMPLE_RATE

    @property
    def seed(self) -> int:
        """The seed for sampling this window above temperature 0: 63 bits, computed on every access in 1 ms for 30 s of
        audio.

        It is a hash of the samples, the temperature, the task and the prompt. So the same recording and options give
        the same words in every process. The language is left out, so that a detected language gives the same words as
        the same language requested.
        """
        decoding = self.decoding
        digest = hashlib.blake2b(repr((float(decoding.temperature), decoding.task, *decoding.prompt)).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.samples).data)
        return int.from_bytes(digest.digest(), "little") >> 1


@dataclass(frozen=True, slots=True)
class Decoded:
    """An engine's result for one window.

    `tokens`: text and timestamp tokens, without the start sequence and <|endoftext|>. The text tokens make whole
    characters: an incomplete character at the end is left out.

    `avg_logprob` is openai-whisper's: the sum of the sampled tokens' log-probabilities divided by their number, both
    including <|endoftext|>. `no_speech_prob`: the probability of <|nospeech|> at <|startoftranscript|>.
    `language_probability`: of the detected language; None if the request gave the language. With an alignment,
    `token_probs` has the probabilities of the first n text tokens, shape (n,), and `token_times` their starts and the
    last one's end in seconds from the window's start, shape (n + 1,). Both are empty if there is no text.
    """

    tokens: tuple[int, ...]
    text: str
    language: str
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    language_probability: float | None = None
    token_times: tuple[float, ...] = ()
    token_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its times in seconds from the recording's start."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A subtitle-sized piece of the transcript; times in seconds from the recording's start.

    `seek`: the start of its window in mel frames of 10 ms. `logprobs`: of each text token, if requested. `channel`: its
    channel of the recording, from 0, if channels were transcribed separately. `language`: Whisper's code, if detected
    for each window.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] = ()
    seek: int = 0
    logprobs: tuple[float, ...] = ()
    channel: int | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """Text left out because it is probably not speech; times in seconds from the recording's start.

    `reason`: `no_speech`, silence is probable and the text improbable; `hallucination`, improbable words surrounded by
    silence.
    """

    start: float
    end: float
    text: str
    reason: Literal["no_speech", "hallucination"]


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """An audio track of a file: its number, from 0, and the language and title that the file gives it, or None."""

    index: int
    language: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The result of one request. `duration`: of the recording, in seconds. `warnings`: defects of the input.

    `audio_tracks`: all audio tracks of the file, if it has several.
    """

    text: str
    language: str
    duration: float
    task: Task
    segments: tuple[Segment, ...]
    warnings: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    language_probability: float | None = None
    audio_tracks: tuple[AudioTrack, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a transcription: the final `segments` in order, the `seconds` done, the `duration` if known."""

    segments: tuple[Segment, ...] = ()
    seconds: float = 0.0
    duration: float | None = None
