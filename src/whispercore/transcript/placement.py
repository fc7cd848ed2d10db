"""Words at the place in the recording where they were spoken.

An alignment gives every moment of a window to some word, silences included: the first word after a pause begins where the word
before it ended. The voice detector knows where the pauses are, so a word is trimmed to the voice in its span, as in WhisperX
(Bain et al. 2023, https://arxiv.org/abs/2303.00747), whose segments come from a detector too.
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

JOINED = 0.25
"""Seconds of silence between two chunks of voice that may be one word, such as before a plosive."""
CLICK = 0.064
"""Seconds of voice that are no part of a word; vad_min_speech_duration_ms by default."""
LATER = 0.4
"""Of two voices in a word's span the later one is the word, unless it is shorter than this share of the longest."""
ONSET = 0.05
"""Seconds that a word may begin before, or end after, the detector hears it: two of its frames."""

Span = tuple[float, float]
"""Begin and end in seconds of the recording."""


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word, or what stands for one in its language, with its tokens.

    `start`, `end`: seconds of the recording, in hundredths. `voice`: seconds of voice between them; None when the detector was not asked.
    `logprobs`: of its tokens. `source`: what its window was decoded to.
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
        """As it is told."""
        return Word(self.text, self.start, self.end, self.probability)


def place_words(decoded: Decoded, pack: PackedWindow, tokenizer: Tokenizer, options: Options) -> list[PlacedWord]:
    """The words of an aligned window in order, none of which overlaps the next one or a silence that was left out."""
    detected = all(chunk.voiced is not None for chunk in pack.chunks)
    timings = words.timings(
        decoded, tokenizer, prepend=options.prepend_punctuations, append=options.append_punctuations, shorten=not detected
    )
    tokens = [token for token in decoded.tokens if token < tokenizer.eot]
    logprobs = [words.logprob(prob) for prob in decoded.token_probs]
    places = [(chunk.start - offset, chunk, voices(chunk)) for offset, chunk in pack.offsets]
    found: list[PlacedWord] = []
    first = 0
    for timing in timings:
        span, voice = _placed((timing.start, timing.end), places)
        begin = max(round(span[0], 2), found[-1].end if found else 0.0)
        last = first + timing.count
        found.append(
            PlacedWord(
                text=timing.word,
                start=begin,
                end=max(begin, round(span[1], 2)),
                voice=voice if detected else None,
                probability=timing.probability,
                tokens=tuple(tokens[first:last]),
                logprobs=tuple(logprobs[first:last]),
                source=decoded,
            )
        )
        first = last
    return found


def _placed(span: Span, places: Sequence[tuple[float, SpeechChunk, list[Span]]]) -> tuple[Span, float]:
    """A span of the window's time as one of the recording's, in the one chunk that holds most of its voice, and that voice."""
    inside: list[tuple[float, float, Span]] = []
    for shift, chunk, heard in places:
        begin, end = max(span[0] + shift, chunk.start), min(span[1] + shift, chunk.start + chunk.duration)
        if begin <= end:
            start, stop, voice = trimmed((begin, end), heard)
            inside.append((voice, end - begin, (start, stop)))
    voice, _, placed = max(inside, default=(0.0, 0.0, _last_moment(places)))
    return placed, voice


def _last_moment(places: Sequence[tuple[float, SpeechChunk, list[Span]]]) -> Span:
    """The end of the window, for a word that is said to come after it."""
    end = places[-1][1].start + places[-1][1].duration
    return end, end


def is_aligned(decoded: Decoded, tokenizer: Tokenizer) -> bool:
    """Whether all text tokens have their times."""
    return len(decoded.token_probs) == sum(token < tokenizer.eot for token in decoded.tokens)


def voices(chunk: SpeechChunk) -> list[Span]:
    """Where the detector hears a voice in a chunk, clicks left out; nowhere when it was not asked."""
    if chunk.voiced is None:
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chunk.voiced, [False]]).astype(np.int8))).reshape(-1, 2)
    seconds = [(begin * FRAME / SAMPLE_RATE, end * FRAME / SAMPLE_RATE) for begin, end in edges.tolist()]
    return [(chunk.start + begin, chunk.start + end) for begin, end in seconds if end - begin > CLICK]


def trimmed(span: Span, voices: Sequence[Span]) -> tuple[float, float, float]:
    """A word's span without the silence around its voice, and the seconds of voice in it.

    Where two voices with a silence between them reach into the span, one belongs to a neighbour. Most often that is the earlier one: an
    alignment gives a pause, and the end of the word before it, to the word after it.
    """
    groups = list(_groups(span, voices))
    if not groups:
        return (*span, 0.0)
    longest = max(voice for voice, *_ in groups)
    voice, begin, end = next(group for group in reversed(groups) if group[0] >= LATER * longest)
    return max(span[0], begin - ONSET), min(span[1], end + ONSET), voice


def _groups(span: Span, voices: Sequence[Span]) -> Iterator[tuple[float, float, float]]:
    """Seconds of voice, begin and end of each run of voices within the span that no silence longer than `JOINED` parts."""
    inside = [(max(begin, span[0]), min(end, span[1])) for begin, end in voices if begin < span[1] and end > span[0]]
    held: list[Span] = []
    for piece in inside:
        if held and piece[0] - held[-1][1] > JOINED:
            yield _group(held)
            held = []
        held.append(piece)
    if held:
        yield _group(held)


def _group(pieces: Sequence[Span]) -> tuple[float, float, float]:
    return sum(end - begin for begin, end in pieces), pieces[0][0], pieces[-1][1]


def in_order(found: Sequence[PlacedWord]) -> list[PlacedWord]:
    """Words by their begin, each shortened to where the next one begins."""
    ordered = sorted(found, key=lambda one: one.start)
    ends = [min(one.end, after.start) for one, after in pairwise(ordered)]
    return [replace(one, end=end) for one, end in zip(ordered, [*ends, ordered[-1].end], strict=True)] if ordered else []
