"""The fields of a request: their names, aliases and spellings, and which are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.api.request_samples import BASE64, SAMPLES, SOUND, TRANSCRIPTIONS, TRANSLATIONS, parsed_options, refused
from whispercore.api.fields import ALIASES, IGNORED, KNOWN_FIELDS, LIST_FIELDS, REFUSED
from whispercore.api.request import parse
from whispercore.options import Options, Reply


@pytest.mark.parametrize(
    ("sent", "name"), [("prompt", "initial_prompt"), ("log_prob_threshold", "logprob_threshold"), ("initial_prompt", "initial_prompt")]
)
def test_aliases(sent: str, name: str) -> None:
    assert getattr(parsed_options(**{sent: "-0.5"}), name) in ("-0.5", -0.5)


def test_every_alias_means_a_known_field() -> None:
    assert set(ALIASES.values()) <= set(KNOWN_FIELDS)


def test_empty_and_null_count_as_not_sent() -> None:
    assert parsed_options(**dict.fromkeys(KNOWN_FIELDS, "")) == Options()
    assert parse({"body": {"audio": BASE64, **dict.fromkeys(KNOWN_FIELDS)}}, {}).options == Options()
    assert parse({"file": SOUND, "prompt": b"", "initial_prompt": b"x"}, {}).options.initial_prompt == "x"


def test_a_field_given_twice() -> None:
    error = refused({"file": SOUND, "prompt": b"a", "initial_prompt": b"b"})
    assert error.param == "initial_prompt"
    assert "twice" in error.message
    assert "X-Whisper-Language" in refused({"file": SOUND, "language": b"en"}, {"X-Whisper-Language": "en"}).message


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
def test_an_error_has_the_name_that_the_client_sent(row: dict[str, Any], headers: dict[str, str], name: str) -> None:
    error = refused({"file": SOUND, **row}, headers)
    assert error.param == name
    assert error.message.startswith(name)


def test_an_unknown_option_header() -> None:
    assert refused({"body": SOUND}, {"X-Whisper-Beams": "5"}).param == "X-Whisper-Beams"
    parse({"body": SOUND}, {"X-Other": "5"})


@pytest.mark.parametrize(
    ("content_type", "language"),
    [
        ("audio/flac; x-whisper-language=en", "en"),
        ('audio/webm;codecs=opus; X-Whisper-Language="de"', "de"),
        ("audio/flac; x-whisper-initial-prompt*=utf-8''Gr%C3%BC%C3%9Fe; x-whisper-language=fr", "fr"),
        ("audio/L16; rate=16000; channels=1", None),
        ("audio/flac;;; =; x-whisper-language=en", "en"),
    ],
)
def test_options_may_be_parameters_of_content_type(content_type: str, language: str | None) -> None:
    """SageMaker forwards Content-Type, and no other header of the client's."""
    options = parse({"body": SOUND}, {"content-type": content_type}).options
    assert options.language == language
    assert options.initial_prompt == ("Grüße" if "prompt" in content_type else None)


def test_an_error_names_the_parameter_of_content_type() -> None:
    header = {"Content-Type": "audio/flac; x-whisper-beam-size=99"}
    assert refused({"body": SOUND}, header).param == "x-whisper-beam-size"
    assert refused({"body": SOUND}, {"Content-Type": "audio/flac; x-whisper-beams=5"}).param == "x-whisper-beams"
    twice = refused({"body": SOUND}, {"Content-Type": "audio/flac; x-whisper-language=en", "X-Whisper-Language": "en"})
    assert "given twice" in twice.message


def test_an_unknown_field_gets_a_suggestion() -> None:
    error = refused({"file": SOUND, "beam_sise": b"5"})
    assert (error.status, error.param, error.code) == (400, "beam_sise", "unknown_parameter")
    assert "did you mean 'beam_size'" in error.message
    assert all(name in error.message for name in KNOWN_FIELDS)


@pytest.mark.parametrize("name", ["beam_size[]", "vad_threshold[]", "vad_parameters[]", "vad_parameters[speed]", "language[en]", "[]"])
def test_brackets_on_a_field_that_is_neither_list_nor_object(name: str) -> None:
    error = refused({"file": SOUND, name: b"0.5"})
    assert error.param == name
    assert error.status == 400


# Lists and objects, as clients of OpenAI and faster-whisper send them


@pytest.mark.parametrize("name", LIST_FIELDS)
def test_every_list_as_a_repeated_field(name: str) -> None:
    row = {"file": SOUND, "response_format": b"json"}
    if name in SAMPLES:
        items = SAMPLES[name][1]
        request = parse({**row, f"{name}[]": [str(item).encode() for item in items]}, {})
        assert getattr(request.options, name) == SAMPLES[name][2]
    assert parse({**row, f"{name}[]": b""}, {}).options == Options()


@pytest.mark.parametrize("name", [name for name in LIST_FIELDS if name in SAMPLES])
def test_every_list_as_json_text(name: str) -> None:
    assert getattr(parsed_options(**{name: json.dumps(SAMPLES[name][1])}), name) == SAMPLES[name][2]


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
def test_objects(name: str, content: dict[str, Any], expected: Options, form: str) -> None:
    rows: dict[str, dict[str, Any]] = {
        "object": {"body": {"audio": BASE64, name: content}},
        "text": {"file": SOUND, name: json.dumps(content).encode()},
        "parts": {"file": SOUND, **{f"{name}[{part}]": str(value).encode() for part, value in content.items()}},
    }
    assert parse(rows[form], TRANSCRIPTIONS).options == expected


