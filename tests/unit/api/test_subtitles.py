"""Cues in order and with a length, whatever the words' times are; on ordinary input openai-whisper's (tests/unit/api/test_reply.py)."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispercore.api.subtitles import MIN_DURATION, Cue, in_sequence, srt, tsv, vtt
from whispercore.types import Segment, Word

OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_words_per_line": 1},
    {"max_words_per_line": 3},
    {"max_line_width": 4},
    {"max_line_width": 10, "max_line_count": 1},
    {"highlight_words": True},
    {"highlight_words": True, "max_words_per_line": 2},
    {"highlight_words": True, "max_line_width": 6, "max_line_count": 2},
]


def segment(*words: tuple[str, float, float], channel: int | None = None) -> Segment:
    text = "".join(word for word, _, _ in words)
    return Segment(words[0][1], words[-1][2], text, words=tuple(Word(*one, 0.9) for one in words), channel=channel)


# As openai-whisper's aligner gives them: words of a language without blanks often last no time.
JAPANESE = [
    segment(("これ", 0.0, 0.5), ("は", 0.5, 0.5), ("日本", 0.5, 0.5), ("語", 0.5, 1.2), ("です", 1.2, 1.2), ("。", 1.2, 1.2)),
    segment(("また", 1.2, 1.2), ("明日", 1.2, 2.0), ("ね", 2.0, 2.0)),
]


def cues(text: str) -> list[Cue]:
    """Of SubRip or WebVTT, read strictly."""
    blocks = text.removeprefix("WEBVTT\n\n").split("\n\n")
    assert blocks.pop() == ""
    found = []
    for number, block in enumerate(blocks, start=1):
        lines = block.splitlines()
        if not text.startswith("WEBVTT"):
            assert lines.pop(0) == str(number)
        times = re.fullmatch(r"(?:(\d\d+):)?(\d\d):(\d\d)[.,](\d{3}) --> (?:(\d\d+):)?(\d\d):(\d\d)[.,](\d{3})", lines[0])
        assert times and lines[1:] and all(line.strip() for line in lines[1:]) and "-->" not in "".join(lines[1:])
        hours, minutes, seconds, parts, *end = (int(one or 0) for one in times.groups())
        found.append(
            Cue(
                ((hours * 60 + minutes) * 60 + seconds) * 1000 + parts,
                ((end[0] * 60 + end[1]) * 60 + end[2]) * 1000 + end[3],
                "\n".join(lines[1:]),
            )
        )
    return found


def assert_in_sequence(found: list[Cue]) -> None:
    assert all(cue.start < cue.end for cue in found), found
    assert all(one.end <= other.start for one, other in pairwise(found)), found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("write", [srt, vtt])
def test_a_language_without_blanks(write: Any, options: dict[str, Any]) -> None:
    found = cues(write(JAPANESE, options))
    assert_in_sequence(found)
    said = "".join(cue.text for cue in found) if not options.get("highlight_words") else ""
    assert not said or re.sub(r"\s", "", said) == "これは日本語です。また明日ね"


def test_one_word_a_line_shares_the_time_there_is() -> None:
    found = cues(srt(JAPANESE, {"max_words_per_line": 1}))
    assert [cue.text for cue in found] == ["これ", "は", "日本", "語", "です", "。", "また", "明日", "ね"]
    assert [(cue.start, cue.end) for cue in found[:4]] == [(0, 500), (500, 733), (733, 966), (966, 1200)]
    assert (found[-1].start, found[-1].end) == (2000, 2000 + MIN_DURATION)


def test_segments_without_length_and_out_of_order() -> None:
    segments = [
        Segment(1.0, 1.0, " a"),
        Segment(1.0, 1.0, " b"),
        Segment(1.05, 3.0, " c"),
        Segment(2.0, 2.0, " d"),
        Segment(0.5, 0.7, " e"),
    ]
    assert_in_sequence(cues(vtt(segments, {})))
    rows = [line.split("\t") for line in tsv(segments).splitlines()[1:]]
    assert_in_sequence([Cue(int(start), int(end), text) for start, end, text in rows])
    assert [text for _, _, text in rows] == list("abcde")


def test_two_channels_at_once() -> None:
    segments = [segment((" long", 0.0, 9.0), channel=0), segment((" short", 2.0, 3.0), channel=1), segment((" both", 2.0, 4.0), channel=0)]
    found = cues(srt(segments, {}))
    assert_in_sequence(found)
    assert [(cue.start, cue.text) for cue in found] == [(0, "long"), (2000, "short"), (3000, "both")]


def test_what_would_end_a_cue() -> None:
    segments = [
        segment((" a", 0.0, 1.0), (" --", 1.0, 1.5), (">", 1.5, 2.0)),
        segment((" ", 3.0, 4.0)),
        Segment(5.0, 6.0, " b\n\n --->\r\nc\u2028d"),
    ]
    found = cues(vtt(segments, {"max_line_width": 20}))
    assert [cue.text for cue in found] == ["a ->", "b   -> c d"]


def test_long_transcripts_take_no_long_time() -> None:
    assert sum(1 for _ in in_sequence(Cue(number * 10, number * 10, "x") for number in range(100_000))) == 100_000


TIMES = st.floats(0, 50_000, allow_nan=False) | st.sampled_from([0.0, 1.0, 1.0004, 3.0])
WORDS = st.tuples(st.text(max_size=4) | st.sampled_from([" a", "語", "-->", "\n", " "]), TIMES, TIMES)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=4), st.sampled_from(OPTIONS), st.sampled_from([srt, vtt]))
def test_any_times_give_cues_in_sequence(segments: list[list[tuple[str, float, float]]], options: dict[str, Any], write: Any) -> None:
    assert_in_sequence(cues(write([segment(*words) for words in segments], options)))
