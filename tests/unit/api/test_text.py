"""Text and subtitles, compared with openai-whisper's own writers.

tests/unit/api/test_subtitles.py has the input that these get wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from whisper.utils import get_writer

from tests.unit.api.transcript_samples import (
    SILENCE,
    SPOKEN,
    TRANSCRIPT,
    WORDS,
)
from whispercore.api.reply import render
from whispercore.api.routes import CONTENT_TYPES, content_type
from whispercore.options import Reply
from whispercore.types import Segment, Transcript


def test_text() -> None:
    body = render(TRANSCRIPT, Reply(response_format="text"))
    assert (body.content_type, body.payload) == ("text/plain; charset=utf-8", (TRANSCRIPT.text + "\n").encode())
    assert render(SILENCE, Reply(response_format="text")).payload == b"\n"


@pytest.mark.parametrize("transcript", [TRANSCRIPT, SILENCE], ids=["speech", "silence"])
@pytest.mark.parametrize("response_format", ["srt", "vtt", "tsv"])
def test_subtitles_equal_openai_whispers(response_format: Any, transcript: Transcript, tmp_path: Path) -> None:
    segments = [{"start": segment.start, "end": segment.end, "text": segment.text} for segment in transcript.segments]
    get_writer(response_format, str(tmp_path))({"segments": segments}, "oracle.wav", {})
    body = render(transcript, Reply(response_format=response_format))
    assert body.payload.decode() == (tmp_path / f"oracle.{response_format}").read_text(encoding="utf-8")
    assert body.content_type == CONTENT_TYPES[response_format] + "; charset=utf-8"


@pytest.mark.parametrize("response_format", ["srt", "vtt"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_line_width": 12},
        {"max_line_width": 12, "max_line_count": 2},
        {"max_words_per_line": 2},
        {"highlight_words": True},
        {"highlight_words": True, "max_line_width": 10, "max_line_count": 1},
    ],
    ids=str,
)
def test_subtitles_by_word_equal_openai_whispers(response_format: Any, options: dict[str, Any], tmp_path: Path) -> None:
    segments = [
        {
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "words": [{"word": word.word, "start": word.start, "end": word.end} for word in segment.words],
        }
        for segment in WORDS
    ]
    get_writer(response_format, str(tmp_path))({"segments": segments}, "oracle.wav", options)
    oracle = (tmp_path / f"oracle.{response_format}").read_text(encoding="utf-8")
    assert render(SPOKEN, Reply(response_format=response_format, **options)).payload.decode() == oracle
    assert "<u>" in oracle if options.get("highlight_words") else oracle.count("-->") >= 2


def test_a_segment_without_words_among_segments_with_words() -> None:
    mixed = Transcript("…", "en", 20.0, "transcribe", (Segment(0.0, 0.05, " First --> "), *WORDS))
    srt = render(mixed, Reply(response_format="srt", max_words_per_line=2)).payload.decode()
    assert srt.startswith("1\n00:00:00,000 --> 00:00:00,050\nFirst ->\n\n2\n00:00:00,100 --> 00:00:01,000\nSo, here\n")


def test_the_exact_characters_of_subtitles() -> None:
    formats: list[Any] = ["srt", "vtt", "tsv"]
    srt, vtt, tsv = (render(TRANSCRIPT, Reply(response_format=name)).payload.decode() for name in formats)
    assert srt.startswith(
        "1\n00:00:00,000 --> 00:00:01,235\nHello & <b>you</b>.\n\n2\n00:01:00,000 --> 00:01:01,500\na -> b\tc\n\n3\n01:01:01,007"
    )
    assert vtt.startswith("WEBVTT\n\n00:00.000 --> 00:01.235\nHello")
    assert tsv.startswith("start\tend\ttext\n0\t1235\tHello & <b>you</b>.\n60000\t61500\ta --> b c\n")


@pytest.mark.parametrize("response_format", ["srt", "vtt", "tsv"])
def test_a_line_break_does_not_end_the_cue(response_format: Any) -> None:
    broken = Transcript("a b", "en", 1.0, "transcribe", (Segment(0.0, 1.0, "a\n\nb"),))
    assert "a  b\n" in render(broken, Reply(response_format=response_format)).payload.decode()


@pytest.mark.parametrize("response_format", CONTENT_TYPES)
def test_the_content_type_is_that_of_the_rendered_reply(response_format: Any) -> None:
    assert content_type(response_format) == render(SILENCE, Reply(response_format=response_format)).content_type
