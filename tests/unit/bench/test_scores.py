"""Error rates, word times and segment times of hypotheses against references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bench import (
    edits,
    scores,
    segment_times,
)
from bench.datasets import Recording, Set, Utterance
from bench.edits import Edits
from bench.espeak import TrueWord
from bench.peers import Hypothesis
from whispercore.types import SAMPLE_RATE, Word


def test_edits_are_counted_after_whispers_normalizer() -> None:
    assert edits.edits("MISTER HARALD'S CODE IS ONE TWO", "Mr. Harold's code is 12!", "en") == Edits(6, 0, 0, 1)
    assert edits.edits("eins zwei drei vier fünf", "Eins, drei vier fünf sechs", "de") == Edits(5, 1, 1, 0)


def test_languages_without_spaces_count_characters() -> None:
    assert edits.edits("今日は晴れです。", "今日は雨です", "ja") == Edits(7, 0, 1, 1)
    assert edits.edits("今日は晴れです。", "今日は雨です", "fr").words == 1
    assert edits.words_of("สวัสดี", "th") != ["สวัสดี"]


def test_edits_add_up_and_a_rate_of_nothing_is_none() -> None:
    both = edits.edits("red green", "red", "en") + edits.edits("", "thank you", "en")
    assert both == Edits(2, 2, 1, 0) and both.errors == 3 and both.rate == 1.5
    assert Edits(insertions=2).rate is None and Edits(insertions=2).figures["wer"] is None


def test_a_difference_shows_deletions_insertions_and_substitutions() -> None:
    said = "the quick brown fox jumps over the lazy dog and then it sleeps all day long"
    heard = "a quick brown fox jumps over the lazy dog and then it all day long too"
    shown = edits.difference(said, heard, "en")
    assert shown == "[-the-]{+a+} quick brown fox jumps … dog and then it [-sleeps-] all day long {+too+}"
    assert edits.difference("One.", "one", "en") == "one"


def _one(text: str, language: str = "en", **fields: Any) -> Recording:
    return Recording(Path(f"{text[:5] or 'quiet'}.wav"), text, language=language, **fields)


def test_a_set_has_figures_in_all_and_by_language() -> None:
    dataset = Set("any", [_one("red green"), _one("ein zwei drei vier", "de"), _one("")])
    seen = scores.of(
        dataset, [Hypothesis("red green", language="en"), Hypothesis("ein zwei", language="nl"), Hypothesis("You", language="en")]
    )
    assert (seen["words"], seen["deletions"], seen["insertions"]) == (6, 2, 1) and seen["wer"] == 0.5
    assert seen["languages"]["de"]["wer"] == 0.5 and seen["mean_rate"] == 0.5, "the word in silence is one of two in English"
    assert seen["language_right"] == 1 and seen["language_wrong"] == ["ein z.wav: nl"], "silence has no language"
    assert seen["made_up"] == ["quiet.wav: You"]
    given = scores.of(replace(dataset, language_given=True), [Hypothesis("")] * 3)
    assert "language_right" not in given and "made_up" not in given and "word_times" not in given and "segment_times" not in given


def test_word_times_compare_only_correct_words_with_known_times() -> None:
    said = [TrueWord("Turn", 0.0, 0.5), TrueWord("on", 0.5, None), TrueWord("the", None, 1.0), TrueWord("light.", 1.0, 1.5)]
    heard = [Word(" turn", 0.05, 0.5, 1.0), Word(" on", 0.8, 0.9, 1.0), Word(" a", 0.9, 3.0, 1.0), Word(" light", 1.6, 1.6, 1.0)]
    seen = scores.word_times([said], [heard])
    assert seen["words"] == 4
    assert seen["start"] == {
        "compared": 3,
        "mean": pytest.approx((0.05 + 0.3 + 0.6) / 3, abs=1e-4),
        "median": pytest.approx(0.3),
        "p90": pytest.approx(0.6),
        "worst": pytest.approx(0.6),
        "within": {"0.1": pytest.approx(1 / 3, abs=1e-4), "0.2": pytest.approx(1 / 3, abs=1e-4), "0.5": pytest.approx(2 / 3, abs=1e-4)},
    }
    assert seen["end"]["compared"] == 2 and seen["end"]["mean"] == pytest.approx((0.0 + 0.1) / 2)


def test_a_word_that_is_split_keeps_its_start_and_its_end() -> None:
    said = [TrueWord("seven", 1.0, 1.5), TrueWord("forty", 1.5, 2.0)]
    seen = scores.word_times([said], [[Word(" seven-forty.", 1.1, 2.3, 1.0)]])
    assert (seen["start"]["compared"], seen["start"]["mean"]) == (1, pytest.approx(0.1))
    assert (seen["end"]["compared"], seen["end"]["mean"]) == (1, pytest.approx(0.3))


def test_no_word_times_are_no_figures() -> None:
    assert scores.word_times([[TrueWord("one", 0.0, 1.0)]], [[]]) == {"words": 1, "start": {"compared": 0}, "end": {"compared": 0}}


# Segment times


@pytest.fixture
def talk(tmp_path: Path) -> Recording:
    """Three utterances of noise: cut at 1 s with a voice from 1.3 s; at 3 s, 0.4 s after the first; at 20 s, after a
    long pause."""
    samples = np.zeros(25 * SAMPLE_RATE, np.float32)
    noise = np.random.default_rng(0).normal(scale=0.1, size=SAMPLE_RATE).astype(np.float32)
    for start, seconds in ((1.3, 1.0), (3.0, 1.0), (20.0, 1.0)):
        samples[round(start * SAMPLE_RATE) :][: round(seconds * SAMPLE_RATE)] = noise
    path = tmp_path / "talk.wav"
    soundfile.write(path, samples, SAMPLE_RATE)
    utterances = (Utterance(1.0, 2.6, "red green blue"), Utterance(3.0, 4.0, "cat dog mouse"), Utterance(20.0, 21.0, "north east south"))
    return Recording(path, "red green blue cat dog mouse north east south", utterances=utterances)


def _segments(*spans: tuple[float, float, str]) -> list[Utterance]:
    return [Utterance(*span) for span in spans]


def test_a_segment_may_begin_anywhere_between_the_cut_and_the_voice(talk: Recording) -> None:
    heard = _segments((1.25, 2.6, " Red green blue"), (3.15, 4.0, " cat dog mouse."), (19.7, 21.0, "North east south"))
    seen = segment_times.of([(talk, heard)])
    assert (seen["utterances"], seen["compared"]) == (3, 3) and seen["shown_in_silence"] == 0
    assert seen["within"] == pytest.approx(2 / 3, abs=1e-4), "19.7 is 0.3 s early; 1.25 lies before the voice"
    assert seen["within_cut"] == pytest.approx(1 / 3, abs=1e-4) and seen["worst"] == pytest.approx(0.3)


def test_a_segment_over_two_utterances_is_no_error_and_one_over_a_pause_is(talk: Recording) -> None:
    seen = segment_times.of([(talk, _segments((1.0, 4.0, "red green blue cat dog mouse"), (4.0, 21.0, "north east south")))])
    assert seen["compared"] == 2, "no segment begins at the second utterance, and no pause is before it"
    assert seen["within"] == 0.5 and seen["worst"] == pytest.approx(16.0)
    assert seen["shown_in_silence"] == pytest.approx(15.0, abs=0.02), "from half a second after 4.0 to half a second before 20.0"
    whole = segment_times.of([(talk, _segments((1.0, 21.0, talk.text)))])
    assert whole["compared"] == 2 and whole["within"] == 0.5, "after a pause a segment has to begin"


def test_segments_that_begin_within_an_utterance_are_not_compared(talk: Recording) -> None:
    heard = _segments((1.0, 1.5, "red"), (1.9, 2.6, "green blue"), (3.0, 4.0, "cut dog mouse"), (20.0, 21.0, "north east south"))
    seen = segment_times.of([(talk, heard)])
    assert seen["compared"] == 3 and seen["within"] == 1, "a first word that is misheard is still the first"


def test_no_segments_are_far_off(talk: Recording) -> None:
    assert segment_times.of([(talk, [])])["within"] == 0
    assert segment_times.of([]) == {"utterances": 0, "compared": 0, "shown_in_silence": 0.0}


def test_a_voice_begins_where_several_frames_are_loud() -> None:
    samples = np.full(SAMPLE_RATE, 1e-4, np.float32)
    samples[: SAMPLE_RATE // 100] = 0.5  # a click
    samples[SAMPLE_RATE // 2 :] = 0.1
    assert segment_times.voice_onset(samples) == pytest.approx(0.5, abs=0.02)
    assert segment_times.voice_onset(samples[:100]) == 0
