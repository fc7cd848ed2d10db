"""Voice in which no word was found: it is decoded again, and told where it stays without words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..audio.cutting import SpeechChunk
from ..audio.packing import PackedWindow
from ..audio.silero import FRAME
from ..types import SAMPLE_RATE, Segment
from .placement import PlacedWord, Span, voices

LONGEST_WORD = 1.5
"""Seconds of voice in a word. Of 4,600 words of read and dictated English the longest has 1.2: beyond, words are missing beside it."""
SHORTEST_WORD, SHORT_SHARE = 0.05, 0.1
"""Seconds of a word, and the share of shorter ones that there may be in speech."""
COLLAPSED_SHARE = 0.3
"""The share of words without length from which on an alignment is no use."""
LEAST = 0.8
"""Seconds of voice without a word that are worth decoding again."""
AROUND = 0.15
"""Seconds around a word that are its own."""
TOGETHER = 1.0
"""Seconds of silence between two voices that are decoded again in one window."""
MARGIN = 0.4
"""Seconds of silence that are kept around what is decoded again."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Voice without words. `pack`: a window of it alone; `words`: those that are too long to be true, and may be heard again in it."""

    pack: PackedWindow
    words: tuple[PlacedWord, ...]


def voice(pack: PackedWindow) -> float | None:
    """Seconds of voice in a window; None when the detector was not asked."""
    if any(chunk.voiced is None for chunk in pack.chunks):
        return None
    return sum(end - begin for chunk in pack.chunks for begin, end in voices(chunk))


def has_sound(found: Sequence[PlacedWord]) -> bool:
    """Whether nearly all words last as long as spoken ones do."""
    return _short(found) <= SHORT_SHARE * len(found)


def is_collapsed(found: Sequence[PlacedWord]) -> bool:
    """Whether many words lie at one moment: the model's attention does not follow the sound, and tells no times."""
    return _short(found) > 1 + COLLAPSED_SHARE * len(found)


def _short(found: Sequence[PlacedWord]) -> int:
    return sum(one.end - one.start < SHORTEST_WORD for one in found)


def gaps(found: Sequence[PlacedWord], pack: PackedWindow) -> list[Gap]:
    """What is missing of a window whose words are `found`; nothing where the detector was not asked."""
    long = [one for one in found if one.voice is not None and one.voice > LONGEST_WORD]
    return _gaps([(one.start, one.end) for one in found if one not in long], long, pack)


def gaps_between(segments: Sequence[Segment], pack: PackedWindow) -> list[Gap]:
    """What is missing of a window whose `segments` have no words."""
    return _gaps([(one.start, one.end) for one in segments], (), pack)


def _gaps(spans: Sequence[Span], long: Sequence[PlacedWord], pack: PackedWindow) -> list[Gap]:
    kept = [(begin - AROUND, end + AROUND) for begin, end in spans]
    return [gap for chunk in pack.chunks for gap in _gaps_of(chunk, kept, long)]


def _gaps_of(chunk: SpeechChunk, kept: Sequence[Span], long: Sequence[PlacedWord]) -> Iterator[Gap]:
    bare = [piece for heard in voices(chunk) for piece in _without(heard, kept)]
    for group in _near(bare, kept):
        if sum(end - begin for begin, end in group) >= LEAST:
            begin, end = group[0][0], group[-1][1]
            again = tuple(one for one in long if one.start < end and one.end > begin)
            yield Gap(PackedWindow((_part(chunk, _widened((begin, end), kept)),)), again)


def _without(voice: Span, kept: Iterable[Span]) -> list[Span]:
    """What is left of a span without others."""
    left = [voice]
    for begin, end in kept:
        left = [part for one in left for part in ((one[0], min(one[1], begin)), (max(one[0], end), one[1])) if part[0] < part[1]]
    return left


def _near(pieces: Sequence[Span], kept: Sequence[Span]) -> Iterator[list[Span]]:
    """Pieces with neither a word nor much silence between them."""
    held: list[Span] = []
    for piece in pieces:
        if held and (piece[0] - held[-1][1] > TOGETHER or any(held[-1][1] <= begin < piece[0] for begin, _ in kept)):
            yield held
            held = []
        held.append(piece)
    if held:
        yield held


def _widened(span: Span, kept: Sequence[Span]) -> Span:
    """A span with some silence around it, but none of a word."""
    before = max((end - AROUND for _, end in kept if end - AROUND <= span[0]), default=0.0)
    after = min((begin + AROUND for begin, _ in kept if begin + AROUND >= span[1]), default=span[1] + MARGIN)
    return max(before, span[0] - MARGIN), min(after, span[1] + MARGIN)


def _part(chunk: SpeechChunk, span: Span) -> SpeechChunk:
    """A part of a chunk, in whole frames."""
    first = max(0, int((span[0] - chunk.start) * SAMPLE_RATE) // FRAME)
    last = min(-(-len(chunk.samples) // FRAME), -(-int((span[1] - chunk.start) * SAMPLE_RATE) // FRAME))
    voiced = None if chunk.voiced is None else chunk.voiced[first:last]
    return replace(
        chunk,
        samples=chunk.samples[first * FRAME : last * FRAME],
        start=chunk.start + first * FRAME / SAMPLE_RATE,
        voiced=voiced,
    )
