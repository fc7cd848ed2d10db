"""Segments → srt, vtt and tsv. openai-whisper's writer decides what stands in a cue; here every cue gets a length and an order.

Words may last no time at all, above all in languages without blanks, and two channels may speak at once. A cue without a length is
never shown and is an error to WebVTT, so neighbours share what time there is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from whisper.utils import SubtitlesWriter, format_timestamp

from ..types import Segment, Word

SHORTEST = 100
"""Milliseconds that a cue without a length is shown, where the next one leaves so much."""


class Cue(NamedTuple):
    """What is shown from `start` to `end`, milliseconds from the recording's beginning."""

    start: int
    end: int
    text: str


def srt(segments: Sequence[Segment], options: Mapping[str, int | bool]) -> str:
    """SubRip. `options`: openai-whisper's, such as max_line_width."""
    cues = enumerate(_cues(segments, options), start=1)
    return "".join(f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n\n" for number, cue in cues)


def vtt(segments: Sequence[Segment], options: Mapping[str, int | bool]) -> str:
    """WebVTT."""
    cues = (f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{cue.text}\n\n" for cue in _cues(segments, options))
    return "WEBVTT\n\n" + "".join(cues)


def tsv(segments: Sequence[Segment]) -> str:
    """A row per segment: milliseconds of its start and end, its text."""
    rows = [Cue(_milliseconds(one.start), _milliseconds(one.end), _one_line(one.text).strip().replace("\t", " ")) for one in segments]
    return "".join(f"{start}\t{end}\t{text}\n" for start, end, text in [("start", "end", "text"), *in_turn(rows)])


def in_turn(cues: Iterable[Cue]) -> Iterator[Cue]:
    """The cues one after the other: each has a length, none begins before the one before it has ended. Empty ones are left out.

    Those that begin at once share the time until the next; a cue ends where the next begins.
    """
    shown = [cue for cue in cues if cue.text.strip()]
    index = free = 0
    while index < len(shown):
        start = max(shown[index].start, free)
        after = next((number for number in range(index, len(shown)) if shown[number].start > start), len(shown))
        now, following = shown[index:after], shown[after].start if after < len(shown) else math.inf
        end = min(max(cue.end for cue in now), following)
        if end - start < len(now):  # less than a millisecond for each
            end = max(min(start + SHORTEST * len(now), following), start + len(now))
        index, free = after, int(end)
        edges = [start + (free - start) * number // len(now) for number in range(len(now) + 1)]
        yield from (Cue(edges[number], edges[number + 1], cue.text) for number, cue in enumerate(now))


class _Writer(SubtitlesWriter):  # type: ignore[misc]  # untyped
    """openai-whisper's division of segments into cues, with times in milliseconds."""

    def format_timestamp(self, seconds: float) -> int:
        """The time as `iterate_result` yields it: whole milliseconds."""
        return _milliseconds(seconds)


def _cues(segments: Sequence[Segment], options: Mapping[str, int | bool]) -> Iterator[Cue]:
    by_word = any(segment.words for segment in segments)
    content = {"segments": [_as_whispers(segment, by_word) for segment in segments]}
    found: Iterable[tuple[int, int, str]] = _Writer("").iterate_result(content, dict(options))
    return in_turn(Cue(start, end, _payload(text)) for start, end, text in found)


def _as_whispers(segment: Segment, by_word: bool) -> dict[str, object]:
    """A segment as openai-whisper's writers read it. By word they leave out one that has none, so its text stands as one word."""
    cue = {"start": segment.start, "end": segment.end, "text": _one_line(segment.text)}
    words = segment.words or (Word(segment.text, segment.start, segment.end, 0.0),)
    timed = [{"word": _one_line(word.word), "start": word.start, "end": word.end} for word in words]
    return {**cue, "words": timed} if by_word else cue


def _payload(text: str) -> str:
    """A cue's text: an empty line would end the cue, an arrow would be taken for its times."""
    return "\n".join(line for line in re.sub("--+>", "->", text).splitlines() if line.strip())


def _one_line(text: str) -> str:
    """A line break in a text would end the cue or the row there."""
    return " ".join(text.splitlines())


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _time(milliseconds: int, marker: str) -> str:
    stamp: Callable[..., str] = format_timestamp
    return stamp(milliseconds / 1000, always_include_hours=marker == ",", decimal_marker=marker)
