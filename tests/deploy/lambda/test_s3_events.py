"""Notifications of S3: results beside the recordings, duplicates, faults of recordings, missing rights, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote_plus

import pytest
from botocore.stub import Stubber
from function_errors import RecordsFailed, UnknownEvent
from s3_events import SEQUENCER

from tests.unit.doubles import Recorder, wav
from whispercore.errors import ConfigurationError

from .conftest import MAX_AUDIO_BYTES, Context

CLIP = wav(1.9)
OPTIONS = '{"vad_filter": false}'
KEY = "calls/Ein Gespräch +1.wav"


@pytest.fixture
def function(make: Callable[..., Any]) -> Any:
    return make(WHISPER_OUTPUT_OPTIONS=OPTIONS)


def put(s3: Any, body: bytes = CLIP, key: str = KEY, bucket: str = "recordings", **metadata: str) -> Any:
    """Upload an object. Returns the record of its event."""
    named = {name.replace("_", "-"): value for name, value in metadata.items()}
    stored = s3.put_object(Bucket=bucket, Key=key, Body=body, Metadata=named)
    return record(key, bucket, etag=stored["ETag"].strip('"'))


def record(key: str, bucket: str = "recordings", etag: str = "", sequencer: str = "0055AED6DCD90281E5") -> Any:
    return {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": quote_plus(key), "size": 1, "eTag": etag, "sequencer": sequencer}},
    }


def event(*records: Any) -> Any:
    return {"Records": list(records)}


def result_of(s3: Any, key: str, bucket: str = "recordings") -> str:
    body: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body.decode()


def keys(s3: Any, bucket: str = "recordings") -> set[str]:
    return {found["Key"] for found in s3.list_objects_v2(Bucket=bucket).get("Contents", ())}


def test_a_recording_gets_its_transcript_beside_it(function: Any, context: Context, s3: Any) -> None:
    assert function(event(put(s3)), context) == {"written": [f"s3://recordings/transcripts/{KEY}.json"], "skipped": []}
    stored = s3.get_object(Bucket="recordings", Key=f"transcripts/{KEY}.json")
    assert json.loads(stored["Body"].read())["segments"] and stored["ContentType"] == "application/json"


def test_formats_prefix_bucket_and_options_come_from_the_environment(make: Callable[..., Any], context: Context, s3: Any) -> None:
    function = make(
        WHISPER_OUTPUT_BUCKET="results",
        WHISPER_OUTPUT_PREFIX="out/",
        WHISPER_OUTPUT_FORMATS="json, srt,vtt,tsv,text,verbose_json",
        WHISPER_OUTPUT_OPTIONS='{"vad_filter": false, "language": "de"}',
    )
    function(event(put(s3, key="a.wav")), context)
    assert keys(s3, "results") == {f"out/a.wav{suffix}" for suffix in (".json", ".srt", ".vtt", ".tsv", ".txt", ".verbose.json")}
    assert result_of(s3, "out/a.wav.srt", "results").startswith("1\n00:00:00,000 --> ")
    reply = json.loads(result_of(s3, "out/a.wav.json", "results"))
    assert reply["language"] == "de" and result_of(s3, "out/a.wav.txt", "results").strip() == reply["text"]
    assert json.loads(result_of(s3, "out/a.wav.verbose.json", "results"))["task"] == "transcribe"


def test_an_objects_metadata_are_options(function: Any, context: Context, s3: Any, engine: Recorder) -> None:
    function(event(put(s3, whisper_language="fr", whisper_vad_filter="false", owner="me")), context)
    assert engine.windows[0].decoding.language == "fr"


def test_results_do_not_trigger_the_function_again(make: Callable[..., Any], context: Context, s3: Any, engine: Recorder) -> None:
    for variables, bucket, key in (
        ({}, "recordings", "transcripts/a.wav.json"),
        ({"WHISPER_OUTPUT_PREFIX": ""}, "recordings", "a.wav.srt"),
        ({"WHISPER_OUTPUT_PREFIX": ""}, "recordings", "a.wav.error.json"),
        ({"WHISPER_OUTPUT_BUCKET": "results"}, "results", "transcripts/a.wav.json"),
        ({}, "recordings", "a folder/"),
    ):
        place = f"s3://{bucket}/{key}"
        assert make(**variables)(event(put(s3, key=key, bucket=bucket)), context) == {"written": [], "skipped": [place]}
    assert engine.windows == []


def test_an_event_that_is_delivered_twice_is_transcribed_once(function: Any, context: Context, s3: Any, engine: Recorder) -> None:
    first = event(put(s3))
    function(first, context)
    assert function(first, context) == {"written": [], "skipped": [f"s3://recordings/{KEY}"]}
    assert len(engine.windows) == 1


def test_a_new_upload_replaces_the_result_and_a_late_event_does_not(function: Any, context: Context, s3: Any, engine: Recorder) -> None:
    old = put(s3, wav(1.0, seed=1))
    new = put(s3, wav(1.5, seed=2))
    new["s3"]["object"]["sequencer"] = "0055AED6DCD90281E501"  # longer: later by S3's rule
    assert function(event(old), context)["skipped"], "overwritten since: the later event is its own"
    function(event(new), context)
    assert json.loads(result_of(s3, f"transcripts/{KEY}.json"))["duration"] == 1.5
    old["s3"]["object"]["eTag"] = ""
    assert function(event(old), context)["skipped"] and len(engine.windows) == 1


def test_every_record_of_an_event_is_transcribed(function: Any, context: Context, s3: Any) -> None:
    result = function(event(*(put(s3, wav(1.0, seed=number), f"{number}.wav") for number in range(3))), context)
    assert result["written"] == [f"s3://recordings/transcripts/{number}.wav.json" for number in range(3)]


@pytest.mark.parametrize(
    ("body", "metadata", "code"),
    [
        (b"no audio at all", {}, "unsupported_audio"),
        (b"", {}, "empty_file"),
        (b"RIFF" + bytes(40), {}, "unreadable_audio"),
        (bytes(MAX_AUDIO_BYTES + 1), {}, "too_large"),
        (CLIP, {"whisper_beam_size": "many"}, "invalid_value"),
    ],
)
def test_what_is_wrong_with_a_recording_is_written_beside_it(
    function: Any, context: Context, s3: Any, body: bytes, metadata: dict[str, str], code: str
) -> None:
    bad = event(put(s3, body, **metadata))
    assert function(bad, context)["written"] == [f"s3://recordings/transcripts/{KEY}.error.json"]
    assert json.loads(result_of(s3, f"transcripts/{KEY}.error.json"))["error"]["code"] == code
    assert function(bad, context)["skipped"] == [f"s3://recordings/{KEY}"], "the same event costs nothing"
    good = put(s3)
    good["s3"]["object"]["sequencer"] = "0055AED6DCD90281E6"
    function(event(good), context)
    assert keys(s3) == {KEY, f"transcripts/{KEY}.json"}, "a good recording removes the error"


def test_a_half_uploaded_recording_is_transcribed_with_a_warning(function: Any, context: Context, s3: Any) -> None:
    function(event(put(s3, wav(4.0)[:64_000])), context)
    reply = json.loads(result_of(s3, f"transcripts/{KEY}.json"))
    assert reply["segments"] and any("truncated" in warning for warning in reply["warnings"])


def test_one_missing_object_fails_the_event_after_the_others(function: Any, context: Context, s3: Any, engine: Recorder) -> None:
    both = event(record("missing.wav"), put(s3))
    with pytest.raises(RecordsFailed, match=r"1 of 2 objects could not be transcribed: s3://recordings/missing.wav: there is no object"):
        function(both, context)
    assert f"transcripts/{KEY}.json" in keys(s3)
    with pytest.raises(RecordsFailed, match="missing"):
        function(both, context)
    assert len(engine.windows) == 1, "what was done is not done again"


def test_a_missing_bucket_says_so(function: Any, context: Context, s3: Any) -> None:
    with pytest.raises(RecordsFailed, match="there is no bucket no-such-bucket"):
        function(event(record("a.wav", "no-such-bucket")), context)


@contextmanager
def stubbed(function: Any) -> Iterator[Stubber]:
    with Stubber(function.objects._client) as stubber:
        yield stubber


def found_nothing(stubber: Stubber) -> None:
    for _ in range(2):
        stubber.add_client_error("head_object", "404", http_status_code=404)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDenied", 403, r"its role needs s3:GetObject on it \(S3 says the same of an object that does not exist"),
        ("InvalidObjectState", 403, "archived: restore it first"),
        ("SlowDown", 503, "S3 answers SlowDown"),
        ("KMS.DisabledException", 400, "S3 answers KMS.DisabledException"),
    ],
)
def test_an_object_that_cannot_be_read_fails_the_event(function: Any, context: Context, code: str, status: int, words: str) -> None:
    with stubbed(function) as stubber:
        found_nothing(stubber)
        for _ in range(3 if status == 503 else 1):
            stubber.add_client_error("get_object", code, http_status_code=status)
        with pytest.raises(RecordsFailed, match=words):
            function(event(record("a.wav")), context)
        stubber.assert_no_pending_responses()


def test_results_that_may_not_be_written_fail_the_event(function: Any, context: Context, s3: Any) -> None:
    s3.delete_bucket(Bucket="results")
    function.output = function.output.load({"WHISPER_OUTPUT_BUCKET": "results", "WHISPER_OUTPUT_OPTIONS": OPTIONS})
    with pytest.raises(RecordsFailed, match="there is no bucket results"):
        function(event(put(s3)), context)


def test_a_transfer_that_breaks_off_is_tried_again(function: Any, context: Context, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import IncompleteReadError
    from botocore.response import StreamingBody

    read, broken = StreamingBody.read, iter([True, True, False])

    def read_or_break(self: Any, amt: int | None = None) -> Any:
        if next(broken):
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
        return read(self, amt)

    one = event(put(s3))
    monkeypatch.setattr(StreamingBody, "read", read_or_break)
    assert function(one, context)["written"]


def test_time_that_runs_out_is_written_or_tried_again(function: Any, s3: Any, engine: Recorder) -> None:
    """A recording that is too long for an invocation gets an error beside it. One that came too late gets another try."""
    short, long = put(s3, wav(1.0), "short.wav"), put(s3, wav(1.9, seed=1), "long.wav")
    engine.gate.clear()
    try:
        assert function(event(long), Context(seconds=0.5))["written"] == ["s3://recordings/transcripts/long.wav.error.json"]
        assert "more memory" in result_of(s3, "transcripts/long.wav.error.json")
        with pytest.raises(RecordsFailed, match="time was nearly over"):
            function(event(record("missing.wav"), short), Context(seconds=1.0))
    finally:
        engine.gate.set()


def test_an_engine_that_fails_gets_another_try(make: Callable[..., Any], context: Context, s3: Any, engine: Recorder) -> None:
    function = make(WHISPER_OUTPUT_OPTIONS=OPTIONS)
    engine._fails = lambda window: True
    with pytest.raises(RecordsFailed, match="told to fail"):
        function(event(put(s3)), context)
    assert keys(s3) == {KEY}


def test_s3s_test_event_and_removed_objects_are_no_error(function: Any, context: Context) -> None:
    nothing: dict[str, list[str]] = {"written": [], "skipped": []}
    assert function({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "recordings"}, context) == nothing
    assert function(event({**record("a.wav"), "eventName": "ObjectRemoved:Delete"}), context) == nothing


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"Records": []},
        {"Records": [{"eventSource": "aws:sqs", "body": "{}"}]},
        {"Records": "none"},
        {"source": "aws.s3", "detail": {}},
        event({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {}}),
        event({"eventSource": "aws:s3"}),
        [],
        "text",
        None,
    ],
)
def test_an_event_of_an_unknown_shape_says_what_is_known(function: Any, context: Context, strange: Any) -> None:
    with pytest.raises(UnknownEvent, match=r"function does not know|must be a JSON object|record of the S3 event lacks"):
        function(strange, context)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WHISPER_OUTPUT_FORMATS": "json,doc"}, "'doc' is no format; there are json"),
        ({"WHISPER_OUTPUT_OPTIONS": "language=de"}, "must be a JSON object"),
        ({"WHISPER_OUTPUT_OPTIONS": '{"response_format": "srt"}'}, "without response_format"),
        ({"WHISPER_OUTPUT_OPTIONS": '{"beam_size": 40}'}, "beam_size must be"),
        ({"WHISPER_OUTPUT_OPTION": "{}"}, "did you mean WHISPER_OUTPUT_OPTIONS"),
    ],
)
def test_a_wrong_configuration_ends_the_start(make: Callable[..., Any], variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(**variables)


def test_a_result_names_its_event(function: Any, context: Context, s3: Any) -> None:
    function(event(put(s3)), context)
    stored = s3.head_object(Bucket="recordings", Key=f"transcripts/{KEY}.json")
    assert stored["Metadata"] == {SEQUENCER: "0055AED6DCD90281E5"}
