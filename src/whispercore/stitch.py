"""Decoded windows → segments on the recording's own time line → one transcript."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer
from .types import Decoded, Segment


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


def segments(decoded: Decoded, start: float, duration: float, tokenizer: Tokenizer) -> list[Segment]:
    """The segments of one window that begins at `start` and lasts `duration` seconds; times never leave the window."""
    found: list[Segment] = []
    for span in spans(decoded.tokens, tokenizer.timestamp_begin):
        text = tokenizer.decode(span.tokens)
        if not text.strip():
            continue
        begin = min(span.start, duration)
        end = duration if span.end is None else min(max(span.end, begin), duration)
        found.append(
            Segment(
                start=round(start + begin, 3),
                end=round(start + end, 3),
                text=text,
                tokens=span.tokens,
                temperature=decoded.temperature,
                avg_logprob=decoded.avg_logprob,
                compression_ratio=decoded.compression_ratio,
                no_speech_prob=decoded.no_speech_prob,
            )
        )
    return found
