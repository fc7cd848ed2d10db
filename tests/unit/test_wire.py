"""wire: rows and headers in, checked requests or 4xx out."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispercore.errors import InvalidRequest, NotFound, TooLarge, WhisperError
from whispercore.formats import render_error
from whispercore.options import FALLBACK_TEMPERATURES, Options
from whispercore.wire import ALIASES, AUDIO_FIELDS, CONTENT_TYPES, KNOWN_FIELDS, Reply, Request, check_audio_bytes, parse, request_id

SOUND = bytearray(b"RIFF....WAVE")
BASE64 = base64.b64encode(SOUND).decode()

# one value per option that differs from its default: as text, as JSON, as Options holds it
SAMPLES: dict[str, tuple[str, Any, Any]] = {
    "task": ("translate", "translate", "translate"),
    "language": ("German", "de", "de"),
    "initial_prompt": ("Zürich, naïve 你好", "Zürich, naïve 你好", "Zürich, naïve 你好"),
    "temperature": ("0, 0.5", [0, 0.5], (0.0, 0.5)),
    "beam_size": ("5", 5, 5),
    "best_of": ("3", 3, 3),
    "patience": ("1.5", 1.5, 1.5),
    "length_penalty": ("0.5", 0.5, 0.5),
    "compression_ratio_threshold": ("none", "none", None),
    "logprob_threshold": ("-0.5", -0.5, -0.5),
    "no_speech_threshold": ("0.25", 0.25, 0.25),
    "vad_filter": ("false", False, False),
    "vad_threshold": ("0.7", 0.7, 0.7),
}


def refused(row: dict[str, Any], headers: dict[str, Any] | None = None) -> WhisperError:
    with pytest.raises(WhisperError) as caught:
        parse(row, headers or {})
    return caught.value


def option(**row: Any) -> Options:
    return parse({"file": SOUND, **{name: str(value).encode() for name, value in row.items()}}, {}).options


def test_every_option_has_a_sample() -> None:
    assert set(SAMPLES) == {item.name for item in fields(Options)}


class TestAudio:
    @pytest.mark.parametrize("name", ["body", *AUDIO_FIELDS])
    def test_raw_body_and_form_fields_are_passed_on_uncopied(self, name: str) -> None:
        request = parse({name: SOUND}, {"Content-Type": "audio/wav"})
        assert request.audio is SOUND
        assert request.options == Options()
        assert (request.route, request.reply) == ("native", Reply())

    @pytest.mark.parametrize("name", AUDIO_FIELDS)
    @pytest.mark.parametrize("prefix", ["", "data:audio/wav;base64,", "data:;base64,", "DATA:audio/webm;codecs=opus;BASE64,"])
    def test_base64(self, name: str, prefix: str) -> None:
        assert parse({"body": {name: prefix + BASE64}}, {}).audio == SOUND

    @pytest.mark.parametrize("text", ["QUJ\nD", "QUJDR", "Q-_D", "not base64", "data:audio/wav,QUJD", "data:audio/wav;base64", "data:"])
    def test_bad_base64_is_refused(self, text: str) -> None:
        error = refused({"body": {"audio": text}})
        assert (error.status, error.param, error.code) == (400, "audio", "invalid_base64")

    def test_json_that_the_server_left_as_bytes(self) -> None:
        row = {"body": bytearray(json.dumps({"audio": BASE64, "beam_size": 2}).encode())}
        request = parse(row, {"content-type": "Application/JSON; charset=utf-8"})
        assert request.audio == SOUND
        assert request.options.beam_size == 2

    @pytest.mark.parametrize("body", [b"{bad", b"[" * 100_000, b"\xff\xfe", b'{"audio": "QUJD"', memoryview(b"nope")])
    def test_broken_json(self, body: Any) -> None:
        assert refused({"body": body}, {"Content-Type": "application/json"}).code == "invalid_json"

    @pytest.mark.parametrize("body", [[1], 3, True, "text"])
    def test_json_must_be_an_object(self, body: Any) -> None:
        error = refused({"body": json.dumps(body).encode()}, {"Content-Type": "application/json"})
        assert error.code == "invalid_json"
        assert "object" in error.message

    @pytest.mark.parametrize("row", [{}, {"body": None}, {"language": b"en"}, {"body": {"language": "en"}}, {"body": {"file": None}}])
    def test_missing_file(self, row: dict[str, Any]) -> None:
        error = refused(row)
        assert (error.status, error.param) == (400, "file")
        assert "missing file" in error.message

    @pytest.mark.parametrize(
        "row", [{"body": bytearray()}, {"file": b""}, {"audio": ""}, {"body": {"audio": ""}}, {"body": memoryview(b"")}]
    )
    def test_empty_file(self, row: dict[str, Any]) -> None:
        error = refused(row)
        assert (error.status, error.param, error.code) == (400, "file", "empty_file")

    @pytest.mark.parametrize(
        "row",
        [
            {"file": b"a", "audio": b"b"},
            {"body": b"a", "data": b"b"},
            {"body": {"file": "QUJD", "data": "QUJD"}},
            {"body": {"file": "QUJD"}, "file": b"x"},
        ],
    )
    def test_two_recordings(self, row: dict[str, Any]) -> None:
        error = refused(row)
        assert error.status == 400
        assert "one recording" in error.message

    def test_a_file_that_says_it_is_text_goes_on_to_the_decoder(self) -> None:
        assert parse({"file": "hello"}, {}).audio == b"hello"

    def test_byte_limit(self) -> None:
        check_audio_bytes(b"x" * 10, 10)
        with pytest.raises(TooLarge, match=r"3\.0 MB, at most 2 MB"):
            check_audio_bytes(memoryview(bytearray(3 * 2**20)), 2 * 2**20)


class TestOptions:
    @pytest.mark.parametrize("name", SAMPLES)
    def test_the_same_by_form_query_json_and_header(self, name: str) -> None:
        text, typed, expected = SAMPLES[name]
        header = {"X-Whisper-" + name.replace("_", "-").title(): text.encode().decode("latin-1")}
        requests = [
            parse({"file": SOUND, name: bytearray(text.encode())}, {}),
            parse({"body": SOUND, name: text}, {}),
            parse({"body": {"audio": BASE64, name: typed}}, {}),
            parse({"body": {"audio": BASE64, name: text}}, {}),
            parse({"body": SOUND}, header),
        ]
        assert [getattr(request.options, name) for request in requests] == [expected] * 5
        assert getattr(Options(), name) != expected

    @pytest.mark.parametrize(
        ("sent", "name"), [("prompt", "initial_prompt"), ("log_prob_threshold", "logprob_threshold"), ("initial_prompt", "initial_prompt")]
    )
    def test_aliases(self, sent: str, name: str) -> None:
        assert getattr(option(**{sent: "-0.5"}), name) in ("-0.5", -0.5)

    def test_aliases_lead_to_known_fields(self) -> None:
        assert set(ALIASES.values()) <= set(KNOWN_FIELDS)

    @pytest.mark.parametrize(
        ("text", "code"),
        [("en", "en"), ("English", "en"), ("GERMAN", "de"), ("yue", "yue"), ("Mandarin", "zh"), ("auto", None), ("AUTO", None), ("", None)],
    )
    def test_language(self, text: str, code: str | None) -> None:
        assert option(language=text).language == code

    def test_unknown_language(self) -> None:
        error = refused({"file": SOUND, "language": b"germn"})
        assert (error.status, error.param) == (400, "language")
        assert "did you mean 'german'" in error.message

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0", FALLBACK_TEMPERATURES),
            ("0.0", FALLBACK_TEMPERATURES),
            ("0.3", (0.3,)),
            ("[0]", (0.0,)),
            ("[0, 0.4]", (0.0, 0.4)),
            ("0.2,1", (0.2, 1.0)),
        ],
    )
    def test_temperature(self, text: str, expected: tuple[float, ...]) -> None:
        assert option(temperature=text).temperature == expected
        assert (
            parse(
                {"body": {"audio": BASE64, "temperature": json.loads(f"[{text}]")[0] if "," not in text else text}}, {}
            ).options.temperature
            == expected
        )

    @pytest.mark.parametrize(("text", "value"), [("true", True), ("TRUE", True), ("1", True), ("false", False), ("0", False)])
    def test_booleans(self, text: str, value: bool) -> None:
        assert option(vad_filter=text).vad_filter is value

    @pytest.mark.parametrize("name", [name for name in SAMPLES if name.endswith("_threshold") and name != "vad_threshold"])
    def test_a_threshold_can_be_switched_off(self, name: str) -> None:
        assert getattr(option(**{name: "None"}), name) is None

    def test_empty_and_null_count_as_not_sent(self) -> None:
        assert option(**dict.fromkeys(KNOWN_FIELDS, "")) == Options()
        assert parse({"body": {"audio": BASE64, **dict.fromkeys(KNOWN_FIELDS)}}, {}).options == Options()
        assert parse({"file": SOUND, "prompt": b"", "initial_prompt": b"x"}, {}).options.initial_prompt == "x"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", "nan"),
            ("temperature", "0,inf"),
            ("temperature", "1.5"),
            ("temperature", "hot"),
            ("temperature", "[]"),
            ("temperature", "0,"),
            ("temperature", [None]),
            ("temperature", [0.1] * 17),
            ("temperature", True),
            ("beam_size", "2.5"),
            ("beam_size", "0"),
            ("beam_size", "17"),
            pytest.param("beam_size", 10**5000, id="more digits than str() prints"),
            ("beam_size", True),
            ("beam_size", {"a": 1}),
            ("patience", float("nan")),
            ("compression_ratio_threshold", "infinity"),
            ("logprob_threshold", "1"),
            ("vad_filter", "maybe"),
            ("vad_filter", 2),
            ("vad_filter", 1.0),
            ("vad_filter", "none"),
            ("vad_threshold", "none"),
            ("vad_threshold", "1.1"),
            ("task", "summarize"),
            ("task", 5),
            ("language", ["en"]),
            ("initial_prompt", "x" * 10_001),
            ("initial_prompt", "\ud800"),
            ("initial_prompt", b"\xff\xfe"),
            ("initial_prompt", 7),
            ("model", 3),
            ("response_format", "diarized_json"),
            ("response_format", 1),
        ],
    )
    def test_bad_values_name_their_field(self, name: str, value: Any) -> None:
        error = refused({"body": {"audio": BASE64, name: value}})
        assert isinstance(error, InvalidRequest)
        assert error.param == name
        assert name in error.message
        assert len(error.message) < 400
        json.loads(render_error(error)[1].payload)

    def test_unknown_field_is_named_with_a_suggestion(self) -> None:
        error = refused({"file": SOUND, "beam_sise": b"5"})
        assert (error.status, error.param, error.code) == (400, "beam_sise", "unknown_field")
        assert "did you mean 'beam_size'" in error.message
        assert all(name in error.message for name in KNOWN_FIELDS)

    def test_unknown_header_is_named_as_sent(self) -> None:
        assert refused({"body": SOUND}, {"X-Whisper-Beams": "5"}).param == "X-Whisper-Beams"
        parse({"body": SOUND}, {"X-Other": "5"})

    def test_given_twice(self) -> None:
        error = refused({"file": SOUND, "prompt": b"a", "initial_prompt": b"b"})
        assert error.param == "initial_prompt"
        assert "twice" in error.message
        assert "X-Whisper-Language" in refused({"file": SOUND, "language": b"en"}, {"X-Whisper-Language": "en"}).message

    @pytest.mark.parametrize("name", ["whisper-1", "gpt-4o-transcribe", "large-v3-turbo", "anything"])
    def test_any_model_name_will_do(self, name: str) -> None:
        assert option(model=name) == Options()


class TestReply:
    @pytest.mark.parametrize("name", CONTENT_TYPES)
    def test_response_format_wins_over_accept(self, name: str) -> None:
        request = parse({"file": SOUND, "response_format": name.upper().encode()}, {"Accept": "text/plain"})
        assert request.reply.response_format == name

    @pytest.mark.parametrize(
        ("accept", "expected"),
        [
            ("", "json"),
            ("*/*", "json"),
            ("application/json", "json"),
            ("text/plain", "text"),
            ("Text/Plain; charset=utf-8", "text"),
            ("text/vtt", "vtt"),
            ("application/x-subrip", "srt"),
            ("text/tab-separated-values", "tsv"),
            ("text/plain;q=0.2, text/vtt;q=0.9", "vtt"),
            ("*/*, text/plain", "text"),
            ("text/plain;q=0.1, */*;q=0.8", "json"),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
            ("text/plain;q=0", "json"),
            ("text/plain;q=nan", "json"),
            ("audio/wav", "json"),
        ],
    )
    def test_accept(self, accept: str, expected: str) -> None:
        assert parse({"body": SOUND}, {"accept": accept}).reply.response_format == expected

    @pytest.mark.parametrize("value", [b"segment", b'["segment"]', b"segment,segment"])
    def test_segment_granularity(self, value: bytes) -> None:
        assert parse({"file": SOUND, "timestamp_granularities[]": value}, {}).reply == Reply()

    @pytest.mark.parametrize("value", ["word", ["segment", "word"], '["word"]'])
    def test_words_are_not_available_yet(self, value: Any) -> None:
        error = refused({"body": {"audio": BASE64, "timestamp_granularities": value}})
        assert (error.status, error.param) == (400, "timestamp_granularities")
        assert "not available in this version" in error.message

    @pytest.mark.parametrize("value", ["phoneme", 5, [None], {}])
    def test_other_granularities(self, value: Any) -> None:
        assert refused({"body": {"audio": BASE64, "timestamp_granularities": value}}).param == "timestamp_granularities"


class TestRoute:
    def test_openai_routes(self) -> None:
        transcribed = parse({"file": SOUND, "model": b"whisper-1"}, {"url_path": "v1/audio/transcriptions"})
        translated = parse({"file": SOUND, "model": b"whisper-1"}, {"url_path": "/v1/audio/translations/"})
        assert (transcribed.route, transcribed.options.task) == ("transcriptions", "transcribe")
        assert (translated.route, translated.options.task) == ("translations", "translate")

    def test_translations_do_not_transcribe(self) -> None:
        assert refused({"file": SOUND, "task": b"transcribe"}, {"url_path": "v1/audio/translations"}).param == "task"

    def test_models_takes_no_file(self) -> None:
        assert parse({"body": bytearray()}, {"url_path": "v1/models"}).route == "models"

    def test_unknown_path(self) -> None:
        error = refused({"file": SOUND}, {"url_path": "v1/chat/completions"})
        assert isinstance(error, NotFound)
        assert error.status == 404


class TestRequestId:
    def test_taken_from_the_header_in_any_case(self) -> None:
        assert request_id({"Accept": "*/*", "X-REQUEST-Id": "abc-1"}) == "abc-1"

    @pytest.mark.parametrize("offered", ["", "x" * 129, "a\nb", "é"])
    def test_made_when_not_sane(self, offered: str) -> None:
        made = {request_id({"x-request-id": offered}) for _ in range(2)}
        assert len(made) == 2
        assert all(len(one) == 32 for one in made)

    def test_header_values_that_are_no_text_are_passed_over(self) -> None:
        headers = {"x-request-id": {"a": "b"}, "X-Whisper-File": {"c": 1}}
        assert parse({"file": SOUND}, headers).audio is SOUND
        assert len(request_id(headers)) == 32


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(["none", "0", "en", "word", "QUJD"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*KNOWN_FIELDS, *ALIASES, *AUDIO_FIELDS, "body"]) | st.text()
HEADERS = st.sampled_from(["Accept", "url_path", "Content-Type", "x-request-id", *(f"X-Whisper-{name}" for name in KNOWN_FIELDS)])
HEADER_VALUES = st.text() | st.sampled_from(["application/json", "v1/audio/translations", "text/plain;q=1e9", "0"]) | VALUES


def only_client_errors(row: dict[str, Any], headers: dict[str, Any]) -> None:
    try:
        assert isinstance(parse(row, headers), Request)
    except WhisperError as error:
        status, body = render_error(error)
        assert 400 <= status < 500
        assert set(json.loads(body.payload)["error"]) == {"message", "type", "param", "code"}


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(HEADERS, HEADER_VALUES, max_size=3))
def test_any_row_gives_a_request_or_a_client_error(row: dict[str, Any], headers: dict[str, Any]) -> None:
    only_client_errors(row, headers)


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(HEADERS, HEADER_VALUES, max_size=3))
def test_any_json_gives_a_request_or_a_client_error(content: dict[str, Any], headers: dict[str, Any]) -> None:
    only_client_errors({"body": {"audio": BASE64, **content}}, headers)


@given(st.sampled_from(sorted(SAMPLES)), VALUES)
def test_any_value_of_a_known_field(name: str, value: Any) -> None:
    only_client_errors({"file": SOUND, name: value}, {})
