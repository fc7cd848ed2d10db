"""formats: each form of a transcript, checked against openai-whisper's own writers and OpenAI's contract."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whisper.utils import get_writer

from whispercore import errors
from whispercore.api.reply import (
    content_type,
    render,
    render_error,
    render_models,
    status_phrase,
    stream_chunk,
    stream_content_type,
    stream_end,
    stream_error,
)
from whispercore.api.request import CONTENT_TYPES
from whispercore.errors import InvalidRequest, WhisperError
from whispercore.options import Reply
from whispercore.tokenizer import Tokenizer
from whispercore.types import Dropped, Progress, Segment, Transcript, Word

SEGMENTS = (
    Segment(0.0, 1.23456, " Hello & <b>you</b>.", tokens=(1, 2), avg_logprob=-0.25, compression_ratio=1.1, no_speech_prob=0.01),
    Segment(59.9996, 61.5, " a --> b\tc", temperature=0.2, seek=5700),
    Segment(3661.007, 3662.0, " 你好 Zürich"),
)
TRANSCRIPT = Transcript("Hello & <b>you</b>. a --> b\tc 你好 Zürich", "de", 3662.0004, "transcribe", SEGMENTS)
WORDS = (
    Segment(
        0.0,
        4.0,
        " So, here we are.",
        words=tuple(
            Word(*one)
            for one in [(" So,", 0.1, 0.5, 0.91234567), (" here", 0.5, 1.0, 0.9), (" we", 1.0, 1.2, 0.8), (" are.", 3.0, 4.0, 0.7)]
        ),
    ),
    Segment(
        9.0,
        12.0,
        " Times of words.",
        words=tuple(Word(*one) for one in [(" Times", 9.0, 9.9, 0.9), (" of", 10.0, 10.2, 0.9), (" words.", 10.2, 12.0, 0.9)]),
    ),
)
SPOKEN = Transcript("So, here we are. Times of words.", "en", 12.0, "transcribe", WORDS)
TOKENIZER = Tokenizer(51_865)
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


@pytest.mark.parametrize("form", ["srt", "vtt"])
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
def test_subtitles_by_word_are_openai_whispers(form: Any, options: dict[str, Any], tmp_path: Path) -> None:
    segments = [
        {
            "start": one.start,
            "end": one.end,
            "text": one.text,
            "words": [{"word": word.word, "start": word.start, "end": word.end} for word in one.words],
        }
        for one in WORDS
    ]
    get_writer(form, str(tmp_path))({"segments": segments}, "oracle.wav", options)  # type: ignore[arg-type]
    oracle = (tmp_path / f"oracle.{form}").read_text(encoding="utf-8")
    assert render(SPOKEN, Reply(response_format=form, **options)).payload.decode() == oracle
    assert "<u>" in oracle if options.get("highlight_words") else oracle.count("-->") >= 2


def test_a_segment_without_words_keeps_its_place_among_those_that_have_some() -> None:
    mixed = Transcript("…", "en", 20.0, "transcribe", (Segment(0.0, 0.05, " First --> "), *WORDS))
    srt = render(mixed, Reply(response_format="srt", max_words_per_line=2)).payload.decode()
    assert srt.startswith("1\n00:00:00,000 --> 00:00:00,050\nFirst ->\n\n2\n00:00:00,100 --> 00:00:01,000\nSo, here\n")


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
    assert (body.content_type, body.payload) == ("text/plain; charset=utf-8", (TRANSCRIPT.text + "\n").encode())
    assert render(SILENCE, Reply(response_format="text")).payload == b"\n"


def test_native_json() -> None:
    fields = content(TRANSCRIPT)
    assert list(fields) == ["text", "language", "duration", "segments"]
    assert (fields["language"], fields["duration"]) == ("de", 3662.0)
    scores = {"avg_logprob": -0.25, "no_speech_prob": 0.01, "compression_ratio": 1.1, "temperature": 0.0}
    assert fields["segments"][0] == {"id": 0, "start": 0.0, "end": 1.235, "text": " Hello & <b>you</b>.", **scores}
    assert content(SPOKEN)["segments"][0]["words"][0] == {"word": " So,", "start": 0.1, "end": 0.5, "probability": 0.9123}
    assert "你好".encode() in render(TRANSCRIPT, Reply()).payload


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_channels_and_what_was_dropped_and_how_sure_the_language_is(form: Any) -> None:
    call = Transcript(
        "a b",
        "en",
        5.0,
        "transcribe",
        (Segment(0.0, 1.0, " a", channel=0), Segment(1.0, 2.0, " b", channel=1)),
        dropped=(Dropped(2.0, 4.00049, " Thank you.", "hallucination"),),
        language_probability=0.98764,
    )
    fields = content(call, response_format=form)
    assert [segment["channel"] for segment in fields["segments"]] == [0, 1]
    assert fields["dropped"] == [{"start": 2.0, "end": 4.0, "text": " Thank you.", "reason": "hallucination"}]
    assert fields["language_probability"] == 0.9876
    assert "channel" not in content(TRANSCRIPT, response_format=form)["segments"][0]


@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_openai_json(route: Any) -> None:
    assert content(TRANSCRIPT, route) == {"text": TRANSCRIPT.text, "usage": {"type": "duration", "seconds": 3663}}
    detected = replace(TRANSCRIPT, language_probability=0.9)
    assert content(detected, route)["languages"] == [{"code": "de"}]


def with_logprobs(text: str, *, first: int = 50_364) -> Segment:
    tokens = TOKENIZER.encode(text)
    logprobs = tuple(-0.5 - index for index in range(len(tokens)))
    return Segment(0.0, 1.0, text, tokens=(first, *tokens, first + 50), logprobs=logprobs)


def test_logprobs_are_of_text_tokens_with_their_bytes() -> None:
    spoken = Transcript("Hi 🙂", "en", 1.0, "transcribe", (with_logprobs(" Hi"), with_logprobs(" 🙂")))
    body = render(spoken, Reply(include=("logprobs",)), "transcriptions", tokenizer=TOKENIZER)
    logprobs = json.loads(body.payload)["logprobs"]
    assert logprobs[0] == {"token": " Hi", "bytes": [32, 72, 105], "logprob": -0.5}
    assert bytes(byte for one in logprobs for byte in one["bytes"]).decode() == " Hi 🙂"
    native = json.loads(render(spoken, Reply(include=("logprobs",)), tokenizer=TOKENIZER).payload)
    assert [one for segment in native["segments"] for one in segment["logprobs"]] == logprobs


def test_logprobs_take_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        render(SPOKEN, Reply(include=("logprobs",)))


def test_verbose_json() -> None:
    fields = content(TRANSCRIPT, response_format="verbose_json")
    assert set(fields) == {"task", "language", "duration", "text", "segments", "usage"}
    assert (fields["task"], fields["language"], fields["duration"]) == ("transcribe", "german", 3662.0)
    names = {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"}
    assert all(set(segment) == names for segment in fields["segments"])
    assert [segment["seek"] for segment in fields["segments"]] == [0, 5700, 0]
    assert fields["segments"][0]["tokens"] == [1, 2]


def test_a_translation_is_english() -> None:
    assert content(replace(TRANSCRIPT, task="translate"), "translations", response_format="verbose_json")["language"] == "english"


def test_verbose_json_with_words_only() -> None:
    fields = content(SPOKEN, response_format="verbose_json", timestamp_granularities=("word",))
    assert "segments" not in fields
    assert fields["words"][4:6] == [
        {"word": " Times", "start": 9.0, "end": 9.9, "probability": 0.9},
        {"word": " of", "start": 10.0, "end": 10.2, "probability": 0.9},
    ]
    assert "words" not in content(SPOKEN, response_format="verbose_json")


@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_openais_words_have_no_blanks(route: Any) -> None:
    fields = content(SPOKEN, route, response_format="verbose_json", timestamp_granularities=("word",))
    assert [word["word"] for word in fields["words"][4:6]] == ["Times", "of"]


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_what_json_cannot_say_is_null(form: Any) -> None:
    odd = Transcript("\ud800", "en", 1.0, "transcribe", (Segment(0.0, 1.0, "x", avg_logprob=-math.inf, no_speech_prob=math.nan),))
    fields = content(odd, response_format=form)
    assert (fields["segments"][0]["avg_logprob"], fields["segments"][0]["no_speech_prob"]) == (None, None)
    assert fields["text"] == "?"


ROUTES: list[Any] = ["native", "transcriptions", "translations"]


def warned(transcript: Transcript) -> list[list[str]]:
    """The warnings of every reply that is JSON."""
    whole = [content(transcript, route, response_format=form) for route in ROUTES for form in ("json", "verbose_json")]
    (done,) = events_of(stream_end(transcript, Reply(stream=True), "transcriptions"))
    last = json.loads(stream_end(transcript, Reply(stream=True)))
    return [fields.get("warnings", []) for fields in (*whole, done, last)]


def test_an_empty_transcript_says_why() -> None:
    assert warned(SILENCE) == [["no speech was found in the recording"]] * 8
    left_out = replace(SILENCE, dropped=(Dropped(0.5, 2.0, " Hallo.", "no_speech"),))
    assert warned(left_out) == [["1 passage was left out as no speech (0.5-2.0 s); no_speech_threshold=none keeps it"]] * 8


def test_what_was_left_out_is_told_on_every_route() -> None:
    dropped = [Dropped(float(number), number + 0.5, " x", "no_speech") for number in range(7)]
    spoken = replace(SPOKEN, dropped=(*dropped, Dropped(9.0, 9.5, " y", "hallucination")), warnings=("cut off",))
    told = warned(spoken)
    assert told == [told[0]] * 8
    cut, silent, invented = told[0]
    assert cut == "cut off"
    assert silent.startswith("7 passages were left out as no speech (0.0-0.5, 1.0-1.5,") and ", … s)" in silent
    assert "no_speech_threshold=none keeps them" in silent
    assert "hallucination_silence_threshold=none keeps it" in invented
    assert warned(SPOKEN) == [[]] * 8


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_the_model_is_told(route: Any, form: Any) -> None:
    body = render(SPOKEN, Reply(response_format=form), route, model="base")
    assert json.loads(body.payload)["model"] == "base"
    end = stream_end(SPOKEN, Reply(stream=True), route, model="base").decode()
    assert json.loads(end.removeprefix("data: "))["model"] == "base"


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_a_segments_own_language(form: Any) -> None:
    mixed = replace(SPOKEN, segments=(replace(WORDS[0], language="de"), WORDS[1]))
    segments = content(mixed, response_format=form)["segments"]
    assert segments[0]["language"] == "de" and "language" not in segments[1]
    chunk = stream_chunk(mixed.segments[:1], Progress(mixed.segments[:1], 1.0, 2.0), Reply(stream=True))
    assert json.loads(chunk)["language"] == "de"


def test_warnings_are_told_in_every_json() -> None:
    cut = Transcript("a", "en", 1.0, "transcribe", (Segment(0.0, 1.0, " a"),), warnings=("the file is cut off at 1.0 s",))
    replies = [content(cut), content(cut, "transcriptions"), content(cut, response_format="verbose_json")]
    assert [reply["warnings"] for reply in replies] == [["the file is cut off at 1.0 s"]] * 3


def test_models() -> None:
    listed = json.loads(render_models("nano", max_audio_bytes=1000).payload)
    assert listed["object"] == "list"
    assert [set(model) for model in listed["data"]] == [{"id", "object", "created", "owned_by", "max_audio_bytes"}]
    one = json.loads(render_models("base", "openai/whisper-base", max_audio_bytes=1000).payload)
    assert (one["id"], one["max_audio_bytes"]) == ("base", 1000)
    warned = json.loads(render_models("nano", warnings=["a demonstration"], max_audio_bytes=1000).payload)
    assert warned["data"][0]["warnings"] == ["a demonstration"]


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


class TestStream:
    """Chunks as the segments become final, then the end."""

    def told(self, segments: tuple[Segment, ...], steps: list[int], route: Any, reply: Reply) -> list[bytes]:
        """The chunks of a stream that tells of so many segments more at each step."""
        chunks, done = [], 0
        for step in [*steps, len(segments)]:
            known = segments[: done + step]
            progress = Progress(known, float(len(known)), 60.0)
            chunks.append(stream_chunk(known[done:], progress, reply, route, tokenizer=TOKENIZER))
            done = len(known)
        return chunks

    @given(
        st.lists(st.text() | st.sampled_from([" ", "", " so", "\u2028x", " it goes"]), max_size=6), st.lists(st.integers(0, 2), max_size=4)
    )
    def test_the_deltas_make_the_text(self, texts: list[str], steps: list[int]) -> None:
        segments = tuple(Segment(float(number), number + 1.0, text) for number, text in enumerate(texts))
        transcript = Transcript("".join(texts).strip(), "en", 6.0, "transcribe", segments)
        chunks = [*self.told(segments, steps, "transcriptions", Reply(stream=True)), stream_end(transcript, Reply(), "transcriptions")]
        events = events_of(b"".join(chunks))
        *deltas, done = events
        assert {one["type"] for one in deltas} <= {"transcript.text.delta"}
        assert "".join(one["delta"] for one in deltas) == done["text"]
        assert done["text"] == json.loads(render(transcript, Reply(), "transcriptions").payload)["text"]
        assert all(one["delta"] for one in deltas)

    def test_done(self) -> None:
        spoken = replace(SPOKEN, language_probability=0.9, segments=(replace(WORDS[0], tokens=(1, 2, 3)),))
        (done,) = events_of(stream_end(spoken, Reply(), "transcriptions"))
        assert done == {
            "type": "transcript.text.done",
            "text": "So, here we are.",
            "languages": [{"code": "en"}],
            "usage": {
                "type": "tokens",
                "input_tokens": 600,
                "input_token_details": {"audio_tokens": 600, "text_tokens": 0},
                "output_tokens": 3,
                "total_tokens": 603,
            },
        }

    def test_events_carry_logprobs(self) -> None:
        segments = (with_logprobs(" Hi"), with_logprobs(" you"))
        reply = Reply(stream=True, include=("logprobs",))
        events = events_of(b"".join(self.told(segments, [1], "transcriptions", reply)))
        assert [[one["token"] for one in event["logprobs"]] for event in events] == [[" Hi"], [" you"]]
        transcript = Transcript("Hi you", "en", 2.0, "transcribe", segments)
        (done,) = events_of(stream_end(transcript, reply, "transcriptions", tokenizer=TOKENIZER))
        assert [one["token"] for one in done["logprobs"]] == [" Hi", " you"]

    def test_lines(self) -> None:
        chunks = self.told(WORDS, [0, 1], "native", Reply(stream=True))
        lines = [json.loads(line) for line in b"".join(chunks).splitlines()]
        assert lines[0] == {"type": "progress", "progress": {"seconds": 0.0, "duration": 60.0}}
        assert [(line["type"], line["id"], line["text"], line["progress"]["seconds"]) for line in lines[1:]] == [
            ("segment", 0, " So, here we are.", 1.0),
            ("segment", 1, " Times of words.", 2.0),
        ]
        end = stream_end(SPOKEN, Reply(stream=True))
        assert end.endswith(b"\n")
        assert json.loads(end) == {"type": "transcript", **json.loads(render(SPOKEN, Reply()).payload)}
        segment = {name: value for name, value in lines[1].items() if name not in ("type", "progress")}
        assert segment == json.loads(end)["segments"][0]

    def test_verbose_lines_end_with_verbose_json(self) -> None:
        reply = Reply(stream=True, response_format="verbose_json")
        assert json.loads(stream_end(SPOKEN, reply)) == {"type": "transcript", **json.loads(render(SPOKEN, reply).payload)}

    @pytest.mark.parametrize("wanted", ["text", "srt", "vtt", "tsv"])
    def test_a_native_stream_ends_with_the_text_that_was_asked_for(self, wanted: Any) -> None:
        reply = Reply(stream=True, response_format=wanted)
        line = json.loads(stream_end(SPOKEN, reply))
        assert line.pop("rendered").encode() == render(SPOKEN, reply).payload
        assert line == {"type": "transcript", **json.loads(render(SPOKEN, Reply()).payload)}

    def test_duration_not_known_yet(self) -> None:
        assert json.loads(stream_chunk((), Progress((), 1.5), Reply()))["progress"] == {"seconds": 1.5, "duration": None}

    @pytest.mark.parametrize("route", ["native", "transcriptions", "translations"])
    def test_error(self, route: Any) -> None:
        chunk = stream_error(InvalidRequest("language must be …", param="language"), route)
        (told,) = [json.loads(chunk)] if route == "native" else events_of(chunk)
        assert told["error"] == json.loads(render_error(InvalidRequest("language must be …", param="language"))[1].payload)["error"]

    def test_content_types(self) -> None:
        assert stream_content_type("native") == "application/x-ndjson"
        assert stream_content_type("transcriptions") == stream_content_type("translations") == "text/event-stream"


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The data of server-sent events: lines end at line feeds only, events at an empty line."""
    assert stream == b"" or stream.endswith(b"\n\n")
    events = stream.decode().split("\n\n")[:-1]
    assert all(event.startswith("data: ") and len(event.splitlines()) == 1 for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]
