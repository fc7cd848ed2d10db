"""The values that travel between the stages: windows in, decoded text out. Plain Python and numpy, no vendor types."""

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
"""Spectrogram frames: one every 160 samples."""
TEXT_CONTEXT = 448
"""Tokens that the decoder can attend to."""
MAX_SAMPLED = TEXT_CONTEXT // 2
"""Tokens sampled for one window at most."""
MAX_PROMPT = TEXT_CONTEXT // 2 - 1
"""Tokens of earlier text that a window's prompt may have."""

Samples = npt.NDArray[np.float32]
Task = Literal["transcribe", "translate"]
Alignment = Literal["none", "all", "complete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How an engine decodes one window; names and meaning as in openai-whisper's DecodingOptions.

    `language` is an ISO code, None to detect it from the window, among `languages` when there are any. `prompt` holds the tokens of
    the text before the window (they follow <|startofprev|>). `suppress_tokens`: never sampled; -1 stands for openai-whisper's list of
    non-speech tokens; the special tokens never are. `max_initial_timestamp`: seconds, None: no bound. `repetition_penalty` and
    `no_repeat_ngram_size` are CTranslate2's. `max_tokens` bounds the sampled tokens, None: half the text context.
    `alignment`: give times to all text tokens, or only to those of complete segments (`tokenizer.complete_segments`), which is what
    openai-whisper's transcribe aligns. `ignore_eot` decodes exactly `max_tokens` tokens: for benchmarks on random weights only.
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
    def max_sampled(self) -> int:
        """How many tokens are sampled at most: `max_tokens`, never more than 224, half the text context."""
        return min(self.max_tokens or MAX_SAMPLED, MAX_SAMPLED)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """At most 30 s of a recording and how to decode it.

    `samples`: float32, shape (before + n + after,), 0 < n <= 480,000, mono at 16 kHz, in [-1, 1]; (before, after) is `margin`: samples
    around the window that only its spectrogram's outermost frames see. `start`: seconds from the recording's beginning to the window's.
    `loudest`: log10 of the strongest mel power of the whole recording, as whisper.transcribe scales by; None: the window's own.
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
        """The seed for sampling this window above temperature 0: 63 bits, computed each time, 1 ms for 30 s of sound.

        It follows from the samples, the temperature, the task and the prompt, so that the same recording and options give the same
        words in every process. The language is left out: one that was detected gives the same words as the same one told.
        """
        decoding = self.decoding
        digest = hashlib.blake2b(repr((float(decoding.temperature), decoding.task, *decoding.prompt)).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.samples).data)
        return int.from_bytes(digest.digest(), "little") >> 1


@dataclass(frozen=True, slots=True)
class Decoded:
    """What an engine made of one window. `tokens`: text and timestamp tokens, without the start sequence and <|endoftext|>.
    The text tokens make whole characters: what a limit or the model cuts inside a character is left out.

    `avg_logprob` is openai-whisper's: the sum of the sampled tokens' log-probabilities, <|endoftext|> included, over
    their count with it. `no_speech_prob` is the probability of <|nospeech|> at <|startoftranscript|>. `language_probability`: of the
    detected language, None when it was given. Where an alignment was asked for, `token_probs` holds the probability of each aligned
    text token, shape (n,), the first n of the text tokens, and `token_times` their starts and the last one's end, shape (n + 1,), seconds
    from the window's beginning; both are empty when there is no text.
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
    """A word with its times in seconds from the recording's beginning."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, subtitle sized; times in seconds from the recording's beginning.

    `seek`: where its window begins, in mel frames of 10 ms. `logprobs`: of each text token, when asked for. `channel`: of which
    channel of the recording it is, from 0, when they were transcribed apart. `language`: Whisper's code, when each segment has its own.
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
    """Text that a guard took for no speech at all; times in seconds from the recording's beginning.

    `reason`: `no_speech`, the window's probability of silence is high and its text a guess; `hallucination`, improbable words amid
    silence.
    """

    start: float
    end: float
    text: str
    reason: Literal["no_speech", "hallucination"]


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """A sound track of a file: its number, from 0; its language as the file spells it and its title, None when it tells none."""

    index: int
    language: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The answer to one request. `duration` is the recording's, in seconds; `warnings` tell what was wrong with the input.

    `audio_tracks`: all sound tracks of the file, when it has several.
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
    """How far a transcription is: `segments` are final and in order; `seconds` are done, of `duration` in all when that is known."""

    segments: tuple[Segment, ...] = ()
    seconds: float = 0.0
    duration: float | None = None
