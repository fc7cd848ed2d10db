"""Hallucinations: improbable, very short or very long words between silences (rules of whisper/transcribe.py)."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Dropped, Segment, Word

_PUNCTUATION = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"
_EDGE = 2.0
"""Seconds from a window's edge within which the rule assumes silence."""


def anomaly(word: Word) -> float:
    """A word's anomaly score: 0 for an ordinary word, more for an improbable, very short or very long one."""
    duration = word.end - word.start
    return (word.probability < 0.15) + max(0.0, 0.133 - duration) * 15 + max(0.0, duration - 2.0)


def is_anomalous(segment: Segment | None) -> bool:
    """Whether the scores of the first eight words add up to an anomaly; False for None or without words."""
    if segment is None or not segment.words:
        return False
    words = [word for word in segment.words if word.word not in _PUNCTUATION][:8]
    score = sum(anomaly(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)


def first_with_words(segments: Sequence[Segment]) -> Segment | None:
    """The first segment that has words."""
    return next((segment for segment in segments if segment.words), None)


def find_hallucination(
    segments: Sequence[Segment], *, start: float, end: float, window_end: float, last_speech: float, threshold: float
) -> int | None:
    """The index of the first anomalous segment with silence or another anomaly on both sides; None if there is none.

    `start`, `end`: the window's audio in seconds; `window_end`: 30 s after its start; `last_speech`: the end of the
    previous word.
    """
    last_end = last_speech
    for index, segment in enumerate(segments):
        if not segment.words:
            continue
        if is_anomalous(segment):
            following = first_with_words(segments[index + 1 :])
            next_start = following.words[0].start if following else end
            silence_before = segment.start - last_end > threshold or segment.start < threshold or segment.start - start < _EDGE
            silence_after = next_start - segment.end > threshold or is_anomalous(following) or window_end - segment.end < _EDGE
            if silence_before and silence_after:
                return index
        last_end = segment.end
    return None


def without_hallucinations(
    segments: list[Segment], start: float, end: float, threshold: float | None
) -> tuple[list[Segment], list[Dropped]]:
    """Split an independent window's segments into kept and hallucinated ones.

    They need words; a threshold of None keeps all.
    """
    kept, dropped = list(segments), list[Dropped]()
    while threshold is not None:
        index = find_hallucination(kept, start=start, end=end, window_end=end, last_speech=start, threshold=threshold)
        if index is None:
            break
        dropped.append(as_dropped(kept.pop(index)))
    return kept, dropped


def as_dropped(segment: Segment) -> Dropped:
    """The segment as a dropped hallucination."""
    return Dropped(segment.start, segment.end, segment.text, "hallucination")
