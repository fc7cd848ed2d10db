"""Recordings that were once transcribed wrongly, with what is right. Most of them are President Kennedy's sentence of eleven seconds."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench import edits
from bench.datasets import Set
from bench.scores import plain
from whispercore.audio.recording import read_samples
from whispercore.types import SAMPLE_RATE, Transcript, Word

Hear = Callable[..., Transcript]

SENTENCE = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def _words(found: Transcript) -> list[Word]:
    return [word for segment in found.segments for word in segment.words]


def _start(found: Transcript, first: str, occurrence: int = 0) -> float:
    """Where these words begin, the first time or a later one."""
    said, words = plain(first).split(), _words(found)
    heard = [plain(word.word) for word in words]
    starts = [words[i].start for i in range(len(heard)) if heard[i : i + len(said)] == said]
    assert len(starts) > occurrence, f"'{first}' was heard {len(starts)} times in: {found.text}"
    return starts[occurrence]


def _truncated(found: Transcript) -> list[str]:
    return [warning for warning in found.warnings if "truncated" in warning]


def test_the_end_of_every_window_is_heard(hear: Hear, audio: Path) -> None:
    """What base says there is its own affair: English, Hebrew and other languages are taken for English."""
    found = hear(audio / "multilingual.mp3", language="en")
    told = [(dropped.start, dropped.end) for dropped in found.dropped]
    covered = np.zeros(round(100 * found.duration), bool)
    for start, end in [*((segment.start, segment.end) for segment in found.segments), *told]:
        covered[round(100 * start) : round(100 * end)] = True
    assert covered[2600:2900].mean() > 0.8, "from 26.0 to 29.0 s somebody speaks"
    assert covered[5640:5900].mean() > 0.8, "and to the end"


@pytest.fixture(scope="session")
def joined(speech: Callable[[str], Set], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """31 sentences of LibriSpeech, half a second apart, and their words."""
    some = speech("test-clean").recordings[:31]
    path, pause = tmp_path_factory.mktemp("joined") / "joined.flac", np.zeros(SAMPLE_RATE // 2, np.float32)
    soundfile.write(path, np.concatenate([part for one in some for part in (read_samples(one.path), pause)]), SAMPLE_RATE)
    return path, " ".join(one.text for one in some)


def _longest_loss(said: str, heard: str) -> int:
    """Words in a row of which nothing was heard, at the most."""
    words = [plain(text).split() for text in (said, heard)]
    changes = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    return max((begin_to[1] - begin_to[0] - (end - begin) for _, *begin_to, begin, end in changes), default=0)


def test_chunked_loses_no_more_of_joined_sentences_than_sequential(hear: Hear, joined: tuple[Path, str]) -> None:
    """Which words base mishears differs by the window, by a word or two; what was lost at the ends of windows were parts of sentences."""
    path, said = joined
    texts = [hear(path, strategy=name).text for name in ("chunked", "sequential")]
    chunked, sequential = (edits.edits(said, text, "en") for text in texts)
    assert chunked.rate is not None and sequential.rate is not None
    assert chunked.rate <= min(sequential.rate + 0.005, 0.06), f"{chunked} and, sequential, {sequential}"
    assert _longest_loss(said, texts[0]) <= 3


def test_a_word_after_a_chord_and_a_long_silence_lies_where_it_is_spoken(hear: Hear, cases: Path) -> None:
    found = hear(cases / "chord_jfk.flac", word_timestamps=True)
    assert plain(found.text) == SENTENCE
    assert 20.7 <= _words(found)[0].start <= 21.6 and 20.7 <= found.segments[0].start <= 21.6, "speech begins at 21.0 s"
    assert all(word.end - word.start < 2 for word in _words(found))


@pytest.mark.parametrize("words", [False, True])
def test_a_segment_after_a_ring_begins_with_the_speech(hear: Hear, cases: Path, words: bool) -> None:
    found = hear(cases / "ring_5s_speech.wav", word_timestamps=words)
    assert plain(found.text).startswith("and so my fellow americans")
    assert 5.9 <= found.segments[0].start <= 6.8, "speech begins at 6.2 s"


def test_a_sentence_that_is_said_eight_times_is_heard_eight_times_and_always_the_same(hear: Hear, cases: Path) -> None:
    found = hear(cases / "rep8.mp3")
    text = plain(found.text)
    assert text.count("your country can do for you") == 8 and text.count("can do for your country") == 8, text
    again = hear(cases / "rep8.mp3", number=2)
    assert again.text == found.text


@pytest.mark.parametrize("name", ["gap.webm", "gap.m4a"])
def test_what_was_never_recorded_is_silence_on_the_recordings_clock(hear: Hear, cases: Path, name: str) -> None:
    """Nine seconds of packets are missing, as after a mute: the sentence is said at 0 and again at 20 s."""
    found = hear(cases / name, word_timestamps=True)
    assert found.duration == pytest.approx(31.0, abs=0.1) and not _truncated(found)
    assert plain(found.text) == f"{SENTENCE} {SENTENCE}"
    first, second = (_start(found, "ask what you can do", occurrence) for occurrence in (0, 1))
    assert second - first == pytest.approx(20.0, abs=0.3)
    assert not any(11.5 < word.start < 19.5 for word in _words(found))


def test_sound_that_starts_late_keeps_its_time(hear: Hear, cases: Path) -> None:
    """A video whose sound begins at 5 s."""
    found, clean = (hear(cases / name, word_timestamps=True) for name in ("off5.mkv", "../audio/jfk.flac"))
    assert plain(found.text) == SENTENCE and not _truncated(found)
    assert found.duration == pytest.approx(16.0, abs=0.1)
    for words in ("ask not what", "ask what you can"):
        assert _start(found, words) - _start(clean, words) == pytest.approx(5.0, abs=0.3)


def test_a_damaged_middle_takes_no_time_away(hear: Hear, cases: Path) -> None:
    """The sentence is said at 0 and at 20 s; what lies between cannot be decoded."""
    found = hear(cases / "dmg.m4a", word_timestamps=True)
    assert found.duration == pytest.approx(31.0, abs=0.1) and found.warnings
    last = _words(found)[-1]
    assert plain(last.word) == "country" and last.end == pytest.approx(30.6, abs=0.6)


def test_float_samples_in_the_range_of_integers_are_scaled_and_told(hear: Hear, cases: Path) -> None:
    found = hear(cases / "f32_int16range.wav")
    assert (found.language, plain(found.text)) == ("en", SENTENCE) and found.warnings


def test_channels_that_cancel_are_heard_one_by_one(hear: Hear, cases: Path) -> None:
    assert plain(hear(cases / "anti.flac").text) == SENTENCE


def test_a_header_that_names_no_length_is_no_truncated_file(hear: Hear, cases: Path) -> None:
    found = hear(cases / "w_7fff.wav")
    assert not _truncated(found) and found.duration == pytest.approx(2.0, abs=0.05)
    assert plain(found.text).startswith("and so my fellow")
