"""Transcripts, and what the replies to them contain, for the tests of this folder."""

from __future__ import annotations

import json
from typing import Any

import pytest

from whispercore.api.reply import render
from whispercore.options import Reply
from whispercore.tokenizer import Tokenizer
from whispercore.types import Segment, Transcript, Word

ROUTES: list[Any] = ["native", "transcriptions", "translations"]


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
            Word(*word)
            for word in [(" So,", 0.1, 0.5, 0.91234567), (" here", 0.5, 1.0, 0.9), (" we", 1.0, 1.2, 0.8), (" are.", 3.0, 4.0, 0.7)]
        ),
    ),
    Segment(
        9.0,
        12.0,
        " Times of words.",
        words=tuple(Word(*word) for word in [(" Times", 9.0, 9.9, 0.9), (" of", 10.0, 10.2, 0.9), (" words.", 10.2, 12.0, 0.9)]),
    ),
)


SPOKEN = Transcript("So, here we are. Times of words.", "en", 12.0, "transcribe", WORDS)


TOKENIZER = Tokenizer(51_865)


SILENCE = Transcript("", "en", 2.0, "transcribe", ())


def json_fields(transcript: Transcript, *arguments: Any, **reply: Any) -> dict[str, Any]:
    body = render(transcript, Reply(**reply), *arguments)
    assert body.content_type == "application/json"
    fields: dict[str, Any] = json.loads(body.payload, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return fields


def with_logprobs(text: str, *, first: int = 50_364) -> Segment:
    tokens = TOKENIZER.encode(text)
    logprobs = tuple(-0.5 - index for index in range(len(tokens)))
    return Segment(0.0, 1.0, text, tokens=(first, *tokens, first + 50), logprobs=logprobs)


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The data of server-sent events: lines end at line feeds only, events at an empty line."""
    assert stream == b"" or stream.endswith(b"\n\n")
    events = stream.decode().split("\n\n")[:-1]
    assert all(event.startswith("data: ") and len(event.splitlines()) == 1 for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]
