"""Words and their times: openai-whisper's rules (`whisper.timing.add_word_timestamps`) over the token times of a decoded window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..tokenizer import Tokenizer
from ..types import Decoded, Segment, Word

SENTENCE_ENDS = ".。!！?？"
LONGEST_MEDIAN = 0.7
"""Seconds: a median word longer than that is no measure for the others."""
LEAST_PROBABILITY = 1e-10
"""Of a token, for its logarithm to be a number."""
TRUSTED = 0.5
"""Seconds by which a segment's timestamp may differ from its words; beyond, the timestamp is believed."""


@dataclass(slots=True)
class Timing:
    """A word while its times, in seconds from the window's beginning, are worked on; of how many tokens it is made."""

    word: str
    count: int
    start: float
    end: float
    probability: float


def add_words(
    segments: Sequence[Segment],
    decoded: Decoded,
    *,
    start: float,
    tokenizer: Tokenizer,
    last_speech: float,
    prepend: str,
    append: str,
) -> list[Segment]:
    """The segments of one window with their words, and their own times set by them.

    `segments` hold all the text tokens that `decoded.token_times` times, in order; `start` is where the window begins, `last_speech`
    where speech ended before it, in seconds of the recording. The result is openai-whisper's, whose rules may let words overlap by a
    few hundredths of a second: see `clamp`. Raises ValueError when the times are of other tokens than the segments'.
    """
    counts = [sum(token < tokenizer.eot for token in segment.tokens) for segment in segments]
    if sum(counts) != len(decoded.token_probs):
        raise ValueError(f"times of {len(decoded.token_probs)} tokens do not fit segments of {sum(counts)}")
    timings = _timings([token for segment in segments for token in segment.tokens if token < tokenizer.eot], decoded, tokenizer)
    median = _median_duration(timings)
    _shorten_at_sentence_ends(timings, 2 * median)
    _merge_punctuation(timings, prepend, append)
    found, queue = [], iter(timings)
    for segment, count in zip(segments, counts, strict=True):
        words = [_in_recording(timing, start) for timing in _take(queue, count) if timing.word]
        segment = _with_words(segment, words, median, last_speech)
        last_speech = segment.end if words else last_speech
        found.append(segment)
    return found


def logprob(probability: float) -> float:
    """The natural logarithm of a token's probability, finite also for 0."""
    return math.log(max(probability, LEAST_PROBABILITY))


def timings(decoded: Decoded, tokenizer: Tokenizer, *, prepend: str, append: str, shorten: bool) -> list[Timing]:
    """The words of an aligned window in order, punctuation marks put to theirs.

    `shorten`: take pauses at the ends of sentences from the words there, as openai-whisper does; not needed where a detector tells pauses.
    """
    found = _timings([token for token in decoded.tokens if token < tokenizer.eot], decoded, tokenizer)
    if shorten:
        _shorten_at_sentence_ends(found, 2 * _median_duration(found))
    _merge_punctuation(found, prepend, append)
    return [timing for timing in found if timing.count]


def clamp(segments: Sequence[Segment], start: float, end: float) -> list[Segment]:
    """The same words in order: each begins at or after the end of the one before, all within `start` … `end` and their segment.

    A segment with words begins and ends with them; one without, whose words went to another, shrinks to a moment.
    """
    found = []
    for segment in segments:
        words = []
        for word in segment.words:
            start = min(max(word.start, start), end)
            words.append(replace(word, start=start, end=min(max(word.end, start), end)))
            start = words[-1].end
        found.append(replace(segment, start=words[0].start if words else start, end=start, words=tuple(words)))
    return found


