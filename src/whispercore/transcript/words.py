"""Word times from a window's token times, by openai-whisper's rules (`whisper.timing.add_word_timestamps`)."""

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
"""Seconds: the upper bound of the median word duration, by which long words are shortened."""
MIN_PROBABILITY = 1e-10
"""The lower bound of a token's probability, so that its logarithm is finite."""
MAX_DEVIATION = 0.5
"""Seconds that a segment's timestamp may differ from its words. Beyond that the timestamp wins."""


@dataclass(slots=True)
class TimedWord:
    """A word of `count` tokens and its times in seconds from the window's start; mutable while the rules adjust it."""

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
    """The segments of one window with their words; the words set the segments' times.

    `segments` hold exactly the text tokens of `decoded.token_times`, in order. `start`: the window's start,
    `last_speech`: the end of speech before it, both in seconds of the recording. The result equals openai-whisper's,
    whose rules let words overlap by a few hundredths of a second: see `clamp`. Raises ValueError when the number of
    times does not fit the segments' tokens.
    """
    counts = [sum(token < tokenizer.eot for token in segment.tokens) for segment in segments]
    if sum(counts) != len(decoded.token_probs):
        raise ValueError(f"times of {len(decoded.token_probs)} tokens do not fit segments of {sum(counts)}")
    timed = _split_words([token for segment in segments for token in segment.tokens if token < tokenizer.eot], decoded, tokenizer)
    median = _median_duration(timed)
    _shorten_at_sentence_ends(timed, 2 * median)
    _merge_punctuation(timed, prepend, append)
    with_words, queue = [], iter(timed)
    for segment, count in zip(segments, counts, strict=True):
        words = [_in_recording(word, start) for word in _take(queue, count) if word.word]
        segment = _with_words(segment, words, median, last_speech)
        last_speech = segment.end if words else last_speech
        with_words.append(segment)
    return with_words


def logprob(probability: float) -> float:
    """The natural logarithm of a token's probability; finite for 0 as well."""
    return math.log(max(probability, MIN_PROBABILITY))


def timed_words(decoded: Decoded, tokenizer: Tokenizer, *, prepend: str, append: str, shorten: bool) -> list[TimedWord]:
    """The words of an aligned window in order, punctuation merged into them.

    `shorten`: shorten long words at the ends of sentences, as openai-whisper does. A voice detector makes this
    unnecessary.
    """
    timed = _split_words([token for token in decoded.tokens if token < tokenizer.eot], decoded, tokenizer)
    if shorten:
        _shorten_at_sentence_ends(timed, 2 * _median_duration(timed))
    _merge_punctuation(timed, prepend, append)
    return [word for word in timed if word.count]


def clamp(segments: Sequence[Segment], start: float, end: float) -> list[Segment]:
    """The same words without overlaps, within `start` … `end` and their segment.

    A segment with words starts and ends with them. A segment whose words went to another one gets a duration of 0.
    """
    clamped = []
    for segment in segments:
        words = []
        for word in segment.words:
            start = min(max(word.start, start), end)
            words.append(replace(word, start=start, end=min(max(word.end, start), end)))
            start = words[-1].end
        clamped.append(replace(segment, start=words[0].start if words else start, end=start, words=tuple(words)))
    return clamped


def _split_words(tokens: list[int], decoded: Decoded, tokenizer: Tokenizer) -> list[TimedWord]:
    """The window's words, split at spaces, or at characters in languages without spaces."""
    if not tokens:
        return []
    openai = tokenizer.openai_for(decoded.language, None)
    words, parts = openai.split_to_word_tokens([*tokens, tokenizer.eot])
    if parts and parts[-1] == [tokenizer.eot]:
        words, parts = words[:-1], parts[:-1]
    edges = [0, *np.cumsum([len(part) for part in parts]).tolist()]
    if edges[-1] != len(tokens) or not words:  # openai-whisper drops an incomplete UTF-8 sequence and all tokens after it
        words, edges = words[:-1], edges[:-1] or [0]
        words.append(tokenizer.decode(tokens[edges[-1] :]))
        edges.append(len(tokens))
    times, probs = decoded.token_times, decoded.token_probs
    return [
        TimedWord(word, after - before, times[before], times[after], float(np.mean(probs[before:after])))
        for word, (before, after) in zip(words, pairwise(edges), strict=True)
    ]


def _median_duration(words: Sequence[TimedWord]) -> float:
    """The median duration of the words that have one, at most 0.7 s; 0 when none has."""
    durations = [word.end - word.start for word in words if word.end - word.start != 0]
    return min(LONGEST_MEDIAN, float(np.median(durations))) if durations else 0.0


def _shorten_at_sentence_ends(words: Sequence[TimedWord], longest: float) -> None:
    """Alignment adds the pause between sentences to the full stop or the next word: shorten both to `longest`."""
    for before, word in pairwise(words):
        if longest and word.end - word.start > longest:
            if word.word in SENTENCE_ENDS:
                word.end = word.start + longest
            elif before.word in SENTENCE_ENDS:
                word.start = word.end - longest


def _merge_punctuation(words: Sequence[TimedWord], prepend: str, append: str) -> None:
    """Merge opening marks into the next word, closing marks into the previous one. Merged marks stay as empty words."""
    if not words:
        return
    following = words[-1]
    for previous in reversed(words[:-1]):
        if previous.word.startswith(" ") and previous.word.strip() in prepend:
            _move(previous, following, previous.word + following.word)
        else:
            following = previous
    previous = words[0]
    for following in words[1:]:
        if not previous.word.endswith(" ") and following.word in append:
            _move(following, previous, previous.word + following.word)
        else:
            previous = following


def _move(source: TimedWord, target: TimedWord, word: str) -> None:
    """Merge `source` into `target`, which becomes `word` and keeps its times."""
    target.word, target.count = word, target.count + source.count
    source.word, source.count = "", 0


def _take(words: Iterator[TimedWord], count: int) -> Iterator[TimedWord]:
    """The words of the next `count` tokens, including a word that reaches beyond them."""
    while count > 0 and (word := next(words, None)):
        count -= word.count
        yield word


def _in_recording(word: TimedWord, start: float) -> TimedWord:
    return replace(word, start=round(start + word.start, 2), end=round(start + word.end, 2))


def _with_words(segment: Segment, words: Sequence[TimedWord], median: float, last_speech: float) -> Segment:
    """The segment with its words.

    Long words at its edges are shortened, and the words set its times unless they are far off.
    """
    if not words:
        return replace(segment, words=())
    _shorten_after_pause(words, median, last_speech)
    start, end = segment.start, segment.end
    first, last = words[0], words[-1]
    if first.start < start - MAX_DEVIATION and start < first.end:
        first.start = max(0.0, min(first.end - median, start))
    else:
        start = first.start
    if last.start < end and end + MAX_DEVIATION < last.end:
        last.end = max(last.start + median, end)
    else:
        end = last.end
    return replace(segment, start=start, end=end, words=tuple(Word(word.word, word.start, word.end, word.probability) for word in words))


def _shorten_after_pause(words: Sequence[TimedWord], median: float, last_speech: float) -> None:
    """The alignment adds a pause to the first two words after it: shorten each to two median words."""
    first, second, longest = words[0], words[1] if len(words) > 1 else None, 2 * median
    long = first.end - first.start > longest or (second is not None and second.end - first.start > 2 * longest)
    if first.end - last_speech <= 4 * median or not long:
        return
    if second is not None and second.end - second.start > longest:
        first.end = second.start = max(second.end / 2, second.end - longest)
    first.start = max(0.0, first.end - longest)
