"""Fields and headers become a checked request, or an error with a status from 400 to 499."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.api.request_samples import BASE64, NATIVE, SAMPLES, SOUND, TRANSCRIPTIONS, TRANSLATIONS, parsed_options, refused
from whispercore.api.error_reply import render_error
from whispercore.api.fields import ALIASES, AUDIO_FIELDS, KNOWN_FIELDS, LIST_FIELDS, REFUSED
from whispercore.api.request import Request, client_request_id, parse
from whispercore.api.routes import CONTENT_TYPES
from whispercore.errors import NotFound, WhisperError
from whispercore.options import SUBTITLE_OPTIONS, Options, Reply

# The path


def test_openai_paths() -> None:
    transcribed = parse({"file": SOUND, "model": b"whisper-1"}, {"url_path": "v1/audio/transcriptions"})
    translated = parse({"file": SOUND, "model": b"whisper-1"}, {"url_path": "/v1/audio/translations/"})
    assert (transcribed.route, transcribed.options.task) == ("transcriptions", "transcribe")
    assert (translated.route, translated.options.task) == ("translations", "translate")


def test_the_translations_path_refuses_to_transcribe() -> None:
    assert refused({"file": SOUND, "task": b"transcribe"}, {"url_path": "v1/audio/translations"}).param == "task"


def test_the_models_path_needs_no_file() -> None:
    assert parse({"body": bytearray()}, {"url_path": "v1/models"}).route == "models"


def test_unknown_path() -> None:
    error = refused({"file": SOUND}, {"url_path": "v1/chat/completions"})
    assert isinstance(error, NotFound)
    assert error.status == 404


@pytest.mark.parametrize("name", ["whisper-1", "gpt-4o-transcribe", "large-v3-turbo", "anything"])
def test_any_model_name_is_accepted(name: str) -> None:
    assert parsed_options(model=name) == Options()
    assert parse({"file": SOUND, "model": name.encode()}, {}).model == name
    assert parse({"body": SOUND}, {"X-Whisper-Model": name}).model == name


# The body


def test_json_that_the_server_has_not_parsed() -> None:
    row = {"body": bytearray(json.dumps({"audio": BASE64, "beam_size": 2}).encode())}
    for kind in ("Application/JSON; charset=utf-8", "APPLICATION/JSON", "text/json", "application/vnd.api+json"):
        request = parse(row, {"CONTENT-type": kind})
        assert (request.audio, request.options.beam_size) == (SOUND, 2)


@pytest.mark.parametrize("body", [b"{bad", b"[" * 100_000, b"\xff\xfe", b'{"audio": "QUJD"', memoryview(b"nope")])
def test_invalid_json(body: Any) -> None:
    assert refused({"body": body}, {"Content-Type": "application/json"}).code == "invalid_json"


@pytest.mark.parametrize("body", [[1], 3, True, "text"])
def test_json_must_be_an_object(body: Any) -> None:
    error = refused({"body": json.dumps(body).encode()}, {"Content-Type": "application/json"})
    assert error.code == "invalid_json"
    assert "object" in error.message


# Options of the reply, and what they imply


@pytest.mark.parametrize(
    ("value", "segments", "words"),
    [
        (b"segment", True, False),
        (b"word", True, True),  # may be all that is left of two
        (b'["word"]', False, True),
        ([b"word"], False, True),
        ([b"word", b"segment"], True, True),
        ([b"segment", b"word"], True, True),
        (b"segment, word", True, True),
        (b"", True, False),
        (b"[]", True, False),
    ],
)
@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
def test_granularities(name: str, value: Any, segments: bool, words: bool) -> None:
    request = parse({"file": SOUND, name: value, "response_format": b"verbose_json"}, TRANSCRIPTIONS)
    assert (request.reply.segments, request.reply.words) == (segments, words)
    assert request.options.word_timestamps == words


@pytest.mark.parametrize("response_format", ["json", "text", "srt", "vtt", "tsv"])
def test_granularities_need_verbose_json(response_format: str) -> None:
    row = {"file": SOUND, "timestamp_granularities[]": b"segment", "response_format": response_format.encode()}
    error = refused(row, TRANSCRIPTIONS)
    assert (error.status, error.param) == (400, "timestamp_granularities[]")
    assert "verbose_json" in error.message
    if response_format != "json":
        assert refused(row).param == "timestamp_granularities[]"
    else:
        assert parse(row, NATIVE).reply.segments


def test_word_timestamps_put_words_into_verbose_json() -> None:
    assert parse({"file": SOUND, "word_timestamps": b"true", "response_format": b"verbose_json"}, {}).reply.words
    assert not parse({"file": SOUND, "response_format": b"verbose_json"}, {}).reply.words


@pytest.mark.parametrize("row", [{"include[]": b"logprobs"}, {"include": [b"logprobs"]}, {"token_logprobs": b"1"}])
def test_logprobs(row: dict[str, Any]) -> None:
    request = parse({"file": SOUND, **row}, TRANSCRIPTIONS)
    assert (request.reply.logprobs, request.options.token_logprobs) == (True, True)
    assert refused({"file": SOUND, "response_format": b"verbose_json", **row}).param == next(iter(row))


@pytest.mark.parametrize(("headers", "streamable"), [(NATIVE, set(CONTENT_TYPES)), (TRANSCRIPTIONS, {"json", "text"})])
def test_stream(headers: dict[str, str], streamable: set[str]) -> None:
    assert parse({"file": SOUND, "stream": b"true"}, {**headers, "Accept": "text/vtt"}).reply == Reply(stream=True)
    for response_format in CONTENT_TYPES:
        row = {"file": SOUND, "stream": b"true", "response_format": response_format.encode()}
        if response_format in streamable:
            assert parse(row, headers).reply == Reply(stream=True, response_format=response_format)
        else:
            assert refused(row, headers).param == "stream"


@pytest.mark.parametrize("row", [{"stream": b"false"}, {"stream": b""}, {}])
def test_no_stream(row: dict[str, Any]) -> None:
    assert not parse({"file": SOUND, **row}, TRANSCRIPTIONS).reply.stream


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"max_line_width": b"40"}, {"max_line_width": 40}),
        ({"max_line_width": b"40", "max_line_count": b"2"}, {"max_line_width": 40, "max_line_count": 2}),
        ({"max_words_per_line": b"3"}, {"max_words_per_line": 3}),
        ({"highlight_words": b"true"}, {"highlight_words": True}),
    ],
)
def test_subtitle_options_need_a_subtitle_format(row: dict[str, Any], expected: dict[str, Any]) -> None:
    request = parse({"file": SOUND, "response_format": b"vtt", **row}, {})
    assert request.reply.subtitles == expected
    assert request.options.word_timestamps
    error = refused({"file": SOUND, "response_format": b"text", **row})
    assert error.param in row
    assert "srt and vtt" in error.message


def test_subtitle_options_that_contradict_each_other() -> None:
    form = {"file": SOUND, "response_format": b"srt"}
    assert refused({**form, "max_line_count": b"2"}).param == "max_line_count"
    assert refused({**form, "max_line_width": b"20", "max_words_per_line": b"2"}).param == "max_words_per_line"
    assert not parse({**form, "highlight_words": b"false"}, {}).options.word_timestamps


# The request id


def test_the_request_id_is_read_from_a_header_in_any_case() -> None:
    assert client_request_id({"Accept": "*/*", "X-REQUEST-Id": "abc-1"}) == "abc-1"


@pytest.mark.parametrize("offered", ["", "x" * 129, "a\nb", "é"])
def test_an_invalid_request_id_is_ignored(offered: str) -> None:
    assert client_request_id({"x-request-id": offered}) == ""


def test_header_values_that_are_not_text_are_ignored() -> None:
    headers = {"x-request-id": {"a": "b"}, "X-Whisper-File": {"c": 1}}
    assert parse({"file": SOUND}, headers).audio is SOUND
    assert client_request_id(headers) == ""


# Any input


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(["none", "0", "en", "word", "QUJD", "[1,2]", "true", "1,2", '{"threshold": 1}', "[[", "vtt", "verbose_json"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


NAMES = st.sampled_from([*KNOWN_FIELDS, *ALIASES, *REFUSED, *(f"{name}[]" for name in LIST_FIELDS), *AUDIO_FIELDS, "body"]) | st.text()


HEADERS = st.sampled_from(["Accept", "url_path", "Content-Type", "x-request-id", *(f"X-Whisper-{name}" for name in KNOWN_FIELDS)])


HEADER_VALUES = (
    st.text() | st.sampled_from(["application/json", "v1/audio/translations", "v1/audio/transcriptions", "text/plain;q=1e9", "0"]) | VALUES
)


def assert_request_or_client_error(row: dict[str, Any], headers: dict[str, Any]) -> None:
    try:
        assert isinstance(parse(row, headers), Request)
    except WhisperError as error:
        status, body = render_error(error)
        assert 400 <= status < 500
        assert set(json.loads(body.payload)["error"]) == {"message", "type", "param", "code"}


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(HEADERS, HEADER_VALUES, max_size=3))
def test_any_row_gives_a_request_or_a_client_error(row: dict[str, Any], headers: dict[str, Any]) -> None:
    assert_request_or_client_error(row, headers)


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(HEADERS, HEADER_VALUES, max_size=3))
def test_any_json_gives_a_request_or_a_client_error(content: dict[str, Any], headers: dict[str, Any]) -> None:
    assert_request_or_client_error({"body": {"audio": BASE64, **content}}, headers)


@given(st.sampled_from([*KNOWN_FIELDS, *ALIASES, *REFUSED]), VALUES, st.sampled_from([NATIVE, TRANSCRIPTIONS, TRANSLATIONS]))
def test_any_value_of_a_known_field_gives_a_request_or_a_client_error(name: str, value: Any, headers: dict[str, Any]) -> None:
    assert_request_or_client_error({"file": SOUND, name: value}, headers)


VALID = {name: st.just(typed) | st.just(text) for name, (text, typed, _) in SAMPLES.items()} | {
    "response_format": st.sampled_from([*CONTENT_TYPES]),
    "timestamp_granularities": st.sampled_from(["word", "segment", ["word"], ["word", "segment"]]),
    "include": st.just("logprobs"),
    "stream": st.booleans(),
    **{name: st.sampled_from([1, "20", True]) for name in SUBTITLE_OPTIONS},
}


@given(st.fixed_dictionaries({}, optional=VALID), st.sampled_from([NATIVE, TRANSCRIPTIONS, TRANSLATIONS]))
def test_any_mixture_of_valid_values_gives_a_request_or_a_client_error(content: dict[str, Any], headers: dict[str, Any]) -> None:
    assert_request_or_client_error({"body": {"audio": BASE64, **content}}, headers)
