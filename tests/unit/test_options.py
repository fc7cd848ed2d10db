"""Options: ranges, and the decoding they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from whispercore.errors import InvalidRequest
from whispercore.options import FALLBACK_TEMPERATURES, SUBTITLE_OPTIONS, OptionKeywords, Options, Reply


def test_defaults_are_openai_whispers() -> None:
    options = Options()
    assert options.temperature == FALLBACK_TEMPERATURES == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert (options.compression_ratio_threshold, options.logprob_threshold, options.no_speech_threshold) == (2.4, -1.0, 0.6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "summarize"),
        ("temperature", (0.0, 1.01)),
        ("temperature", (math.nan,)),
        ("temperature", ()),
        ("temperature", (0.0,) * 17),
        ("beam_size", 0),
        ("best_of", 17),
        ("patience", math.nan),
        ("length_penalty", 1.5),
        ("compression_ratio_threshold", -1.0),
        ("logprob_threshold", 0.1),
        ("no_speech_threshold", 2.0),
        ("vad_threshold", -0.1),
        ("strategy", "x" * 10_000),
        ("languages", ("en",) * 17),
        ("suppress_tokens", (-2,)),
        ("suppress_tokens", (1,) * 1001),
        ("clip_timestamps", (-1.0,)),
        ("clip_timestamps", (2.0, 1.0)),
        ("clip_timestamps", (0.0, 1e308)),
        ("no_repeat_ngram_size", -1),
        ("repetition_penalty", 0.0),
        ("hallucination_silence_threshold", -1.0),
    ],
)
def test_out_of_range_names_the_option(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        Options(**{name: value})
    assert caught.value.param == name
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("item", fields(Options), ids=lambda item: item.name)
def test_limits_themselves_are_allowed(item: Any) -> None:
    for limit in (item.metadata["minimum"], item.metadata["maximum"]):
        if limit is not None:
            Options(**{item.name: (limit,) if isinstance(item.default, tuple) else limit})
    assert item.metadata["doc"]


@pytest.mark.parametrize(
    ("options", "param"),
    [({"multilingual": True, "language": "en"}, "multilingual"), ({"language": "en", "languages": ("de", "fr")}, "languages")],
)
def test_contradictions(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Options(**options)
    assert caught.value.param == param
    assert Options(language="en", languages=("de", "en")).language == "en"


def test_hallucinations_are_found_by_the_words_times() -> None:
    assert Options(hallucination_silence_threshold=2.0).word_timestamps
    assert Options(hallucination_silence_threshold=2.0).decoding(temperature=0.0).alignment == "all"
    assert not Options().word_timestamps


@pytest.mark.parametrize("strategy", ["chunked", "sequential"])
def test_silence_is_left_out_by_default_where_windows_are_cut_at_it(strategy: Any) -> None:
    assert Options(strategy=strategy).vad == (strategy == "chunked")
    assert Options(strategy=strategy, vad_filter=True).vad
    assert not Options(strategy=strategy, vad_filter=False).vad


@pytest.mark.parametrize("name", SUBTITLE_OPTIONS)
def test_the_reply_checks_its_subtitle_options(name: str) -> None:
    wide = {"max_line_width": 40} if name == "max_line_count" else {}
    assert Reply(response_format="srt", **wide, **{name: 1}).subtitles[name] == 1
    for others in ({}, {"response_format": "tsv"}):
        with pytest.raises(InvalidRequest, match="srt and vtt") as caught:
            Reply(**wide, **{name: 1}, **others)
        assert caught.value.param in SUBTITLE_OPTIONS


@pytest.mark.parametrize(
    ("reply", "param"),
    [
        ({"response_format": "srt", "max_line_count": 2}, "max_line_count"),
        ({"response_format": "srt", "max_line_width": 20, "max_words_per_line": 2}, "max_words_per_line"),
        ({"response_format": "srt", "max_line_width": 1001}, "max_line_width"),
        ({"response_format": "doc"}, "response_format"),
        ({"response_format": "verbose_json", "include": ("logprobs",)}, "include"),
        ({"include": ("tokens",)}, "include"),
        ({"timestamp_granularities": ("phoneme",)}, "timestamp_granularities"),
    ],
)
def test_the_reply_refuses(reply: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Reply(**reply)
    assert caught.value.param == param


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().task = "translate"  # type: ignore[misc]


def test_beams_at_zero_samples_above() -> None:
    options = Options(beam_size=5, best_of=3, patience=2.0, language="de", task="translate")
    cold, warm = options.decoding(temperature=0.0), options.decoding(temperature=0.4, prompt=(1, 2), language="fr")
    assert (cold.beam_size, cold.best_of, cold.patience, cold.language) == (5, None, 2.0, "de")
    assert (warm.beam_size, warm.best_of, warm.patience, warm.language) == (None, 3, None, "fr")
    assert (warm.temperature, warm.prompt, warm.task) == (0.4, (1, 2), "translate")


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.5), ("languages", "en"), ("clip_timestamps", [0.0, 1.0])])
def test_lists_are_tuples(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} must be a tuple"):
        Options(**{name: value})


def test_the_keywords_of_a_call_are_the_options() -> None:
    def keyword(hint: Any) -> Any:
        """A list may be any sequence, or one value."""
        item: Any = get_args(hint)[0] if get_origin(hint) is tuple else None
        return item | Sequence[item] if item else hint

    expected = {name: keyword(hint) for name, hint in get_type_hints(Options).items()}
    assert get_type_hints(OptionKeywords) == expected
    assert list(OptionKeywords.__annotations__) == [item.name for item in fields(Options)]
