"""The fields of JSON replies: native, OpenAI's, verbose_json; warnings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.api.transcript_samples import (
    ROUTES,
    SILENCE,
    SPOKEN,
    TOKENIZER,
    TRANSCRIPT,
    WORDS,
    events_of,
    json_fields,
    with_logprobs,
)
from whispercore.api.reply import render
from whispercore.api.stream import stream_chunk, stream_end
from whispercore.options import Reply
from whispercore.types import Dropped, Progress, Segment, Transcript


def test_native_json() -> None:
    fields = json_fields(TRANSCRIPT)
    assert list(fields) == ["text", "language", "duration", "segments"]
    assert (fields["language"], fields["duration"]) == ("de", 3662.0)
    scores = {"avg_logprob": -0.25, "no_speech_prob": 0.01, "compression_ratio": 1.1, "temperature": 0.0}
    assert fields["segments"][0] == {"id": 0, "start": 0.0, "end": 1.235, "text": " Hello & <b>you</b>.", **scores}
    assert json_fields(SPOKEN)["segments"][0]["words"][0] == {"word": " So,", "start": 0.1, "end": 0.5, "probability": 0.9123}
    assert "你好".encode() in render(TRANSCRIPT, Reply()).payload


@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_openai_json(route: Any) -> None:
    assert json_fields(TRANSCRIPT, route) == {"text": TRANSCRIPT.text, "usage": {"type": "duration", "seconds": 3663}}
    detected = replace(TRANSCRIPT, language_probability=0.9)
    assert json_fields(detected, route)["languages"] == [{"code": "de"}]


def test_verbose_json() -> None:
    fields = json_fields(TRANSCRIPT, response_format="verbose_json")
    assert set(fields) == {"task", "language", "duration", "text", "segments", "usage"}
    assert (fields["task"], fields["language"], fields["duration"]) == ("transcribe", "german", 3662.0)
    names = {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"}
    assert all(set(segment) == names for segment in fields["segments"])
    assert [segment["seek"] for segment in fields["segments"]] == [0, 5700, 0]
    assert fields["segments"][0]["tokens"] == [1, 2]


def test_the_language_of_a_translation_is_english() -> None:
    assert json_fields(replace(TRANSCRIPT, task="translate"), "translations", response_format="verbose_json")["language"] == "english"


def test_verbose_json_with_words_only() -> None:
    fields = json_fields(SPOKEN, response_format="verbose_json", timestamp_granularities=("word",))
    assert "segments" not in fields
    assert fields["words"][4:6] == [
        {"word": " Times", "start": 9.0, "end": 9.9, "probability": 0.9},
        {"word": " of", "start": 10.0, "end": 10.2, "probability": 0.9},
    ]
    assert "words" not in json_fields(SPOKEN, response_format="verbose_json")


@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_words_of_openai_have_no_blanks(route: Any) -> None:
    fields = json_fields(SPOKEN, route, response_format="verbose_json", timestamp_granularities=("word",))
    assert [word["word"] for word in fields["words"][4:6]] == ["Times", "of"]


@pytest.mark.parametrize("response_format", ["json", "verbose_json"])
def test_channels_dropped_passages_and_the_language_probability(response_format: Any) -> None:
    call = Transcript(
        "a b",
        "en",
        5.0,
        "transcribe",
        (Segment(0.0, 1.0, " a", channel=0), Segment(1.0, 2.0, " b", channel=1)),
        dropped=(Dropped(2.0, 4.00049, " Thank you.", "hallucination"),),
        language_probability=0.98764,
    )
    fields = json_fields(call, response_format=response_format)
    assert [segment["channel"] for segment in fields["segments"]] == [0, 1]
    assert fields["dropped"] == [{"start": 2.0, "end": 4.0, "text": " Thank you.", "reason": "hallucination"}]
    assert fields["language_probability"] == 0.9876
    assert "channel" not in json_fields(TRANSCRIPT, response_format=response_format)["segments"][0]


@pytest.mark.parametrize("response_format", ["json", "verbose_json"])
def test_the_language_of_a_segment(response_format: Any) -> None:
    mixed = replace(SPOKEN, segments=(replace(WORDS[0], language="de"), WORDS[1]))
    segments = json_fields(mixed, response_format=response_format)["segments"]
    assert segments[0]["language"] == "de" and "language" not in segments[1]
    chunk = stream_chunk(mixed.segments[:1], Progress(mixed.segments[:1], 1.0, 2.0), Reply(stream=True))
    assert json.loads(chunk)["language"] == "de"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("response_format", ["json", "verbose_json"])
def test_every_json_reply_names_the_model(route: Any, response_format: Any) -> None:
    body = render(SPOKEN, Reply(response_format=response_format), route, model="base")
    assert json.loads(body.payload)["model"] == "base"
    end = stream_end(SPOKEN, Reply(stream=True), route, model="base").decode()
    assert json.loads(end.removeprefix("data: "))["model"] == "base"


def test_logprobs_are_of_text_tokens_with_their_bytes() -> None:
    spoken = Transcript("Hi 🙂", "en", 1.0, "transcribe", (with_logprobs(" Hi"), with_logprobs(" 🙂")))
    body = render(spoken, Reply(include=("logprobs",)), "transcriptions", tokenizer=TOKENIZER)
    logprobs = json.loads(body.payload)["logprobs"]
    assert logprobs[0] == {"token": " Hi", "bytes": [32, 72, 105], "logprob": -0.5}
    assert bytes(byte for token in logprobs for byte in token["bytes"]).decode() == " Hi 🙂"
    native = json.loads(render(spoken, Reply(include=("logprobs",)), tokenizer=TOKENIZER).payload)
    assert [token for segment in native["segments"] for token in segment["logprobs"]] == logprobs


def test_logprobs_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        render(SPOKEN, Reply(include=("logprobs",)))


@pytest.mark.parametrize("response_format", ["json", "verbose_json"])
def test_values_without_a_json_notation_are_null(response_format: Any) -> None:
    odd = Transcript("\ud800", "en", 1.0, "transcribe", (Segment(0.0, 1.0, "x", avg_logprob=-math.inf, no_speech_prob=math.nan),))
    fields = json_fields(odd, response_format=response_format)
    assert (fields["segments"][0]["avg_logprob"], fields["segments"][0]["no_speech_prob"]) == (None, None)
    assert fields["text"] == "?"


# Warnings


def warnings_everywhere(transcript: Transcript) -> list[list[str]]:
    """The warnings of every JSON reply and of both streams."""
    formats = ("json", "verbose_json")
    whole = [json_fields(transcript, route, response_format=name) for route in ROUTES for name in formats]
    (done,) = events_of(stream_end(transcript, Reply(stream=True), "transcriptions"))
    last = json.loads(stream_end(transcript, Reply(stream=True)))
    return [fields.get("warnings", []) for fields in (*whole, done, last)]


def test_every_json_reply_has_the_warnings() -> None:
    cut = Transcript("a", "en", 1.0, "transcribe", (Segment(0.0, 1.0, " a"),), warnings=("the file is cut off at 1.0 s",))
    replies = [json_fields(cut), json_fields(cut, "transcriptions"), json_fields(cut, response_format="verbose_json")]
    assert [reply["warnings"] for reply in replies] == [["the file is cut off at 1.0 s"]] * 3


def test_a_warning_explains_an_empty_transcript() -> None:
    assert warnings_everywhere(SILENCE) == [["no speech was found in the recording"]] * 8
    left_out = replace(SILENCE, dropped=(Dropped(0.5, 2.0, " Hallo.", "no_speech"),))
    assert warnings_everywhere(left_out) == [["1 passage was left out as no speech (0.5-2.0 s); no_speech_threshold=none keeps it"]] * 8


def test_a_warning_lists_dropped_passages_on_every_route() -> None:
    dropped = [Dropped(float(number), number + 0.5, " x", "no_speech") for number in range(7)]
    spoken = replace(SPOKEN, dropped=(*dropped, Dropped(9.0, 9.5, " y", "hallucination")), warnings=("cut off",))
    replies = warnings_everywhere(spoken)
    assert replies == [replies[0]] * 8
    cut, silent, invented = replies[0]
    assert cut == "cut off"
    assert silent.startswith("7 passages were left out as no speech (0.0-0.5, 1.0-1.5,") and ", … s)" in silent
    assert "no_speech_threshold=none keeps them" in silent
    assert "hallucination_silence_threshold=none keeps it" in invented
    assert warnings_everywhere(SPOKEN) == [[]] * 8
