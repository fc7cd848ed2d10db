"""The values of options: what each accepts, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from tests.unit.api.request_samples import BASE64, SAMPLES, SOUND, TRANSCRIPTIONS, parsed_options, refused
from whispercore.api.error_reply import render_error
from whispercore.api.request import parse
from whispercore.errors import InvalidRequest
from whispercore.options import FALLBACK_TEMPERATURES, Options


def test_every_option_has_a_sample() -> None:
    assert set(SAMPLES) == {item.name for item in fields(Options)}


@pytest.mark.parametrize("name", SAMPLES)
def test_form_query_json_and_header_give_the_same_value(name: str) -> None:
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
    ("text", "code"),
    [("en", "en"), ("English", "en"), ("GERMAN", "de"), ("yue", "yue"), ("en-US", "en"), ("deu", "de"), ("AUTO", None), ("null", None)],
)
def test_language(text: str, code: str | None) -> None:
    assert parsed_options(language=text).language == code


def test_unknown_language() -> None:
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
def test_temperature(text: str, expected: tuple[float, ...]) -> None:
    assert parsed_options(temperature=text).temperature == expected
    assert (
        parse({"body": {"audio": BASE64, "temperature": json.loads(f"[{text}]")[0] if "," not in text else text}}, {}).options.temperature
        == expected
    )


def test_booleans() -> None:
    assert [parsed_options(vad_filter=text).vad_filter for text in ("true", "TRUE", "1", "yes", "On")] == [True] * 5
    assert [parsed_options(vad_filter=text).vad_filter for text in ("false", "0", "NO", "off")] == [False] * 4


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.endswith("_threshold") and name != "vad_threshold"])
def test_none_switches_a_threshold_off(name: str) -> None:
    assert getattr(parsed_options(**{name: "None"}), name) is None


@pytest.mark.parametrize("sent", ["none", "None", "[]", "null"])
def test_an_empty_list(sent: str) -> None:
    options = parsed_options(suppress_tokens=sent, languages=sent, clip_timestamps=sent)
    assert (options.suppress_tokens, options.languages, options.clip_timestamps) == ((), (), ())
    assert parse({"body": {"audio": BASE64, "suppress_tokens": []}}, {}).options.suppress_tokens == ()


def test_a_single_value_of_a_list() -> None:
    assert parse({"file": SOUND, "languages[]": b"de"}, {}).options.languages == ("de",)
    assert parsed_options(suppress_tokens="7").suppress_tokens == (7,)
    assert parse({"body": {"audio": BASE64, "suppress_tokens": 7}}, {}).options.suppress_tokens == (7,)
    assert parsed_options(languages="auto").languages == parsed_options(languages="en,detect").languages == ()
    assert parsed_options(languages="en-US, deu,pt_BR").languages == ("en", "de", "pt")


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
def test_keywords_are_hotwords(sent: Any, expected: str | None) -> None:
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
def test_clip_timestamps(sent: Any, expected: tuple[float, ...]) -> None:
    assert parse({"body": {"audio": BASE64, "clip_timestamps": sent}}, {}).options.clip_timestamps == expected


def test_chunking_strategy() -> None:
    assert parsed_options(chunking_strategy="auto").vad
    assert parsed_options(chunking_strategy="auto", strategy="sequential").vad
    assert not parsed_options(strategy="sequential").vad
    assert not parsed_options(chunking_strategy="auto", vad_filter="false").vad
    assert parsed_options(chunking_strategy="null") == Options()


def test_diarized_json_is_not_available() -> None:
    error = refused({"file": SOUND, "response_format": b"diarized_json"}, TRANSCRIPTIONS)
    assert (error.status, error.param, error.code) == (400, "response_format", "unsupported_value")
    assert "speakers" in error.message


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
def test_an_invalid_value_names_its_field(name: str, value: Any) -> None:
    error = refused({"body": {"audio": BASE64, name: value}})
    assert isinstance(error, InvalidRequest)
    assert error.param == name
    assert name in error.message
    assert len(error.message) < 400
    json.loads(render_error(error)[1].payload)