def _timings(tokens: list[int], decoded: Decoded, tokenizer: Tokenizer) -> list[Timing]:
    """The window's words as its language writes them: split at spaces, or at characters where there are none."""
    if not tokens:
        return []
    openai = tokenizer.openai_for(decoded.language, None)
    words, parts = openai.split_to_word_tokens([*tokens, tokenizer.eot])
    if parts and parts[-1] == [tokenizer.eot]:
        words, parts = words[:-1], parts[:-1]
    edges = [0, *np.cumsum([len(part) for part in parts]).tolist()]
    if edges[-1] != len(tokens) or not words:  # openai-whisper leaves out an unfinished letter, and the tokens after it
        words, edges = words[:-1], edges[:-1] or [0]
        words.append(tokenizer.decode(tokens[edges[-1] :]))
        edges.append(len(tokens))
    times, probs = decoded.token_times, decoded.token_probs
    return [
        Timing(word, after - before, times[before], times[after], float(np.mean(probs[before:after])))
        for word, (before, after) in zip(words, pairwise(edges), strict=True)
    ]


def _median_duration(timings: Sequence[Timing]) -> float:
    """Seconds that a word lasts in the median, at most 0.7; 0 when none lasts."""
    durations = [timing.end - timing.start for timing in timings if timing.end - timing.start != 0]
    return min(LONGEST_MEDIAN, float(np.median(durations))) if durations else 0.0


def _shorten_at_sentence_ends(timings: Sequence[Timing], longest: float) -> None:
    """A full stop, or the word after it, takes the pause between two sentences upon itself: no longer than `longest`."""
    for before, timing in pairwise(timings):
        if longest and timing.end - timing.start > longest:
            if timing.word in SENTENCE_ENDS:
                timing.end = timing.start + longest
            elif before.word in SENTENCE_ENDS:
                timing.start = timing.end - longest


def _merge_punctuation(timings: Sequence[Timing], prepend: str, append: str) -> None:
    """Opening marks go to the word after them, closing ones to the word before; what is left of them is empty."""
    if not timings:
        return
    following = timings[-1]
    for previous in reversed(timings[:-1]):
        if previous.word.startswith(" ") and previous.word.strip() in prepend:
            _move(previous, following, previous.word + following.word)
        else:
            following = previous
    previous = timings[0]
    for following in timings[1:]:
        if not previous.word.endswith(" ") and following.word in append:
            _move(following, previous, previous.word + following.word)
        else:
            previous = following


def _move(source: Timing, target: Timing, word: str) -> None:
    """Make `target` the two as one `word`, with the times it had."""
    target.word, target.count = word, target.count + source.count
    source.word, source.count = "", 0


def _take(timings: Iterator[Timing], count: int) -> Iterator[Timing]:
    """The words of the next `count` tokens; one that reaches beyond them belongs to them."""
    while count > 0 and (timing := next(timings, None)):
        count -= timing.count
        yield timing


def _in_recording(timing: Timing, start: float) -> Timing:
    return replace(timing, start=round(start + timing.start, 2), end=round(start + timing.end, 2))


def _with_words(segment: Segment, words: Sequence[Timing], median: float, last_speech: float) -> Segment:
    """The segment with its words: long ones at its edges shortened, and its own times the words', unless these are far off."""
    if not words:
        return replace(segment, words=())
    _shorten_after_pause(words, median, last_speech)
    start, end = segment.start, segment.end
    first, last = words[0], words[-1]
    if first.start < start - TRUSTED and start < first.end:
        first.start = max(0.0, min(first.end - median, start))
    else:
        start = first.start
    if last.start < end and end + TRUSTED < last.end:
        last.end = max(last.start + median, end)
    else:
        end = last.end
    return replace(segment, start=start, end=end, words=tuple(Word(word.word, word.start, word.end, word.probability) for word in words))


def _shorten_after_pause(words: Sequence[Timing], median: float, last_speech: float) -> None:
    """The first two words after a pause take it upon themselves: no longer than two median words each."""
    first, second, longest = words[0], words[1] if len(words) > 1 else None, 2 * median
    long = first.end - first.start > longest or (second is not None and second.end - first.start > 2 * longest)
    if first.end - last_speech <= 4 * median or not long:
        return
    if second is not None and second.end - second.start > longest:
        first.end = second.start = max(second.end / 2, second.end - longest)
    first.start = max(0.0, first.end - longest)
