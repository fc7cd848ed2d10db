"""Voice in which no word was found: it is decoded again, and told where it stays without words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from .pack import Pack
from .silero import FRAME
from .spoken import Span, Spoken, voices
from .types import SAMPLE_RATE
from .windows import Stretch

LONGEST_WORD = 1.5
"""Seconds of voice in a word. Of 4,600 words of read and dictated English the longest has 1.2: beyond, words are missing beside it."""
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

    pack: Pack
    words: tuple[Spoken, ...]

    @property
    def span(self) -> Span:
        """Begin and end in seconds of the recording."""
        return self.pack.start, self.pack.end


def gaps(found: Sequence[Spoken], pack: Pack) -> list[Gap]:
    """What is missing of a window whose words are `found`; nothing where the detector was not asked."""
    long = [one for one in found if one.voice is not None and one.voice > LONGEST_WORD]
    kept = [(one.start - AROUND, one.end + AROUND) for one in found if one not in long]
    return [gap for stretch in pack.stretches for gap in _gaps_of(stretch, kept, long)]


def _gaps_of(stretch: Stretch, kept: Sequence[Span], long: Sequence[Spoken]) -> Iterator[Gap]:
    bare = [piece for voice in voices(stretch) for piece in _without(voice, kept)]
    for group in _near(bare, kept):
        if sum(end - begin for begin, end in group) >= LEAST:
            begin, end = group[0][0], group[-1][1]
            again = tuple(one for one in long if one.start < end and one.end > begin)
            yield Gap(Pack((_part(stretch, _widened((begin, end), kept)),)), again)


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


def _part(stretch: Stretch, span: Span) -> Stretch:
    """A part of a stretch, in whole frames."""
    first = max(0, int((span[0] - stretch.start) * SAMPLE_RATE) // FRAME)
    last = min(-(-len(stretch.samples) // FRAME), -(-int((span[1] - stretch.start) * SAMPLE_RATE) // FRAME))
    voiced = None if stretch.voiced is None else stretch.voiced[first:last]
    return replace(
        stretch,
        samples=stretch.samples[first * FRAME : last * FRAME],
        start=stretch.start + first * FRAME / SAMPLE_RATE,
        voiced=voiced,
    )
