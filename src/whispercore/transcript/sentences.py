"""Words → segments of the size of a subtitle: sentences, or parts of long ones, never across a pause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..audio.packing import PackedWindow
from ..tokenizer import Tokenizer
from ..types import FRAMES_PER_SECOND, Segment
from .placement import PlacedWord

PAUSE = 0.8
"""Seconds of silence that end a segment wherever they come."""
SHORT_PAUSE = 0.3
"""Seconds of silence that end a segment after a comma, or a short sentence."""
SHORT = 1.0
"""Seconds: a sentence shorter than this shares a segment with the next one, if that follows at once."""
SHORT_CLAUSE = 2.0
"""Seconds: a shorter part of a sentence is no segment of its own, unless a long pause follows."""
LEAD_IN = 0.25
"""Seconds of the pause before it, half of the pause at most, with which a segment begins: the detector hears a voice that late."""
LONGEST = 10.0
"""Seconds of a segment; a longer sentence is divided at its clauses and pauses."""
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "।", "۔", "؟", "։", "።", "။")
CLAUSE_ENDS = (",", ";", ":", "—", "、", "，", "；", "：", "،", "؛")
CLOSING = "\"'”’»)]}」』】）"


def segments(spoken: Sequence[PlacedWord], pack: PackedWindow, tokenizer: Tokenizer, *, with_words: bool) -> list[Segment]:
    """The segments that a window's words make, in order; `with_words`: with the words in them."""
    found: list[Segment] = []
    for part in (part for sentence in _sentences(spoken) for part in _divided(sentence)):
        room = (part[0].start - found[-1].end) / 2 if found else part[0].start - pack.start
        start = part[0].start - max(0.0, min(LEAD_IN, room))
        found.append(_segment(part, start, round(pack.start * FRAMES_PER_SECOND), tokenizer, with_words=with_words))
    return found


def _sentences(spoken: Sequence[PlacedWord]) -> Iterator[list[PlacedWord]]:
    """Words up to the end of a sentence or to a pause."""
    held: list[PlacedWord] = []
    for word, after in zip(spoken, [*spoken, None][1:], strict=True):
        held.append(word)
        if after is None or _ends(held, after):
            yield held
            held = []


def _ends(held: Sequence[PlacedWord], after: PlacedWord) -> bool:
    """Whether a segment ends before the word `after`."""
    last, pause = held[-1], after.start - held[-1].end
    if pause >= PAUSE or after.source is not last.source:
        return True
    text = last.text.rstrip(CLOSING + " ")
    if text.endswith(SENTENCE_ENDS):
        return pause >= SHORT_PAUSE or last.end - held[0].start >= SHORT
    return text.endswith(CLAUSE_ENDS) and pause >= SHORT_PAUSE and last.end - held[0].start >= SHORT_CLAUSE


def _divided(sentence: list[PlacedWord]) -> Iterator[list[PlacedWord]]:
    """A sentence in parts of at most `LONGEST` seconds, cut where it pauses longest; after a comma rather than elsewhere."""
    if sentence[-1].end - sentence[0].start <= LONGEST or len(sentence) < 2:
        yield sentence
        return
    cut = max(range(1, len(sentence)), key=lambda index: _fitness(sentence, index))
    yield from _divided(sentence[:cut])
    yield from _divided(sentence[cut:])


def _fitness(sentence: Sequence[PlacedWord], index: int) -> float:
    """How well a sentence is cut before the word `index`: seconds of pause, a clause's end, and near the middle."""
    start, end = sentence[0].start, sentence[-1].end
    before, after = sentence[index - 1], sentence[index]
    off_center = abs((before.end + after.start) / 2 - (start + end) / 2) / (end - start)
    return after.start - before.end + 0.5 * before.text.rstrip(CLOSING + " ").endswith(CLAUSE_ENDS) - off_center


def _segment(part: Sequence[PlacedWord], start: float, seek: int, tokenizer: Tokenizer, *, with_words: bool) -> Segment:
    tokens = tuple(token for one in part for token in one.tokens)
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
        words=tuple(one.word for one in part) if with_words else (),
        seek=seek,
        logprobs=tuple(logprob for one in part for logprob in one.logprobs),
    )
