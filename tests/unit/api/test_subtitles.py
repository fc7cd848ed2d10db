"""Cues follow each other and have a duration, whatever the times of the words.

tests/unit/api/test_text.py has ordinary input.
"""

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
    return Segment(words[0][1], words[-1][2], text, words=tuple(Word(*word, 0.9) for word in words), channel=channel)


# As aligned by openai-whisper: words of languages without blanks often have a duration of zero.
JAPANESE = [
    segment(("これ", 0.0, 0.5), ("は", 0.5, 0.5), ("日本", 0.5, 0.5), ("語", 0.5, 1.2), ("です", 1.2, 1.2), ("。", 1.2, 1.2)),
    segment(("また", 1.2, 1.2), ("明日", 1.2, 2.0), ("ね", 2.0, 2.0)),
]


def parse_cues(text: str) -> list[Cue]:
    """The cues of a SubRip or WebVTT file, parsed strictly."""
    blocks = text.removeprefix("WEBVTT\n\n").split("\n\n")
    assert blocks.pop() == ""
    parsed = []
    for number, block in enumerate(blocks, start=1):
        lines = block.splitlines()
        if not text.startswith("WEBVTT"):
            assert lines.pop(0) == str(number)
        times = re.fullmatch(r"(?:(\d\d+):)?(\d\d):(\d\d)[.,](\d{3}) --> (?:(\d\d+):)?(\d\d):(\d\d)[.,](\d{3})", lines[0])
        assert times and lines[1:] and all(line.strip() for line in lines[1:]) and "-->" not in "".join(lines[1:])
        hours, minutes, seconds, parts, *end = (int(number or 0) for number in times.groups())
        parsed.append(
            Cue(
                ((hours * 60 + minutes) * 60 + seconds) * 1000 + parts,
                ((end[0] * 60 + end[1]) * 60 + end[2]) * 1000 + end[3],
                "\n".join(lines[1:]),
            )
        )
    return parsed


def assert_in_sequence(cues: list[Cue]) -> None:
    assert all(cue.start < cue.end for cue in cues), cues
    assert all(cue.end <= following.start for cue, following in pairwise(cues)), cues


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("write", [srt, vtt])
def test_a_language_without_blanks(write: Any, options: dict[str, Any]) -> None:
    cues = parse_cues(write(JAPANESE, options))
    assert_in_sequence(cues)
    text = "".join(cue.text for cue in cues) if not options.get("highlight_words") else ""
    assert not text or re.sub(r"\s", "", text) == "これは日本語です。また明日ね"


def test_words_without_duration_share_the_time_until_the_next_word() -> None:
    cues = parse_cues(srt(JAPANESE, {"max_words_per_line": 1}))
    assert [cue.text for cue in cues] == ["これ", "は", "日本", "語", "です", "。", "また", "明日", "ね"]
    assert [(cue.start, cue.end) for cue in cues[:4]] == [(0, 500), (500, 733), (733, 966), (966, 1200)]
    assert (cues[-1].start, cues[-1].end) == (2000, 2000 + MIN_DURATION)


def test_segments_without_duration_and_out_of_order() -> None:
    segments = [
        Segment(1.0, 1.0, " a"),
        Segment(1.0, 1.0, " b"),
        Segment(1.05, 3.0, " c"),
        Segment(2.0, 2.0, " d"),
        Segment(0.5, 0.7, " e"),
    ]
    assert_in_sequence(parse_cues(vtt(segments, {})))
    rows = [line.split("\t") for line in tsv(segments).splitlines()[1:]]
    assert_in_sequence([Cue(int(start), int(end), text) for start, end, text in rows])
    assert [text for _, _, text in rows] == list("abcde")


def test_two_channels_at_the_same_time() -> None:
    segments = [segment((" long", 0.0, 9.0), channel=0), segment((" short", 2.0, 3.0), channel=1), segment((" both", 2.0, 4.0), channel=0)]
    cues = parse_cues(srt(segments, {}))
    assert_in_sequence(cues)
    assert [(cue.start, cue.text) for cue in cues] == [(0, "long"), (2000, "short"), (3000, "both")]


def test_text_that_would_end_a_cue() -> None:
    segments = [
        segment((" a", 0.0, 1.0), (" --", 1.0, 1.5), (">", 1.5, 2.0)),
        segment((" ", 3.0, 4.0)),
        Segment(5.0, 6.0, " b\n\n --->\r\nc\u2028d"),
    ]
    cues = parse_cues(vtt(segments, {"max_line_width": 20}))
    assert [cue.text for cue in cues] == ["a ->", "b   -> c d"]


def test_20_000_cues_take_linear_time() -> None:
    assert sum(1 for _ in in_sequence(Cue(number * 10, number * 10, "x") for number in range(20_000))) == 20_000


TIMES = st.floats(0, 50_000, allow_nan=False) | st.sampled_from([0.0, 1.0, 1.0004, 3.0])
WORDS = st.tuples(st.text(max_size=4) | st.sampled_from([" a", "語", "-->", "\n", " "]), TIMES, TIMES)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=4), st.sampled_from(OPTIONS), st.sampled_from([srt, vtt]))
def test_any_times_give_cues_in_sequence(segments: list[list[tuple[str, float, float]]], options: dict[str, Any], write: Any) -> None:
    assert_in_sequence(parse_cues(write([segment(*words) for words in segments], options)))