def test_a_part_of_an_object_and_the_option_that_it_means() -> None:
    error = refused({"file": SOUND, "vad_threshold": b"0.5", "chunking_strategy[threshold]": b"0.6"})
    assert error.param == "chunking_strategy[threshold]"
    assert "vad_threshold" in error.message


# Fields of other servers: whisperX, whisper-asr-webservice, LocalAI, speaches, whisper.cpp


OFF_VALUES = [b"", b"false", b"False", b"0", b"no", b"None", b"null", b" off "]


OTHER_SERVERS = ["diarize", "min_speakers", "speaker_labels", "return_char_alignments", "batch_size", "speaker_diarization", "punctuate"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_only_other_servers_have(name: str) -> None:
    error = refused({"file": SOUND, name: b"5"})
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")
    assert REFUSED[name] in error.message
    assert parse({"file": SOUND, name: b""}, {}).options == Options()


@pytest.mark.parametrize("value", OFF_VALUES)
@pytest.mark.parametrize("name", [*OTHER_SERVERS, "known_speaker_names[]", "translate", "stream", "word_timestamps"])
def test_a_field_that_switches_off_is_accepted(name: str, value: bytes) -> None:
    request = parse({"file": SOUND, name: value}, {})
    assert (request.options, request.reply) == (Options(), Reply())


@pytest.mark.parametrize("value", [False, 0, None, "", [], {}, "none"])
@pytest.mark.parametrize("name", OTHER_SERVERS)
def test_a_json_field_that_switches_off_is_accepted(name: str, value: Any) -> None:
    assert parse({"body": {"audio": BASE64, name: value}}, {}).options == Options()


@pytest.mark.parametrize("value", [b"true", b"1", b"yes", b"2"])
@pytest.mark.parametrize("name", OTHER_SERVERS)
def test_a_field_that_switches_on_is_refused(name: str, value: bytes) -> None:
    error = refused({"file": SOUND, name: value})
    assert (error.status, error.param) == (400, name)
    assert error.code == ("unsupported_parameter" if name in REFUSED else "unknown_parameter")


@pytest.mark.parametrize("value", [b"none", b"null", b"Null"])
@pytest.mark.parametrize("name", ["response_format", "task", "strategy", "channels"])
def test_none_for_a_choice_counts_as_not_sent(name: str, value: bytes) -> None:
    request = parse({"file": SOUND, name: value}, {"accept": "text/plain"})
    assert (request.options, request.reply) == (Options(), Reply(response_format="text"))


@pytest.mark.parametrize("name", ["word_timestmaps", "beam_sise", "vad_fliter", "supress_blank", "condition_on_previous_txt"])
def test_a_misspelt_field_is_refused_even_when_it_switches_off(name: str) -> None:
    assert "did you mean" in refused({"file": SOUND, name: b"false"}).message


@pytest.mark.parametrize("name", IGNORED)
def test_a_field_without_effect_is_accepted(name: str) -> None:
    assert parsed_options(**{name: "true"}) == Options()


def test_translate_sets_the_task() -> None:
    assert parsed_options(translate="true").task == parsed_options(translate="yes", task="translate").task == "translate"
    assert parsed_options(translate="false", task="translate").task == "translate"
    assert refused({"file": SOUND, "translate": b"true", "task": b"transcribe"}).param == "translate"
    assert parse({"file": SOUND, "translate": b"false"}, TRANSLATIONS).options.task == "translate"


def test_names_of_other_servers() -> None:
    assert parse({"file": SOUND, "output": b"txt"}, {}).reply.response_format == "text"
    assert parse({"file": SOUND, "output": b"srt"}, {}).reply.response_format == "srt"
    options = parsed_options(no_timestamps="true", logprob_thold="-0.5", no_speech_thold="0.5", vad="false")
    assert options == Options(without_timestamps=True, logprob_threshold=-0.5, no_speech_threshold=0.5, vad_filter=False)


# Recordings in the wrong field


BINARY = bytes(range(256))


FILE_FIELDS = ["audio_file", "files", "file[]", "upload", "audio[]", "audio_data", "audioFile", "File", "recording", "input-audio", "wav"]


@pytest.mark.parametrize("value", [BINARY, b"RIFF plain text", [BINARY, BINARY], memoryview(BINARY)])
@pytest.mark.parametrize("name", FILE_FIELDS)
def test_a_recording_in_an_unknown_field(name: str, value: Any) -> None:
    error = refused({name: value, "language": b"en"})
    assert (error.status, error.param, error.code) == (400, name, "unknown_parameter")
    assert name in error.message and "did you mean 'file'" in error.message


@pytest.mark.parametrize("name", ["sprache", "my_field", "x"])
@pytest.mark.parametrize("value", [BINARY, b"RIFF\0\0\0", b"A" * 200_000])
def test_binary_data_in_an_unknown_field_is_a_recording(name: str, value: bytes) -> None:
    assert "did you mean 'file'" in refused({name: value}).message


def test_base64_in_an_unknown_json_field() -> None:
    assert "did you mean 'file'" in refused({"body": {"audio_base64": BASE64}}).message


@pytest.mark.parametrize("name", ["audio_lang", "beam_sise", "source_language"])
def test_other_unknown_fields_are_not_recordings(name: str) -> None:
    assert "did you mean 'file'" not in refused({"file": SOUND, name: b"en"}).message


@pytest.mark.parametrize("name", ["language", "prompt", "hotwords", "languages[]"])
def test_binary_data_in_a_text_field(name: str) -> None:
    error = refused({"file": SOUND, name: BINARY})
    assert error.param == name and "not UTF-8 text" in error.message
