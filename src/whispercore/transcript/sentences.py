"""Words → subtitle-sized segments: sentences or parts of long sentences, never across a long pause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..audio.packing import PackedWindow
from ..tokenizer import Tokenizer
from ..types import FRAMES_PER_SECOND, Segment
from .placement import PlacedWord

PAUSE = 0.8
"""Seconds of silence that always end a segment."""
SHORT_PAUSE = 0.3
"""Seconds of silence that end a segment after a clause or after a short sentence."""
SHORT = 1.0
"""Seconds: a shorter sentence shares a segment with the next one, if no pause follows."""
SHORT_CLAUSE = 2.0
"""Seconds: a shorter clause is not a segment of its own, unless a long pause follows."""
LEAD_IN = 0.25
"""Seconds that a segment starts before its first word, at most half of the pause: voice is detected this late."""
LONGEST = 10.0
"""Seconds of a segment; a longer sentence is split at its clauses and pauses."""
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "।", "۔", "؟", "։", "።", "။")
CLAUSE_ENDS = (",", ";", ":", "—", "、", "，", "；", "：", "،", "؛")
CLOSING = "\"'”’»)]}」』】）"


def sentence_segments(words: Sequence[PlacedWord], packed: PackedWindow, tokenizer: Tokenizer, *, with_words: bool) -> list[Segment]:
    """The segments of a window's words, in order. `with_words`: the segments keep their words."""
    segments: list[Segment] = []
    for part in (part for sentence in _sentences(words) for part in _divided(sentence)):
        room = (part[0].start - segments[-1].end) / 2 if segments else part[0].start - packed.start
        start = part[0].start - max(0.0, min(LEAD_IN, room))
        segments.append(_segment(part, start, round(packed.start * FRAMES_PER_SECOND), tokenizer, with_words=with_words))
    return segments


def _sentences(words: Sequence[PlacedWord]) -> Iterator[list[PlacedWord]]:
    """Groups of words, each up to the end of a sentence or to a pause."""
    sentence: list[PlacedWord] = []
    for word, after in zip(words, [*words, None][1:], strict=True):
        sentence.append(word)
        if after is None or _ends(sentence, after):
            yield sentence
            sentence = []


def _ends(sentence: Sequence[PlacedWord], after: PlacedWord) -> bool:
    """Whether a segment ends before the word `after`."""
    last, pause = sentence[-1], after.start - sentence[-1].end
    if pause >= PAUSE or after.source is not last.source:
        return True
    text = last.text.rstrip(CLOSING + " ")
    if text.endswith(SENTENCE_ENDS):
        return pause >= SHORT_PAUSE or last.end - sentence[0].start >= SHORT
    return text.endswith(CLAUSE_ENDS) and pause >= SHORT_PAUSE and last.end - sentence[0].start >= SHORT_CLAUSE


def _divided(sentence: list[PlacedWord]) -> Iterator[list[PlacedWord]]:
    """Parts of a sentence of at most `LONGEST` seconds, split at its longest pauses and preferably after a clause."""
    if sentence[-1].end - sentence[0].start <= LONGEST or len(sentence) < 2:
        yield sentence
        return
    split = max(range(1, len(sentence)), key=lambda index: _split_score(sentence, index))
    yield from _divided(sentence[:split])
    yield from _divided(sentence[split:])


def _split_score(sentence: Sequence[PlacedWord], index: int) -> float:
    """How good a split before the word `index` is: seconds of pause, the end of a clause, nearness to the middle."""
    start, end = sentence[0].start, sentence[-1].end
    before, after = sentence[index - 1], sentence[index]
    off_center = abs((before.end + after.start) / 2 - (start + end) / 2) / (end - start)
    return after.start - before.end + 0.5 * before.text.rstrip(CLOSING + " ").endswith(CLAUSE_ENDS) - off_center


def _segment(part: Sequence[PlacedWord], start: float, seek: int, tokenizer: Tokenizer, *, with_words: bool) -> Segment:
    tokens = tuple(token for word in part for token in word.tokens)
    source = part[0].source
    return Segment(
        start=round(start, 2),
        end=part[-1].end,
        text=tokenizer.decode(tokens),
        tokens=tokens,
        temperature=source.temperature,
        avg_logprob=source.avg_logprob,
        compression_ratio=source.compression_ratio,
        no_speech_prob=source.no_speech_prob,
        words=tuple(word.word for word in part) if with_words else (),
        seek=seek,
        logprobs=tuple(logprob for word in part for logprob in word.logprobs),
    )
