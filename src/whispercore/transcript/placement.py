"""Word times in the recording, trimmed to detected voice.

An alignment assigns every moment of a window to some word, silences included: the first word after a pause starts where
the word before it ended. The voice detector finds the pauses, so each word is trimmed to the voice in its span.
WhisperX also combines alignment with a voice detector (Bain et al. 2023, https://arxiv.org/abs/2303.00747).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..audio.cutting import SpeechChunk
from ..audio.packing import PackedWindow
from ..audio.silero import FRAME
from ..options import Options
from ..tokenizer import Tokenizer
from ..types import SAMPLE_RATE, Decoded, Word
from . import words

MAX_PAUSE_IN_WORD = 0.25
"""Seconds of silence that one word may contain, such as before a plosive."""
MIN_VOICE_FRAMES = 2
"""Frames of 32 ms: a shorter voice is a click, not part of a word. Equals the default of vad_min_speech_duration_ms."""
MIN_LATER_SHARE = 0.4
"""When several stretches of voice lie in a word's span, the word is the last one that has at least this share of the
longest one's duration."""
VOICE_MARGIN = 0.05
"""Seconds by which a word may extend beyond its detected voice, on either side: about one and a half frames of the
detector."""

Span = tuple[float, float]
"""Start and end in seconds of the recording."""


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word with its times and tokens; in languages without spaces, a character.

    `start`, `end`: seconds of the recording, rounded to 0.01. `voice`: seconds of voice between them; None when the
    detector did not run. `logprobs`: of its tokens. `source`: the decoded window that it comes from.
    """

    text: str
    start: float
    end: float
    voice: float | None
    probability: float
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    source: Decoded

    @property
    def word(self) -> Word:
        """The word as a transcript shows it."""
        return Word(self.text, self.start, self.end, self.probability)


def place_words(decoded: Decoded, packed: PackedWindow, tokenizer: Tokenizer, options: Options) -> list[PlacedWord]:
    """The words of an aligned window in order. No word overlaps the next one or a silence that was left out."""
    detected = all(chunk.voiced is not None for chunk in packed.chunks)
    timed_words = words.timed_words(
        decoded, tokenizer, prepend=options.prepend_punctuations, append=options.append_punctuations, shorten=not detected
    )
    tokens = [token for token in decoded.tokens if token < tokenizer.eot]
    logprobs = [words.logprob(prob) for prob in decoded.token_probs]
    chunks = [(chunk.start - offset, chunk, voiced_spans(chunk)) for offset, chunk in packed.offsets]
    placed: list[PlacedWord] = []
    first = 0
    for timed in timed_words:
        span, voice = _placed((timed.start, timed.end), chunks)
        start = max(round(span[0], 2), placed[-1].end if placed else 0.0)
        last = first + timed.count
        placed.append(
            PlacedWord(
                text=timed.word,
                start=start,
                end=max(start, round(span[1], 2)),
                voice=voice if detected else None,
                probability=timed.probability,
                tokens=tuple(tokens[first:last]),
                logprobs=tuple(logprobs[first:last]),
                source=decoded,
            )
        )
        first = last
    return placed


def _placed(span: Span, chunks: Sequence[tuple[float, SpeechChunk, list[Span]]]) -> tuple[Span, float]:
    """A span of the window's time as one of the recording's, and the seconds of voice in it.

    The span lies in the one chunk that holds most of its voice. `chunks`: the shift from the window's time to the
    recording's, the chunk, its voice.
    """
    candidates: list[tuple[float, float, Span]] = []
    for shift, chunk, voices in chunks:
        begin, end = max(span[0] + shift, chunk.start), min(span[1] + shift, chunk.start + chunk.duration)
        if begin <= end:
            start, stop, voice = trimmed((begin, end), voices)
            candidates.append((voice, end - begin, (start, stop)))
    voice, _, placed = max(candidates, default=(0.0, 0.0, _end_of(chunks)))
    return placed, voice


def _end_of(chunks: Sequence[tuple[float, SpeechChunk, list[Span]]]) -> Span:
    """An empty span at the window's end, for a word aligned after it."""
    end = chunks[-1][1].start + chunks[-1][1].duration
    return end, end


def is_aligned(decoded: Decoded, tokenizer: Tokenizer) -> bool:
    """Whether all text tokens have times."""
    return len(decoded.token_probs) == sum(token < tokenizer.eot for token in decoded.tokens)


def voiced_spans(chunk: SpeechChunk) -> list[Span]:
    """The detected voice in a chunk, without clicks; empty when the detector did not run."""
    if chunk.voiced is None:
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chunk.voiced, [False]]).astype(np.int8))).reshape(-1, 2)
    frames = [(begin, end) for begin, end in edges.tolist() if end - begin >= MIN_VOICE_FRAMES]
    return [(chunk.start + begin * FRAME / SAMPLE_RATE, chunk.start + end * FRAME / SAMPLE_RATE) for begin, end in frames]


def trimmed(span: Span, voices: Sequence[Span]) -> tuple[float, float, float]:
    """A word's span without the silence around its voice: start, end, seconds of voice.

    When two pieces of voice with a silence between them reach into the span, one belongs to a neighbouring word.
    Usually that is the earlier one: an alignment gives a pause, and the end of the word before it, to the word after
    it.
    """
    groups = list(_groups(span, voices))
    if not groups:
        return (*span, 0.0)
    longest = max(voice for voice, *_ in groups)
    voice, begin, end = next(group for group in reversed(groups) if group[0] >= MIN_LATER_SHARE * longest)
    return max(span[0], begin - VOICE_MARGIN), min(span[1], end + VOICE_MARGIN), voice


def _groups(span: Span, voices: Sequence[Span]) -> Iterator[tuple[float, float, float]]:
    """The span's voices, grouped at silences longer than `MAX_PAUSE_IN_WORD`: seconds of voice, start, end."""
    inside = [(max(begin, span[0]), min(end, span[1])) for begin, end in voices if begin < span[1] and end > span[0]]
    group: list[Span] = []
    for piece in inside:
        if group and piece[0] - group[-1][1] > MAX_PAUSE_IN_WORD:
            yield _summed(group)
            group = []
        group.append(piece)
    if group:
        yield _summed(group)


def _summed(pieces: Sequence[Span]) -> tuple[float, float, float]:
    return sum(end - begin for begin, end in pieces), pieces[0][0], pieces[-1][1]


def in_order(words: Sequence[PlacedWord]) -> list[PlacedWord]:
    """The words sorted by start, each shortened to end where the next one starts."""
    ordered = sorted(words, key=lambda word: word.start)
    ends = [min(word.end, after.start) for word, after in pairwise(ordered)]
    return [replace(word, end=end) for word, end in zip(ordered, [*ends, ordered[-1].end], strict=True)] if ordered else []
