"""formats: each form of a transcript, checked against openai-whisper's own writers and OpenAI's contract."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from whisper.utils import get_writer

from whispercore import errors
from whispercore.errors import InvalidRequest, WhisperError
from whispercore.formats import content_type, render, render_error, render_models, status_phrase
from whispercore.types import Segment, Transcript, Word
from whispercore.wire import CONTENT_TYPES, Reply

SEGMENTS = (
    Segment(0.0, 1.23456, " Hello & <b>you</b>.", tokens=(1, 2), avg_logprob=-0.25, compression_ratio=1.1, no_speech_prob=0.01),
    Segment(59.9996, 61.5, " a --> b\tc", temperature=0.2, words=(Word(" a", 59.9996, 60.1, 0.9), Word(" b", 60.2, 61.5, 0.8))),
    Segment(3661.007, 3662.0, " 你好 Zürich"),
)
TRANSCRIPT = Transcript("Hello & you. 你好 Zürich", "de", 3662.0004, "transcribe", SEGMENTS)
SILENCE = Transcript("", "en", 2.0, "transcribe", ())


def content(transcript: Transcript, *arguments: Any, **reply: Any) -> dict[str, Any]:
    body = render(transcript, Reply(**reply), *arguments)
    assert body.content_type == "application/json"
    parsed: dict[str, Any] = json.loads(body.payload, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return parsed


@pytest.mark.parametrize("transcript", [TRANSCRIPT, SILENCE], ids=["speech", "silence"])
@pytest.mark.parametrize("form", ["srt", "vtt", "tsv"])
def test_subtitles_are_openai_whispers(form: Any, transcript: Transcript, tmp_path: Path) -> None:
    segments = [{"start": one.start, "end": one.end, "text": one.text} for one in transcript.segments]
    get_writer(form, str(tmp_path))({"segments": segments}, "oracle.wav", {})  # type: ignore[arg-type]
    body = render(transcript, Reply(response_format=form))
    assert body.payload.decode() == (tmp_path / f"oracle.{form}").read_text(encoding="utf-8")
    assert body.content_type == CONTENT_TYPES[form] + "; charset=utf-8"


def test_subtitles_by_the_letter() -> None:
    srt, vtt, tsv = (render(TRANSCRIPT, Reply(response_format=form)).payload.decode() for form in ("srt", "vtt", "tsv"))
    assert srt.startswith(
        "1\n00:00:00,000 --> 00:00:01,235\nHello & <b>you</b>.\n\n2\n00:01:00,000 --> 00:01:01,500\na -> b\tc\n\n3\n01:01:01,007"
    )
    assert vtt.startswith("WEBVTT\n\n00:00.000 --> 00:01.235\nHello")
    assert tsv.startswith("start\tend\ttext\n0\t1235\tHello & <b>you</b>.\n60000\t61500\ta --> b c\n")


@pytest.mark.parametrize("form", ["srt", "vtt", "tsv"])
def test_a_line_break_does_not_end_the_cue(form: Any) -> None:
    broken = Transcript("a b", "en", 1.0, "transcribe", (Segment(0.0, 1.0, "a\n\nb"),))
    assert "a  b\n" in render(broken, Reply(response_format=form)).payload.decode()


def test_text() -> None:
    body = render(TRANSCRIPT, Reply(response_format="text"))
    assert (body.content_type, body.payload) == ("text/plain; charset=utf-8", "Hello & you. 你好 Zürich\n".encode())
    assert render(SILENCE, Reply(response_format="text")).payload == b"\n"


def test_native_json() -> None:
    fields = content(TRANSCRIPT)
    assert list(fields) == ["text", "language", "duration", "segments"]
    assert (fields["language"], fields["duration"]) == ("de", 3662.0)
    scores = {"avg_logprob": -0.25, "no_speech_prob": 0.01, "compression_ratio": 1.1, "temperature": 0.0}
    assert fields["segments"][0] == {"id": 0, "start": 0.0, "end": 1.235, "text": " Hello & <b>you</b>.", **scores}
    assert fields["segments"][1]["words"][0] == {"word": " a", "start": 60.0, "end": 60.1}
    assert "你好".encode() in render(TRANSCRIPT, Reply()).payload


@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_openai_json(route: Any) -> None:
    assert content(TRANSCRIPT, route) == {"text": TRANSCRIPT.text, "usage": {"type": "duration", "seconds": 3663}}


def test_verbose_json() -> None:
    fields = content(TRANSCRIPT, response_format="verbose_json")
    assert set(fields) == {"task", "language", "duration", "text", "segments", "usage"}
    assert (fields["task"], fields["language"], fields["duration"]) == ("transcribe", "german", 3662.0)
    names = {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"}
    assert all(set(segment) == names for segment in fields["segments"])
    assert [segment["seek"] for segment in fields["segments"]] == [0, 5999, 366100]
    assert fields["segments"][0]["tokens"] == [1, 2]


def test_verbose_json_with_words_only() -> None:
    fields = content(TRANSCRIPT, response_format="verbose_json", words=True, segments=False)
    assert "segments" not in fields
    assert fields["words"] == [{"word": " a", "start": 60.0, "end": 60.1}, {"word": " b", "start": 60.2, "end": 61.5}]


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_what_json_cannot_say_is_null(form: Any) -> None:
    odd = Transcript("\ud800", "en", 1.0, "transcribe", (Segment(0.0, 1.0, "x", avg_logprob=-math.inf, no_speech_prob=math.nan),))
    fields = content(odd, response_format=form)
    assert (fields["segments"][0]["avg_logprob"], fields["segments"][0]["no_speech_prob"]) == (None, None)
    assert fields["text"] == "?"


def test_warnings_are_told_in_every_json() -> None:
    cut = Transcript("a", "en", 1.0, "transcribe", (), warnings=("the file is cut off at 1.0 s",))
    replies = [content(cut), content(cut, "transcriptions"), content(cut, response_format="verbose_json")]
    assert [reply["warnings"] for reply in replies] == [["the file is cut off at 1.0 s"]] * 3


def test_models() -> None:
    listed = json.loads(render_models(["nano"]).payload)
    assert listed["object"] == "list"
    assert [set(model) for model in listed["data"]] == [{"id", "object", "created", "owned_by"}]


@pytest.mark.parametrize("form", CONTENT_TYPES)
def test_content_type_is_known_before_the_reply(form: Any) -> None:
    assert content_type(form) == render(SILENCE, Reply(response_format=form)).content_type


def test_error_has_all_four_keys() -> None:
    status, body = render_error(InvalidRequest("language must be …", param="language"))
    assert status == 400
    assert json.loads(body.payload) == {
        "error": {"message": "language must be …", "type": "invalid_request_error", "param": "language", "code": "invalid_value"}
    }


def test_every_error_has_a_phrase() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WhisperError)]
    assert {kind.status: status_phrase(kind.status) for kind in kinds}[413]
    assert status_phrase(499) == "Client Closed Request"
