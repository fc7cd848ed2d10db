"""wire: rows and headers in, checked requests or 4xx out."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispercore.api.fields import ALIASES, AUDIO_FIELDS, IGNORED, KNOWN_FIELDS, LIST_FIELDS, REFUSED
from whispercore.api.reply import render_error
from whispercore.api.request import CONTENT_TYPES, Request, check_audio_bytes, client_request_id, parse
from whispercore.errors import InvalidRequest, NotFound, TooLarge, WhisperError
from whispercore.options import FALLBACK_TEMPERATURES, SUBTITLE_OPTIONS, Options, Reply

SOUND = bytearray(b"RIFF....WAVE")
BASE64 = base64.b64encode(SOUND).decode()

# one value per option that differs from its default: as text, as JSON, as Options holds it
SAMPLES: dict[str, tuple[str, Any, Any]] = {
    "task": ("translate", "translate", "translate"),
    "strategy": ("Sequential", "sequential", "sequential"),
    "language": ("German", "de", "de"),
    "languages": ("en, German", ["english", "de"], ("en", "de")),
    "multilingual": ("true", True, True),
    "initial_prompt": ("Zürich, naïve 你好", "Zürich, naïve 你好", "Zürich, naïve 你好"),
    "carry_initial_prompt": ("1", True, True),
    "condition_on_previous_text": ("false", False, False),
    "hotwords": ("Zürich, Bern", ["Zürich", " Bern "], "Zürich, Bern"),
    "temperature": ("0, 0.5", [0, 0.5], (0.0, 0.5)),
    "beam_size": ("5", 5, 5),
    "best_of": ("3", 3, 3),
    "patience": ("1.5", 1.5, 1.5),
    "length_penalty": ("0.5", 0.5, 0.5),
    "repetition_penalty": ("1.2", 1.2, 1.2),
    "no_repeat_ngram_size": ("3", 3, 3),
    "suppress_tokens": ("[-1, 50]", [-1, 50], (-1, 50)),
    "suppress_blank": ("false", False, False),
    "max_initial_timestamp": ("2", 2.0, 2.0),
    "max_new_tokens": ("100", 100, 100),
    "without_timestamps": ("true", True, True),
    "compression_ratio_threshold": ("none", "none", None),
    "logprob_threshold": ("-0.5", -0.5, -0.5),
    "no_speech_threshold": ("0.25", 0.25, 0.25),
    "word_timestamps": ("true", True, True),
    "token_logprobs": ("true", True, True),
    "prepend_punctuations": ("¿(", "¿(", "¿("),
    "append_punctuations": (".!", ".!", ".!"),
    "hallucination_silence_threshold": ("2", 2, 2.0),
    "clip_timestamps": ("0,2.5,4", [0, 2.5, 4], (0.0, 2.5, 4.0)),
    "channels": ("separate", "separate", "separate"),
    "audio_track": ("1", 1, "1"),
    "vad_filter": ("false", False, False),
    "vad_threshold": ("0.7", 0.7, 0.7),
    "vad_neg_threshold": ("0.3", 0.3, 0.3),
    "vad_min_speech_duration_ms": ("100", 100, 100),
    "vad_min_silence_duration_ms": ("500", 500, 500),
    "vad_speech_pad_ms": ("200", 200, 200),
}
NATIVE, TRANSCRIPTIONS, TRANSLATIONS = {}, {"url_path": "v1/audio/transcriptions"}, {"url_path": "v1/audio/translations"}


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
        for kind in ("Application/JSON; charset=utf-8", "APPLICATION/JSON", "text/json", "application/vnd.api+json"):
            request = parse(row, {"CONTENT-type": kind})
            assert (request.audio, request.options.beam_size) == (SOUND, 2)

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
            {"file": [b"a", b"b"]},
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
        with pytest.raises(TooLarge, match=r"2,097,153 bytes, at most 2,097,152 \(2 MB\)"):
            check_audio_bytes(memoryview(bytearray(2 * 2**20 + 1)), 2 * 2**20)


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
        [("en", "en"), ("English", "en"), ("GERMAN", "de"), ("yue", "yue"), ("en-US", "en"), ("deu", "de"), ("AUTO", None), ("null", None)],
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

    def test_booleans(self) -> None:
        assert [option(vad_filter=text).vad_filter for text in ("true", "TRUE", "1", "yes", "On")] == [True] * 5
        assert [option(vad_filter=text).vad_filter for text in ("false", "0", "NO", "off")] == [False] * 4

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
            ("vad_threshold", "none"),
            ("vad_threshold", "1.1"),
            ("task", "summarize"),
            ("task", 5),
            ("language", ["en"]),
            ("languages", [None]),
            ("languages", ["en"] * 17),
            ("strategy", "batched"),
            ("channels", ["mono"]),
            ("hotwords", ["a", 5]),
            ("hotwords", ["a" * 6000, "b" * 6000]),
            ("hotwords", '["a", 5]'),
            ("suppress_tokens", "1,two"),
            ("suppress_tokens", "[1,"),
            ("suppress_tokens", "[1.5]"),
            ("suppress_tokens", [-2]),
            ("suppress_tokens", [[1]]),
            ("suppress_tokens", "1," * 60_000),
            pytest.param("suppress_tokens", "[" * 90_000, id="a deep list"),
            pytest.param("suppress_tokens", f"[{'1' * 5000}]", id="more digits than int() reads"),
            ("clip_timestamps", "2,1"),
            ("clip_timestamps", [{"start": 0}, {"start": 1, "end": 2}]),
            ("clip_timestamps", [{"start": 0, "end": 1}, 2]),
            ("clip_timestamps", [{"start": 0, "stop": 1}]),
            ("clip_timestamps", [{"start": 0, "end": None}]),
            ("vad_parameters", 0.5),
            ("vad_parameters", "{"),
            ("vad_parameters", "[]"),
            ("chunking_strategy", "manual"),
            ("chunking_strategy", [1]),
            ("include", "segments"),
            ("timestamp_granularities", "phoneme"),
            ("timestamp_granularities", 5),
            ("timestamp_granularities", [None]),
            ("timestamp_granularities", {}),
            ("stream", "perhaps"),
            ("translate", "perhaps"),
            pytest.param("stream", 10**5000, id="a boolean of 5,000 digits"),
            ("max_line_width", "0"),
            ("task", "x" * 10_000),
            ("max_new_tokens", "1e308"),
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
        assert (error.status, error.param, error.code) == (400, "beam_sise", "unknown_parameter")
        assert "did you mean 'beam_size'" in error.message
        assert all(name in error.message for name in KNOWN_FIELDS)

    @pytest.mark.parametrize("name", ["beam_size[]", "vad_threshold[]", "vad_parameters[]", "vad_parameters[speed]", "language[en]", "[]"])
    def test_brackets_on_what_is_no_list_or_object(self, name: str) -> None:
        error = refused({"file": SOUND, name: b"0.5"})
        assert error.param == name
        assert error.status == 400

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_others_have_is_told_to_be_missing_here(self, name: str) -> None:
        error = refused({"file": SOUND, name: b"5"})
        assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")
        assert REFUSED[name] in error.message
        assert parse({"file": SOUND, name: b""}, {}).options == Options()

    @pytest.mark.parametrize(
        ("row", "headers", "name"),
        [
            ({"prompt": b"x" * 10_001}, {}, "prompt"),
            ({"log_prob_threshold": b"1"}, {}, "log_prob_threshold"),
            ({"languages[]": b"xx"}, {}, "languages[]"),
            ({"keywords[]": [b"x" * 6000] * 2}, {}, "keywords[]"),
            ({"chunking_strategy[threshold]": b"2"}, {}, "chunking_strategy[threshold]"),
            ({"chunking_strategy[type]": b"x"}, {}, "chunking_strategy[type]"),
            ({"vad_parameters": b'{"speech_pad_ms": -1}'}, {}, "vad_parameters[speech_pad_ms]"),
            ({"include[]": b"logprobs", "response_format": b"srt"}, {}, "include[]"),
            ({"token_logprobs": b"true", "response_format": b"srt"}, {}, "token_logprobs"),
            ({"timestamp_granularities[]": b"word", "response_format": b"srt"}, {}, "timestamp_granularities[]"),
            ({}, {"X-Whisper-Beam-Size": "17"}, "X-Whisper-Beam-Size"),
            ({}, {"X-Whisper-Prompt": "x" * 10_001}, "X-Whisper-Prompt"),
        ],
    )
    def test_errors_name_the_field_as_it_was_sent(self, row: dict[str, Any], headers: dict[str, str], name: str) -> None:
        error = refused({"file": SOUND, **row}, headers)
        assert error.param == name
        assert error.message.startswith(name)

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
        assert parse({"file": SOUND, "model": name.encode()}, {}).model == name
        assert parse({"body": SOUND}, {"X-Whisper-Model": name}).model == name


NOTHING = [b"", b"false", b"False", b"0", b"no", b"None", b"null", b" off "]
OTHER_SERVERS = ["diarize", "min_speakers", "speaker_labels", "return_char_alignments", "batch_size", "speaker_diarization", "punctuate"]


class TestOtherServers:
    """What users of whisperX, whisper-asr-webservice, LocalAI, speaches and whisper.cpp send."""

    @pytest.mark.parametrize("value", NOTHING)
    @pytest.mark.parametrize("name", [*OTHER_SERVERS, "known_speaker_names[]", "translate", "stream", "word_timestamps"])
    def test_a_field_that_asks_for_nothing_passes(self, name: str, value: bytes) -> None:
        request = parse({"file": SOUND, name: value}, {})
        assert (request.options, request.reply) == (Options(), Reply())

    @pytest.mark.parametrize("value", [b"none", b"null", b"Null"])
    @pytest.mark.parametrize("name", ["response_format", "task", "strategy", "channels"])
    def test_a_choice_that_is_none_is_not_made(self, name: str, value: bytes) -> None:
        request = parse({"file": SOUND, name: value}, {"accept": "text/plain"})
        assert (request.options, request.reply) == (Options(), Reply(response_format="text"))

    @pytest.mark.parametrize("value", [False, 0, None, "", [], {}, "none"])
    @pytest.mark.parametrize("name", OTHER_SERVERS)
    def test_so_does_one_in_json(self, name: str, value: Any) -> None:
        assert parse({"body": {"audio": BASE64, name: value}}, {}).options == Options()

    @pytest.mark.parametrize("value", [b"true", b"1", b"yes", b"2"])
    @pytest.mark.parametrize("name", OTHER_SERVERS)
    def test_one_that_asks_for_something_does_not(self, name: str, value: bytes) -> None:
        error = refused({"file": SOUND, name: value})
        assert (error.status, error.param) == (400, name)
        assert error.code == ("unsupported_parameter" if name in REFUSED else "unknown_parameter")

    @pytest.mark.parametrize("name", ["word_timestmaps", "beam_sise", "vad_fliter", "supress_blank", "condition_on_previous_txt"])
    def test_a_slip_of_the_pen_is_told_whatever_it_asks_for(self, name: str) -> None:
        assert "did you mean" in refused({"file": SOUND, name: b"false"}).message

    @pytest.mark.parametrize("name", IGNORED)
    def test_what_changes_nothing_passes(self, name: str) -> None:
        assert option(**{name: "true"}) == Options()

    def test_translate_is_a_task(self) -> None:
        assert option(translate="true").task == option(translate="yes", task="translate").task == "translate"
        assert option(translate="false", task="translate").task == "translate"
        assert refused({"file": SOUND, "translate": b"true", "task": b"transcribe"}).param == "translate"
        assert parse({"file": SOUND, "translate": b"false"}, TRANSLATIONS).options.task == "translate"

    def test_other_names(self) -> None:
        assert parse({"file": SOUND, "output": b"txt"}, {}).reply.response_format == "text"
        assert parse({"file": SOUND, "output": b"srt"}, {}).reply.response_format == "srt"
        made = option(no_timestamps="true", logprob_thold="-0.5", no_speech_thold="0.5", vad="false")
        assert made == Options(without_timestamps=True, logprob_threshold=-0.5, no_speech_threshold=0.5, vad_filter=False)


BINARY = bytes(range(256))
FILE_FIELDS = ["audio_file", "files", "file[]", "upload", "audio[]", "audio_data", "audioFile", "File", "recording", "input-audio", "wav"]


class TestUnknownFileFields:
    @pytest.mark.parametrize("value", [BINARY, b"RIFF plain text", [BINARY, BINARY], memoryview(BINARY)])
    @pytest.mark.parametrize("name", FILE_FIELDS)
    def test_it_is_named(self, name: str, value: Any) -> None:
        error = refused({name: value, "language": b"en"})
        assert (error.status, error.param, error.code) == (400, name, "unknown_parameter")
        assert name in error.message and "did you mean 'file'" in error.message

    @pytest.mark.parametrize("name", ["sprache", "my_field", "x"])
    @pytest.mark.parametrize("value", [BINARY, b"RIFF\0\0\0", b"A" * 200_000])
    def test_a_recording_is_known_by_its_bytes(self, name: str, value: bytes) -> None:
        assert "did you mean 'file'" in refused({name: value}).message

    def test_base64_in_json(self) -> None:
        assert "did you mean 'file'" in refused({"body": {"audio_base64": BASE64}}).message

    @pytest.mark.parametrize("name", ["audio_lang", "beam_sise", "source_language"])
    def test_other_fields_are_not_taken_for_one(self, name: str) -> None:
        assert "did you mean 'file'" not in refused({"file": SOUND, name: b"en"}).message

    @pytest.mark.parametrize("name", ["language", "prompt", "hotwords", "languages[]"])
    def test_bytes_in_a_text_field_are_told(self, name: str) -> None:
        error = refused({"file": SOUND, name: BINARY})
        assert error.param == name and "not UTF-8 text" in error.message


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
    def test_granularities(self, name: str, value: Any, segments: bool, words: bool) -> None:
        request = parse({"file": SOUND, name: value, "response_format": b"verbose_json"}, TRANSCRIPTIONS)
        assert (request.reply.segments, request.reply.words) == (segments, words)
        assert request.options.word_timestamps == words

    @pytest.mark.parametrize("wanted", ["json", "text", "srt", "vtt", "tsv"])
    def test_granularities_need_verbose_json(self, wanted: str) -> None:
        row = {"file": SOUND, "timestamp_granularities[]": b"segment", "response_format": wanted.encode()}
        error = refused(row, TRANSCRIPTIONS)
        assert (error.status, error.param) == (400, "timestamp_granularities[]")
        assert "verbose_json" in error.message
        if wanted != "json":
            assert refused(row).param == "timestamp_granularities[]"
        else:
            assert parse(row, NATIVE).reply.segments

    def test_word_timestamps_are_told(self) -> None:
        assert parse({"file": SOUND, "word_timestamps": b"true", "response_format": b"verbose_json"}, {}).reply.words
        assert not parse({"file": SOUND, "response_format": b"verbose_json"}, {}).reply.words

    @pytest.mark.parametrize("row", [{"include[]": b"logprobs"}, {"include": [b"logprobs"]}, {"token_logprobs": b"1"}])
    def test_logprobs(self, row: dict[str, Any]) -> None:
        request = parse({"file": SOUND, **row}, TRANSCRIPTIONS)
        assert (request.reply.logprobs, request.options.token_logprobs) == (True, True)
        assert refused({"file": SOUND, "response_format": b"verbose_json", **row}).param == next(iter(row))

    @pytest.mark.parametrize(("headers", "good"), [(NATIVE, set(CONTENT_TYPES)), (TRANSCRIPTIONS, {"json", "text"})])
    def test_stream(self, headers: dict[str, str], good: set[str]) -> None:
        assert parse({"file": SOUND, "stream": b"true"}, {**headers, "Accept": "text/vtt"}).reply == Reply(stream=True)
        for wanted in CONTENT_TYPES:
            row = {"file": SOUND, "stream": b"true", "response_format": wanted.encode()}
            if wanted in good:
                assert parse(row, headers).reply == Reply(stream=True, response_format=wanted)
            else:
                assert refused(row, headers).param == "stream"

    @pytest.mark.parametrize("row", [{"stream": b"false"}, {"stream": b""}, {}])
    def test_no_stream(self, row: dict[str, Any]) -> None:
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
    def test_subtitles(self, row: dict[str, Any], expected: dict[str, Any]) -> None:
        request = parse({"file": SOUND, "response_format": b"vtt", **row}, {})
        assert request.reply.subtitles == expected
        assert request.options.word_timestamps
        error = refused({"file": SOUND, "response_format": b"text", **row})
        assert error.param in row
        assert "srt and vtt" in error.message

    def test_subtitles_that_contradict(self) -> None:
        form = {"file": SOUND, "response_format": b"srt"}
        assert refused({**form, "max_line_count": b"2"}).param == "max_line_count"
        assert refused({**form, "max_line_width": b"20", "max_words_per_line": b"2"}).param == "max_words_per_line"
        assert not parse({**form, "highlight_words": b"false"}, {}).options.word_timestamps

    def test_no_speakers(self) -> None:
        error = refused({"file": SOUND, "response_format": b"diarized_json"}, TRANSCRIPTIONS)
        assert (error.status, error.param, error.code) == (400, "response_format", "unsupported_value")
        assert "speakers" in error.message


class TestSpelling:
    """Lists and objects, as OpenAI's and faster-whisper's callers send them."""

    @pytest.mark.parametrize("name", LIST_FIELDS)
    def test_every_list_may_be_sent_as_repeated_fields(self, name: str) -> None:
        row = {"file": SOUND, "response_format": b"json"}
        if name in SAMPLES:
            items = SAMPLES[name][1]
            request = parse({**row, f"{name}[]": [str(one).encode() for one in items]}, {})
            assert getattr(request.options, name) == SAMPLES[name][2]
        assert parse({**row, f"{name}[]": b""}, {}).options == Options()

    @pytest.mark.parametrize("name", [name for name in LIST_FIELDS if name in SAMPLES])
    def test_every_list_as_json_text(self, name: str) -> None:
        assert getattr(option(**{name: json.dumps(SAMPLES[name][1])}), name) == SAMPLES[name][2]

    @pytest.mark.parametrize("sent", ["none", "None", "[]", "null"])
    def test_no_items(self, sent: str) -> None:
        made = option(suppress_tokens=sent, languages=sent, clip_timestamps=sent)
        assert (made.suppress_tokens, made.languages, made.clip_timestamps) == ((), (), ())
        assert parse({"body": {"audio": BASE64, "suppress_tokens": []}}, {}).options.suppress_tokens == ()

    def test_a_single_value(self) -> None:
        assert parse({"file": SOUND, "languages[]": b"de"}, {}).options.languages == ("de",)
        assert option(suppress_tokens="7").suppress_tokens == (7,)
        assert parse({"body": {"audio": BASE64, "suppress_tokens": 7}}, {}).options.suppress_tokens == (7,)
        assert option(languages="auto").languages == option(languages="en,detect").languages == ()
        assert option(languages="en-US, deu,pt_BR").languages == ("en", "de", "pt")

    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            ([b"Zurich", b" Bern, Basel "], "Zurich, Bern, Basel"),
            (b"Zurich,Bern", "Zurich,Bern"),
            (b'["Zurich", "Bern"]', "Zurich, Bern"),
            (b"Zurich", "Zurich"),
            (b"[]", None),
        ],
    )
    def test_keywords_are_hot_words(self, sent: Any, expected: str | None) -> None:
        assert parse({"file": SOUND, "keywords[]": sent}, TRANSCRIPTIONS).options.hotwords == expected

    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            ([{"start": 0, "end": 2.5}, {"start": 4, "end": 5}], (0.0, 2.5, 4.0, 5.0)),
            ([{"start": 3}], (3.0,)),
            ({"start": 3, "end": 4}, (3.0, 4.0)),
            ('[{"start": 0.5, "end": 1}, {"start": 2}]', (0.5, 1.0, 2.0)),
            ("0", (0.0,)),
            (3, (3.0,)),
        ],
    )
    def test_clips(self, sent: Any, expected: tuple[float, ...]) -> None:
        assert parse({"body": {"audio": BASE64, "clip_timestamps": sent}}, {}).options.clip_timestamps == expected

    @pytest.mark.parametrize("form", ["object", "text", "parts"])
    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            (
                "vad_parameters",
                {"threshold": 0.7, "neg_threshold": 0.2, "min_speech_duration_ms": 9, "min_silence_duration_ms": 8, "speech_pad_ms": 7},
                Options(
                    vad_threshold=0.7,
                    vad_neg_threshold=0.2,
                    vad_min_speech_duration_ms=9,
                    vad_min_silence_duration_ms=8,
                    vad_speech_pad_ms=7,
                ),
            ),
            (
                "chunking_strategy",
                {"type": "server_vad", "threshold": 0.7, "silence_duration_ms": 200, "prefix_padding_ms": 300},
                Options(vad_filter=True, vad_threshold=0.7, vad_min_silence_duration_ms=200, vad_speech_pad_ms=300),
            ),
        ],
    )
    def test_objects(self, name: str, content: dict[str, Any], expected: Options, form: str) -> None:
        rows = {
            "object": {"body": {"audio": BASE64, name: content}},
            "text": {"file": SOUND, name: json.dumps(content).encode()},
            "parts": {"file": SOUND, **{f"{name}[{part}]": str(value).encode() for part, value in content.items()}},
        }
        assert parse(rows[form], TRANSCRIPTIONS).options == expected

    def test_chunking_strategies(self) -> None:
        assert option(chunking_strategy="auto").vad
        assert option(chunking_strategy="auto", strategy="sequential").vad
        assert not option(strategy="sequential").vad
        assert not option(chunking_strategy="auto", vad_filter="false").vad
        assert option(chunking_strategy="null") == Options()

    def test_a_part_and_our_own_name_for_it(self) -> None:
        error = refused({"file": SOUND, "vad_threshold": b"0.5", "chunking_strategy[threshold]": b"0.6"})
        assert error.param == "chunking_strategy[threshold]"
        assert "vad_threshold" in error.message


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
        assert client_request_id({"Accept": "*/*", "X-REQUEST-Id": "abc-1"}) == "abc-1"

    @pytest.mark.parametrize("offered", ["", "x" * 129, "a\nb", "é"])
    def test_none_when_not_sane(self, offered: str) -> None:
        assert client_request_id({"x-request-id": offered}) == ""

    def test_header_values_that_are_no_text_are_passed_over(self) -> None:
        headers = {"x-request-id": {"a": "b"}, "X-Whisper-File": {"c": 1}}
        assert parse({"file": SOUND}, headers).audio is SOUND
        assert client_request_id(headers) == ""


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


@given(st.sampled_from([*KNOWN_FIELDS, *ALIASES, *REFUSED]), VALUES, st.sampled_from([NATIVE, TRANSCRIPTIONS, TRANSLATIONS]))
def test_any_value_of_a_known_field(name: str, value: Any, headers: dict[str, Any]) -> None:
    only_client_errors({"file": SOUND, name: value}, headers)


VALID = {name: st.just(typed) | st.just(text) for name, (text, typed, _) in SAMPLES.items()} | {
    "response_format": st.sampled_from([*CONTENT_TYPES]),
    "timestamp_granularities": st.sampled_from(["word", "segment", ["word"], ["word", "segment"]]),
    "include": st.just("logprobs"),
    "stream": st.booleans(),
    **{name: st.sampled_from([1, "20", True]) for name in SUBTITLE_OPTIONS},
}


@given(st.fixed_dictionaries({}, optional=VALID), st.sampled_from([NATIVE, TRANSCRIPTIONS, TRANSLATIONS]))
def test_any_mixture_of_good_values(content: dict[str, Any], headers: dict[str, Any]) -> None:
    only_client_errors({"body": {"audio": BASE64, **content}}, headers)
