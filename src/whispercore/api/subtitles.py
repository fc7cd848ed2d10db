"""Segments → SubRip (srt), WebVTT (vtt) and tsv.

openai-whisper's writer splits the segments into cues. This file then makes the cues follow each other, each with a
positive duration: words can have a duration of zero, above all in languages without blanks, and two channels can speak
at the same time. A cue without duration is never displayed, and is an error in WebVTT, so such cues share the time
until the next one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .. import openai_whisper
from ..types import Segment, Word

_SubtitlesWriter: Any = openai_whisper.utils.SubtitlesWriter
MIN_DURATION = 100
"""Milliseconds that a cue without duration is displayed, unless the next cue begins earlier."""


class Cue(NamedTuple):
    """Text displayed from `start` to `end`, milliseconds from the beginning of the recording."""

    start: int
    end: int
    text: str


def srt(segments: Sequence[Segment], options: Mapping[str, int | bool]) -> str:
    """A SubRip file. `options`: openai-whisper's, such as max_line_width."""
    cues = enumerate(_cues(segments, options), start=1)
    return "".join(f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n\n" for number, cue in cues)


def vtt(segments: Sequence[Segment], options: Mapping[str, int | bool]) -> str:
    """A WebVTT file. `options` as for `srt`."""
    cues = (f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{cue.text}\n\n" for cue in _cues(segments, options))
    return "WEBVTT\n\n" + "".join(cues)


def tsv(segments: Sequence[Segment]) -> str:
    """One row per segment: start and end in milliseconds, and the text."""
    rows = [
        Cue(_milliseconds(segment.start), _milliseconds(segment.end), _one_line(segment.text).strip().replace("\t", " "))
        for segment in segments
    ]
    return "".join(f"{start}\t{end}\t{text}\n" for start, end, text in [("start", "end", "text"), *in_sequence(rows)])


def in_sequence(cues: Iterable[Cue]) -> Iterator[Cue]:
    """The cues without overlaps, each with a positive duration. Cues without text are left out.

    Cues that begin together share the time until the next one; every other cue ends at the latest where the next one
    begins.
    """
    visible = [cue for cue in cues if cue.text.strip()]
    index = previous_end = 0
    while index < len(visible):
        start = max(visible[index].start, previous_end)
        next_index = next((number for number in range(index, len(visible)) if visible[number].start > start), len(visible))
        group = visible[index:next_index]
        next_start = visible[next_index].start if next_index < len(visible) else math.inf
        end = min(max(cue.end for cue in group), next_start)
        if end - start < len(group):  # less than a millisecond for each cue
            end = max(min(start + MIN_DURATION * len(group), next_start), start + len(group))
        index, previous_end = next_index, int(end)
        edges = [start + (previous_end - start) * number // len(group) for number in range(len(group) + 1)]
        yield from (Cue(edges[number], edges[number + 1], cue.text) for number, cue in enumerate(group))


class _Writer(_SubtitlesWriter):  # type: ignore[misc]  # untyped
    """openai-whisper's split of segments into cues, with times in milliseconds."""

    def format_timestamp(self, seconds: float) -> int:
        """The form in which `iterate_result` yields times: whole milliseconds."""
        return _milliseconds(seconds)


def _cues(segments: Sequence[Segment], options: Mapping[str, int | bool]) -> Iterator[Cue]:
    by_word = any(segment.words for segment in segments)
    content = {"segments": [_openai_segment(segment, by_word) for segment in segments]}
    cues: Iterable[tuple[int, int, str]] = _Writer("").iterate_result(content, dict(options))
    return in_sequence(Cue(start, end, _cue_text(text)) for start, end, text in cues)


def _openai_segment(segment: Segment, by_word: bool) -> dict[str, object]:
    """A segment as openai-whisper's writers read it.

    When they split by words, they skip a segment without words; its text therefore counts as one word.
    """
    fields = {"start": segment.start, "end": segment.end, "text": _one_line(segment.text)}
    words = segment.words or (Word(segment.text, segment.start, segment.end, 0.0),)
    timed = [{"word": _one_line(word.word), "start": word.start, "end": word.end} for word in words]
    return {**fields, "words": timed} if by_word else fields


def _cue_text(text: str) -> str:
    """The text without empty lines, which would end the cue, and without `-->`, which a parser would read as times."""
    return "\n".join(line for line in re.sub("--+>", "->", text).splitlines() if line.strip())


def _one_line(text: str) -> str:
    """The text without line breaks, which would end the cue or the row."""
    return " ".join(text.splitlines())


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _time(milliseconds: int, marker: str) -> str:
    stamp: Callable[..., str] = openai_whisper.utils.format_timestamp
    return stamp(milliseconds / 1000, always_include_hours=marker == ",", decimal_marker=marker)
