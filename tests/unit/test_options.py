"""Options: ranges, and what an engine is told."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from whispercore.errors import InvalidRequest
from whispercore.options import FALLBACK_TEMPERATURES, Options


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
    ],
)
def test_out_of_range_names_the_option(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        Options(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("item", fields(Options), ids=lambda item: item.name)
def test_limits_themselves_are_allowed(item: Any) -> None:
    for limit in (item.metadata["minimum"], item.metadata["maximum"]):
        if limit is not None:
            Options(**{item.name: (limit,) if item.name == "temperature" else limit})
    assert item.metadata["doc"]


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().task = "translate"  # type: ignore[misc]


def test_beams_at_zero_samples_above() -> None:
    options = Options(beam_size=5, best_of=3, patience=2.0, language="de", task="translate")
    cold, warm = options.decoding(temperature=0.0), options.decoding(temperature=0.4, prompt=(1, 2), language="fr")
    assert (cold.beam_size, cold.best_of, cold.patience, cold.language) == (5, None, 2.0, "de")
    assert (warm.beam_size, warm.best_of, warm.patience, warm.language) == (None, 3, None, "fr")
    assert (warm.temperature, warm.prompt, warm.task) == (0.4, (1, 2), "translate")
