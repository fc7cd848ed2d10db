"""The accuracy of the server's default (base in int8, chunked) on real speech: the measured figures with a small
margin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench import scores, sounds
from bench.datasets import Set
from bench.peers import as_hypothesis
from whispercore.engines.pytorch.linear import multiplies_int8
from whispercore.types import Transcript

Transcribe = Callable[..., Transcript]

WER = {
    "test-clean": 0.038 if multiplies_int8() else 0.042,
    "chapters": 0.050 if multiplies_int8() else 0.053,
    "dictation": 0.057,
    "silence": 0.045,
    "noisy-10dB": 0.16,
    "telephone": 0.08,
}
"""The highest error rate of a set. Without VNNI weights have 7 bits, which gives up to 30 errors in the 776 words of test-clean and
103 in the 2,056 of the chapters."""
SEGMENTS_WITHIN = 0.95
WORD_MEDIAN_SECONDS = 0.08
LANGUAGE_RIGHT = 0.85
SOUND_HOURS = 0.1


def _figures(transcribe: Transcribe, dataset: Set) -> dict[str, Any]:
    """The set's figures as `bench accuracy` computes them."""
    transcripts = [
        transcribe(recording.path, language=recording.language if dataset.language_given else None, word_timestamps=dataset.timed)
        for recording in dataset.recordings
    ]
    return scores.of(dataset, [as_hypothesis(transcript) for transcript in transcripts])


@pytest.mark.parametrize("name", list(WER))
def test_the_error_rate_of_a_set(transcribe: Transcribe, speech: Callable[[str], Set], name: str) -> None:
    figures = _figures(transcribe, speech(name))
    assert figures["wer"] <= WER[name], figures


@pytest.mark.parametrize("name", ["chapters", "silence"])
def test_segments_begin_where_the_speech_does(transcribe: Transcribe, speech: Callable[[str], Set], name: str) -> None:
    figures = _figures(transcribe, speech(name))["segment_times"]
    assert figures["within"] >= SEGMENTS_WITHIN, figures
    assert figures["compared"] >= 4 and figures["shown_in_silence"] < 2, figures


def test_word_times(transcribe: Transcribe, speech: Callable[[str], Set]) -> None:
    figures = _figures(transcribe, speech("word-times"))["word_times"]
    assert figures["start"]["compared"] > 100
    assert figures["start"]["median"] <= WORD_MEDIAN_SECONDS, figures["start"]


def test_the_language_is_detected(transcribe: Transcribe, speech: Callable[[str], Set]) -> None:
    """On the first recording of every language."""
    languages = speech("languages")
    first = {recording.language: recording for recording in reversed(languages.recordings)}
    figures = _figures(transcribe, replace(languages, recordings=list(first.values())))
    assert len(first) == 21
    assert figures["language_right"] >= LANGUAGE_RIGHT * len(first), figures["language_wrong"]


def test_recordings_without_speech_have_no_words(transcribe: Transcribe) -> None:
    for path in sounds.recordings(SOUND_HOURS):
        assert transcribe(path).text == "", path.name
