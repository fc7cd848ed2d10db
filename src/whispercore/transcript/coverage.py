"""Voice without words: the gaps of a window, which are decoded again and reported when they stay without words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..audio.cutting import SpeechChunk
from ..audio.packing import PackedWindow
from ..audio.silero import FRAME
from ..types import SAMPLE_RATE, Segment
from .placement import PlacedWord, Span, voiced_spans

LONGEST_WORD = 1.5
"""Seconds of voice. The longest of 4,600 words of read and dictated English has 1.2; longer ones hide missing words."""
SHORTEST_WORD, MAX_SHORT_SHARE = 0.05, 0.1
"""Seconds of a spoken word, and the share of shorter words that real speech may have."""
COLLAPSED_SHARE = 0.3
"""The share of words without length above which an alignment is useless."""
MIN_GAP = 0.8
"""Seconds of voice without words that are worth decoding again."""
WORD_MARGIN = 0.15
"""Seconds on each side of a word that count as covered by it."""
MAX_PAUSE = 1.0
"""Seconds of silence between two pieces of voice that may be decoded again in one window."""
GAP_MARGIN = 0.4
"""Seconds of silence kept on each side of a gap."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Voice without words. `packed`: a window of it alone.

    `words`: implausibly long words in it; decoding again may replace them.
    """

    packed: PackedWindow
    words: tuple[PlacedWord, ...]


def voiced_seconds(packed: PackedWindow) -> float | None:
    """Seconds of voice in a window; None when the voice detector did not run."""
    if any(chunk.voiced is None for chunk in packed.chunks):
        return None
    return sum(end - begin for chunk in packed.chunks for begin, end in voiced_spans(chunk))


def has_spoken_durations(words: Sequence[PlacedWord]) -> bool:
    """Whether nearly all words last as long as spoken words do."""
    return _count_short(words) <= MAX_SHORT_SHARE * len(words)


def is_collapsed(words: Sequence[PlacedWord]) -> bool:
    """Whether many words have no length: the model's attention does not follow the audio, so they have no times."""
    return _count_short(words) > 1 + COLLAPSED_SHARE * len(words)


def _count_short(words: Sequence[PlacedWord]) -> int:
    return sum(word.end - word.start < SHORTEST_WORD for word in words)


def gaps(words: Sequence[PlacedWord], packed: PackedWindow) -> list[Gap]:
    """The gaps between the `words` of a window; none when the voice detector did not run."""
    too_long = [word for word in words if word.voice is not None and word.voice > LONGEST_WORD]
    return _gaps([(word.start, word.end) for word in words if word not in too_long], too_long, packed)


def gaps_between(segments: Sequence[Segment], packed: PackedWindow) -> list[Gap]:
    """The gaps between the `segments` of a window that has no words."""
    return _gaps([(segment.start, segment.end) for segment in segments], (), packed)


def _gaps(spans: Sequence[Span], too_long: Sequence[PlacedWord], packed: PackedWindow) -> list[Gap]:
    covered = [(begin - WORD_MARGIN, end + WORD_MARGIN) for begin, end in spans]
    return [gap for chunk in packed.chunks for gap in _gaps_of_chunk(chunk, covered, too_long)]


def _gaps_of_chunk(chunk: SpeechChunk, covered: Sequence[Span], too_long: Sequence[PlacedWord]) -> Iterator[Gap]:
    uncovered = [piece for span in voiced_spans(chunk) for piece in _without(span, covered)]
    for group in _grouped(uncovered, covered):
        if sum(end - begin for begin, end in group) >= MIN_GAP:
            begin, end = group[0][0], group[-1][1]
            replaced = tuple(word for word in too_long if word.start < end and word.end > begin)
            yield Gap(PackedWindow((_part(chunk, _widened((begin, end), covered)),)), replaced)


def _without(span: Span, covered: Iterable[Span]) -> list[Span]:
    """The parts of a span outside the covered spans."""
    parts = [span]
    for begin, end in covered:
        split = [half for first, last in parts for half in ((first, min(last, begin)), (max(first, end), last))]
        parts = [part for part in split if part[0] < part[1]]
    return parts


def _grouped(pieces: Sequence[Span], covered: Sequence[Span]) -> Iterator[list[Span]]:
    """Groups of pieces with neither a word nor more than `MAX_PAUSE` of silence between them."""
    group: list[Span] = []
    for piece in pieces:
        if group and (piece[0] - group[-1][1] > MAX_PAUSE or any(group[-1][1] <= begin < piece[0] for begin, _ in covered)):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _widened(span: Span, covered: Sequence[Span]) -> Span:
    """A span with up to `GAP_MARGIN` seconds on each side, but nothing of a word."""
    earliest = max((end - WORD_MARGIN for _, end in covered if end - WORD_MARGIN <= span[0]), default=0.0)
    latest = min((begin + WORD_MARGIN for begin, _ in covered if begin + WORD_MARGIN >= span[1]), default=span[1] + GAP_MARGIN)
    return max(earliest, span[0] - GAP_MARGIN), min(latest, span[1] + GAP_MARGIN)


def _part(chunk: SpeechChunk, span: Span) -> SpeechChunk:
    """The part of a chunk in a span of the recording, in whole frames."""
    first = max(0, int((span[0] - chunk.start) * SAMPLE_RATE) // FRAME)
    last = min(-(-len(chunk.samples) // FRAME), -(-int((span[1] - chunk.start) * SAMPLE_RATE) // FRAME))
    voiced = None if chunk.voiced is None else chunk.voiced[first:last]
    return replace(
        chunk,
        samples=chunk.samples[first * FRAME : last * FRAME],
        start=chunk.start + first * FRAME / SAMPLE_RATE,
        voiced=voiced,
    )
