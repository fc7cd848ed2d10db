"""Decoded windows → segments on the recording's own time line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ..audio.packing import PackedWindow
from ..options import Options
from ..tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer
from ..types import FRAMES_PER_SECOND, Decoded, Segment, Word
from . import words


@dataclass(frozen=True, slots=True)
class Span:
    """Text tokens between two timestamps, in seconds from the window's beginning; `end` is None when no timestamp closes it."""

    start: float
    end: float | None
    tokens: tuple[int, ...]


def spans(tokens: Sequence[int], timestamp_begin: int) -> Iterator[Span]:
    """Split a window's tokens at its timestamps; text without any is one span from 0.0."""
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < timestamp_begin:
            text.append(token)
            continue
        time = (token - timestamp_begin) * SECONDS_PER_TIMESTAMP
        if text:
            yield Span(start, time, tuple(text))
            text = []
        start = time
    if text:
        yield Span(start, None, tuple(text))


def segments(decoded: Decoded, duration: float, tokenizer: Tokenizer) -> list[Segment]:
    """The segments of a window of `duration` seconds, on its own time line, which they never leave.

    All of its text is taken, also what no timestamp closes.
    """
    probs = iter(decoded.token_probs)
    found: list[Segment] = []
    for span in spans(decoded.tokens, tokenizer.timestamp_begin):
        begin = min(span.start, duration)
        end = duration if span.end is None else min(max(span.end, begin), duration)
        found.append(text_segment(decoded, span.tokens, begin, end, 0, tokenizer, probs))
    return found


def text_segment(
    decoded: Decoded, tokens: Sequence[int], start: float, end: float, seek: int, tokenizer: Tokenizer, probs: Iterator[float]
) -> Segment:
    """A segment of a window's tokens, timestamps among them or not; its text tokens take their probabilities from `probs`, if any."""
    count = sum(token < tokenizer.eot for token in tokens)
    return Segment(
        start=round(start, 3),
        end=round(end, 3),
        text=tokenizer.decode(tokens),
        tokens=tuple(tokens),
        temperature=decoded.temperature,
        avg_logprob=decoded.avg_logprob,
        compression_ratio=decoded.compression_ratio,
        no_speech_prob=decoded.no_speech_prob,
        seek=seek,
        logprobs=tuple(words.logprob(prob) for prob in islice(probs, count)),
    )


def with_words(found: list[Segment], decoded: Decoded, duration: float, tokenizer: Tokenizer, options: Options) -> list[Segment]:
    """The segments of a window that stands alone, with their words, in order and within the window."""
    timed = words.add_words(
        found,
        decoded,
        start=0.0,
        tokenizer=tokenizer,
        last_speech=0.0,
        prepend=options.prepend_punctuations,
        append=options.append_punctuations,
    )
    return words.clamp(timed, 0.0, duration)


def in_recording(segment: Segment, pack: PackedWindow) -> Segment:
    """A segment on its window's time line → on the recording's; one with words begins and ends with them."""
    timed = tuple(_word_in_recording(word, pack) for word in segment.words)
    start, end = (timed[0].start, timed[-1].end) if timed else pack.in_recording(segment.start, segment.end)
    return replace(segment, start=round(start, 3), end=round(end, 3), words=timed, seek=round(pack.start * FRAMES_PER_SECOND))


def _word_in_recording(word: Word, pack: PackedWindow) -> Word:
    start, end = pack.in_recording(word.start, word.end)
    return replace(word, start=round(start, 2), end=round(end, 2))
