"""Decoded windows → segments in the recording's time."""

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
class TimedText:
    """Text tokens between two timestamps, in seconds from the window's start; `end` is None without the second one."""

    start: float
    end: float | None
    tokens: tuple[int, ...]


def timed_texts(tokens: Sequence[int], timestamp_begin: int) -> Iterator[TimedText]:
    """Split a window's tokens at its timestamps; text without timestamps starts at 0.0."""
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < timestamp_begin:
            text.append(token)
            continue
        time = (token - timestamp_begin) * SECONDS_PER_TIMESTAMP
        if text:
            yield TimedText(start, time, tuple(text))
            text = []
        start = time
    if text:
        yield TimedText(start, None, tuple(text))


def decoded_segments(decoded: Decoded, duration: float, tokenizer: Tokenizer) -> list[Segment]:
    """The segments of a window of `duration` seconds, in the window's time and within it.

    They hold all of its text, even if no timestamp follows it.
    """
    probs = iter(decoded.token_probs)
    segments: list[Segment] = []
    for text in timed_texts(decoded.tokens, tokenizer.timestamp_begin):
        begin = min(text.start, duration)
        end = duration if text.end is None else min(max(text.end, begin), duration)
        segments.append(text_segment(decoded, text.tokens, begin, end, 0, tokenizer, probs))
    return segments


def text_segment(
    decoded: Decoded, tokens: Sequence[int], start: float, end: float, seek: int, tokenizer: Tokenizer, probs: Iterator[float]
) -> Segment:
    """A segment of some of a window's tokens, with or without timestamps.

    Its text tokens take their probabilities from `probs`, if any.
    """
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


def with_words(segments: list[Segment], decoded: Decoded, duration: float, tokenizer: Tokenizer, options: Options) -> list[Segment]:
    """The segments of an independent window with their words, in order and within the window."""
    with_times = words.add_words(
        segments,
        decoded,
        start=0.0,
        tokenizer=tokenizer,
        last_speech=0.0,
        prepend=options.prepend_punctuations,
        append=options.append_punctuations,
    )
    return words.clamp(with_times, 0.0, duration)


def in_recording(segment: Segment, packed: PackedWindow) -> Segment:
    """A segment in its window's time → in the recording's time. A segment with words starts and ends with them."""
    placed = tuple(_word_in_recording(word, packed) for word in segment.words)
    start, end = (placed[0].start, placed[-1].end) if placed else packed.in_recording(segment.start, segment.end)
    return replace(segment, start=round(start, 3), end=round(end, 3), words=placed, seek=round(packed.start * FRAMES_PER_SECOND))


def _word_in_recording(word: Word, packed: PackedWindow) -> Word:
    start, end = packed.in_recording(word.start, word.end)
    return replace(word, start=round(start, 2), end=round(end, 2))
