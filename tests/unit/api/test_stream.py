"""A stream: chunks as segments become final, then the end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.api.transcript_samples import (
    SPOKEN,
    TOKENIZER,
    WORDS,
    events_of,
    with_logprobs,
)
from whispercore.api.error_reply import render_error
from whispercore.api.reply import render
from whispercore.api.routes import stream_content_type
from whispercore.api.stream import stream_chunk, stream_end, stream_error
from whispercore.errors import InvalidRequest
from whispercore.options import Reply
from whispercore.types import Progress, Segment, Transcript


def stream_chunks(segments: tuple[Segment, ...], steps: list[int], route: Any, reply: Reply) -> list[bytes]:
    """The chunks of a stream. At each step, that many more segments become final."""
    chunks, done = [], 0
    for step in [*steps, len(segments)]:
        final = segments[: done + step]
        progress = Progress(final, float(len(final)), 60.0)
        chunks.append(stream_chunk(final[done:], progress, reply, route, tokenizer=TOKENIZER))
        done = len(final)
    return chunks


@given(st.lists(st.text() | st.sampled_from([" ", "", " so", "\u2028x", " it goes"]), max_size=6), st.lists(st.integers(0, 2), max_size=4))
def test_the_deltas_add_up_to_the_text(texts: list[str], steps: list[int]) -> None:
    segments = tuple(Segment(float(number), number + 1.0, text) for number, text in enumerate(texts))
    transcript = Transcript("".join(texts).strip(), "en", 6.0, "transcribe", segments)
    chunks = [*stream_chunks(segments, steps, "transcriptions", Reply(stream=True)), stream_end(transcript, Reply(), "transcriptions")]
    events = events_of(b"".join(chunks))
    *deltas, done = events
    assert {event["type"] for event in deltas} <= {"transcript.text.delta"}
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert done["text"] == json.loads(render(transcript, Reply(), "transcriptions").payload)["text"]
    assert all(event["delta"] for event in deltas)


def test_the_done_event() -> None:
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


def test_events_have_logprobs() -> None:
    segments = (with_logprobs(" Hi"), with_logprobs(" you"))
    reply = Reply(stream=True, include=("logprobs",))
    events = events_of(b"".join(stream_chunks(segments, [1], "transcriptions", reply)))
    assert [[token["token"] for token in event["logprobs"]] for event in events] == [[" Hi"], [" you"]]
    transcript = Transcript("Hi you", "en", 2.0, "transcribe", segments)
    (done,) = events_of(stream_end(transcript, reply, "transcriptions", tokenizer=TOKENIZER))
    assert [token["token"] for token in done["logprobs"]] == [" Hi", " you"]


def test_the_lines_of_a_native_stream() -> None:
    chunks = stream_chunks(WORDS, [0, 1], "native", Reply(stream=True))
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


def test_a_native_stream_of_verbose_json_ends_with_verbose_json() -> None:
    reply = Reply(stream=True, response_format="verbose_json")
    assert json.loads(stream_end(SPOKEN, reply)) == {"type": "transcript", **json.loads(render(SPOKEN, reply).payload)}


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt", "tsv"])
def test_a_native_stream_of_text_ends_with_the_rendered_text(response_format: Any) -> None:
    reply = Reply(stream=True, response_format=response_format)
    line = json.loads(stream_end(SPOKEN, reply))
    assert line.pop("rendered").encode() == render(SPOKEN, reply).payload
    assert line == {"type": "transcript", **json.loads(render(SPOKEN, Reply()).payload)}


def test_the_duration_is_null_while_it_is_unknown() -> None:
    assert json.loads(stream_chunk((), Progress((), 1.5), Reply()))["progress"] == {"seconds": 1.5, "duration": None}


@pytest.mark.parametrize("route", ["native", "transcriptions", "translations"])
def test_an_error_ends_a_stream(route: Any) -> None:
    chunk = stream_error(InvalidRequest("language must be …", param="language"), route)
    (content,) = [json.loads(chunk)] if route == "native" else events_of(chunk)
    assert content["error"] == json.loads(render_error(InvalidRequest("language must be …", param="language"))[1].payload)["error"]


def test_the_content_type_of_a_stream() -> None:
    assert stream_content_type("native") == "application/x-ndjson"
    assert stream_content_type("transcriptions") == stream_content_type("translations") == "text/event-stream"
