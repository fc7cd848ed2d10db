"""Payloads of a direct invocation: base64, S3 or a URL; the result in the reply or in S3; errors that Lambda sees."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import plain_payload
import pytest
import transcription_function
from plain_payload import FunctionFailed, RequestFailed

from tests.unit.doubles import Recorder, wav

from .conftest import Context

CLIP = wav(1.9)
PAYLOAD = {"audio": base64.b64encode(CLIP).decode(), "vad_filter": False}


def error_of(raised: pytest.ExceptionInfo[Exception]) -> Any:
    return json.loads(str(raised.value))["error"]


def test_base64_s3_and_url_have_the_same_words(function: Any, context: Context, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket="recordings", Key="a b.wav", Body=CLIP)
    monkeypatch.setattr(plain_payload, "fetch", lambda url, limit: CLIP if url == "https://example.org/a.wav" else b"")
    direct = function(PAYLOAD, context)
    assert direct["text"] and direct["segments"]
    assert function({"s3": "s3://recordings/a b.wav", "vad_filter": False}, context) == direct
    assert function({"url": "https://example.org/a.wav", "vad_filter": "false"}, context) == direct
    assert function({"file": PAYLOAD["audio"], "vad_filter": False}, context) == direct


def test_text_formats_are_rendered(function: Any, context: Context) -> None:
    result = function({**PAYLOAD, "response_format": "vtt"}, context)
    assert result["rendered"].startswith("WEBVTT") and result["content_type"] == "text/vtt; charset=utf-8"


def test_the_result_goes_where_the_payload_says(function: Any, context: Context, s3: Any) -> None:
    place = "s3://results/here/a.srt"
    assert function({**PAYLOAD, "response_format": "srt", "output": place}, context) == {"result": place}
    assert s3.get_object(Bucket="results", Key="here/a.srt")["Body"].read().startswith(b"1\n00:00:00,000")


def test_a_result_beyond_the_limit_says_so_or_goes_to_s3(
    make: Callable[..., Any], context: Context, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcription_function, "MAX_REPLY", 100)
    with pytest.raises(RequestFailed, match="reply_too_large"):
        make()(PAYLOAD, context)
    function = make(WHISPER_OUTPUT_BUCKET="results")
    assert function(PAYLOAD, context) == {"result": "s3://results/transcripts/replies/request-1.json"}
    assert json.loads(s3.get_object(Bucket="results", Key="transcripts/replies/request-1.json")["Body"].read())["text"]


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        ({"audio": "@@@"}, "invalid_base64", "not valid base64"),
        ({"audio": "bm8gYXVkaW8="}, "unsupported_audio", "known container"),
        ({**PAYLOAD, "beam_sise": 5}, "unknown_parameter", "beam_size"),
        ({**PAYLOAD, "language": 5}, "invalid_value", "language"),
        ({**PAYLOAD, "s3": "s3://a/b"}, "invalid_value", "one recording per request; got audio and s3"),
        ({"s3": "recordings/a.wav"}, "unreachable_source", "s3 must be s3://BUCKET/KEY"),
        ({"s3": 5}, "unreachable_source", "s3 must be text"),
        ({"s3": "s3://recordings/none.wav"}, "not_found", "there is no object s3://recordings/none.wav"),
        ({"s3": "s3://none/none.wav"}, "not_found", "there is no bucket none"),
        ({"url": "http://example.org/a.wav"}, "unreachable_source", "https"),
        ({**PAYLOAD, "output": "results"}, "unreachable_source", "output must be s3://BUCKET/KEY"),
        ({**PAYLOAD, "output": "s3://none/a.json"}, "not_found", "there is no bucket none"),
        ({"audio": base64.b64encode(bytes(2 << 20)).decode()}, "too_large", "at most 1,048,576"),
        ({"audio": None}, "missing_required_parameter", "missing file"),
    ],
)
def test_a_bad_payload_fails_with_the_servers_error(function: Any, context: Context, payload: Any, code: str, words: str) -> None:
    with pytest.raises(RequestFailed) as raised:
        function(payload, context)
    assert error_of(raised)["code"] == code and words in error_of(raised)["message"]


def test_an_engine_that_fails_is_worth_another_try(function: Any, context: Context, engine: Recorder) -> None:
    engine._fails = lambda window: True
    with pytest.raises(FunctionFailed) as raised:
        function(PAYLOAD, context)
    assert error_of(raised)["code"] == "engine_error"


def test_time_that_runs_out_is_told_before_lambda_ends_the_invocation(function: Any, engine: Recorder) -> None:
    engine.gate.clear()
    try:
        with pytest.raises(FunctionFailed) as raised:
            function(PAYLOAD, Context(seconds=0.5))
    finally:
        engine.gate.set()
    assert error_of(raised)["code"] == "timeout" and "900 s at most" in error_of(raised)["message"]
