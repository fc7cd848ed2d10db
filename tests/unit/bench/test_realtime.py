"""The lags of realtime sessions, from what was spoken and what was received."""

from __future__ import annotations

import pytest

from bench.realtime import SpokenWord, transcript_lags, word_lags

WORDS = [SpokenWord("set", 0.5), SpokenWord("a", 0.6), SpokenWord("timer", 1.0), SpokenWord("for", 1.3), SpokenWord("five", 1.6)]


def test_the_lag_of_each_word_that_was_received() -> None:
    deltas = [(1.0, "Set a"), (2.0, ", time"), (2.5, " for five.")]
    assert word_lags(WORDS, deltas) == pytest.approx([0.5, 0.4, 1.2, 0.9])


def test_words_that_were_not_spoken_have_no_lag() -> None:
    assert word_lags(WORDS, [(1.0, "Thank you.")]) == []


def test_the_lag_of_a_transcript_is_that_of_the_first_one_after_it() -> None:
    assert transcript_lags([2.0, 8.0], [1.5, 3.0, 9.5, 12.0]) == [1.0, 1.5]
    assert transcript_lags([2.0, 8.0], [3.0]) == [1.0]
