"""The accuracy of the server's default, base in int8, chunked, on real speech: no worse than measured, with a little room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench import datasets, scores, sounds
from bench.datasets import Set
from bench.peers import Heard
from whispercore.types import Transcript

Hear = Callable[..., Transcript]

WER = {
    "test-clean": 0.038,
    "chapters": 0.050,
    "dictation": 0.057,
    "silence": 0.045,
    "noisy-10dB": 0.16,
    "telephone": 0.08,
}
"""The most that a set's error rate may be."""
SEGMENTS_WITHIN = 0.95
WORD_MEDIAN_SECONDS = 0.08
LANGUAGE_RIGHT = 0.85
SOUND_HOURS = 0.1


def _figures(hear: Hear, heard_set: Set) -> dict[str, object]:
    """As the bench computes them."""
    heard = []
    for one in heard_set.recordings:
        found = hear(one.path, language=one.language if heard_set.told else None, word_timestamps=heard_set.timed)
        heard.append(_heard(found))
    return scores.of(heard_set, heard)


def _heard(found: Transcript) -> Heard:
    spans = tuple(datasets.Utterance(one.start, one.end, one.text) for one in found.segments)
    return Heard(found.text, tuple(word for one in found.segments for word in one.words), found.language, spans)


@pytest.mark.parametrize("name", list(WER))
def test_the_error_rate_of_a_set(hear: Hear, speech: Callable[[str], Set], name: str) -> None:
    seen = _figures(hear, speech(name))
    assert seen["wer"] <= WER[name], seen  # type: ignore[operator]


@pytest.mark.parametrize("name", ["chapters", "silence"])
def test_segments_begin_where_the_speech_does(hear: Hear, speech: Callable[[str], Set], name: str) -> None:
    seen = _figures(hear, speech(name))["segment_times"]
    assert isinstance(seen, dict) and seen["within"] >= SEGMENTS_WITHIN, seen
    assert seen["compared"] >= 4 and seen["shown_in_silence"] < 2, seen


def test_words_lie_where_they_are_spoken(hear: Hear, speech: Callable[[str], Set]) -> None:
    seen = _figures(hear, speech("word-times"))["word_times"]
    assert isinstance(seen, dict) and seen["start"]["compared"] > 100
    assert seen["start"]["median"] <= WORD_MEDIAN_SECONDS, seen["start"]


def test_the_language_is_detected(hear: Hear, speech: Callable[[str], Set]) -> None:
    """The first recording of every language."""
    languages = speech("languages")
    first = {one.language: one for one in reversed(languages.recordings)}
    seen = _figures(hear, replace(languages, recordings=list(first.values())))
    assert len(first) == 21
    assert seen["language_right"] >= LANGUAGE_RIGHT * len(first), seen["language_wrong"]  # type: ignore[operator]


def test_nobody_is_heard_where_nobody_speaks(hear: Hear) -> None:
    for path in sounds.made(SOUND_HOURS):
        assert hear(path).text == "", path.name
