"""Recordings that were once transcribed wrongly.

Most of them contain a sentence by President Kennedy of eleven seconds.
"""

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

Transcribe = Callable[..., Transcript]

SENTENCE = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def _words(transcript: Transcript) -> list[Word]:
    return [word for segment in transcript.segments for word in segment.words]


def _start(transcript: Transcript, first: str, occurrence: int = 0) -> float:
    """The start of these words, at their first or a later occurrence."""
    phrase, words = plain(first).split(), _words(transcript)
    texts = [plain(word.word) for word in words]
    starts = [words[i].start for i in range(len(texts)) if texts[i : i + len(phrase)] == phrase]
    assert len(starts) > occurrence, f"'{first}' occurs {len(starts)} times in: {transcript.text}"
    return starts[occurrence]


def _truncated(transcript: Transcript) -> list[str]:
    return [warning for warning in transcript.warnings if "truncated" in warning]


def test_the_end_of_every_window_is_transcribed(transcribe: Transcribe, audio: Path) -> None:
    """The recording has several languages, and all are decoded as English, so the words there are not checked."""
    transcript = transcribe(audio / "multilingual.mp3", language="en")
    dropped_spans = [(dropped.start, dropped.end) for dropped in transcript.dropped]
    covered = np.zeros(round(100 * transcript.duration), bool)
    for start, end in [*((segment.start, segment.end) for segment in transcript.segments), *dropped_spans]:
        covered[round(100 * start) : round(100 * end)] = True
    assert covered[2600:2900].mean() > 0.8, "there is speech from 26.0 to 29.0 s"
    assert covered[5640:5900].mean() > 0.8, "there is speech to the end"


@pytest.fixture(scope="session")
def joined(speech: Callable[[str], Set], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """31 sentences of LibriSpeech, half a second apart, and their words."""
    recordings = speech("test-clean").recordings[:31]
    path, pause = tmp_path_factory.mktemp("joined") / "joined.flac", np.zeros(SAMPLE_RATE // 2, np.float32)
    soundfile.write(path, np.concatenate([part for recording in recordings for part in (read_samples(recording.path), pause)]), SAMPLE_RATE)
    return path, " ".join(recording.text for recording in recordings)


def _longest_loss(reference: str, hypothesis: str) -> int:
    """The largest number of consecutive words that are missing."""
    expected, actual = (plain(text).split() for text in (reference, hypothesis))
    changes = difflib.SequenceMatcher(None, expected, actual, autojunk=False).get_opcodes()
    return max((begin_to[1] - begin_to[0] - (end - begin) for _, *begin_to, begin, end in changes), default=0)


def test_chunked_loses_no_more_of_joined_sentences_than_sequential(transcribe: Transcribe, joined: tuple[Path, str]) -> None:
    """The windows differ, so a word or two may differ. Losses at window ends were longer: parts of sentences."""
    path, reference = joined
    texts = [transcribe(path, strategy=name).text for name in ("chunked", "sequential")]
    chunked, sequential = (edits.edits(reference, text, "en") for text in texts)
    assert chunked.rate is not None and sequential.rate is not None
    assert chunked.rate <= min(sequential.rate + 0.005, 0.06), f"{chunked} and, sequential, {sequential}"
    assert _longest_loss(reference, texts[0]) <= 3


def test_a_word_after_a_chord_and_a_long_silence_has_its_true_time(transcribe: Transcribe, cases: Path) -> None:
    transcript = transcribe(cases / "chord_jfk.flac", word_timestamps=True)
    assert plain(transcript.text) == SENTENCE
    assert 20.7 <= _words(transcript)[0].start <= 21.6 and 20.7 <= transcript.segments[0].start <= 21.6, "speech begins at 21.0 s"
    assert all(word.end - word.start < 2 for word in _words(transcript))


@pytest.mark.parametrize("words", [False, True])
def test_a_segment_after_a_ring_begins_with_the_speech(transcribe: Transcribe, cases: Path, words: bool) -> None:
    transcript = transcribe(cases / "ring_5s_speech.wav", word_timestamps=words)
    assert plain(transcript.text).startswith("and so my fellow americans")
    assert 5.9 <= transcript.segments[0].start <= 6.8, "speech begins at 6.2 s"


def test_a_sentence_repeated_eight_times_is_kept_and_the_transcript_is_reproducible(transcribe: Transcribe, cases: Path) -> None:
    transcript = transcribe(cases / "rep8.mp3")
    text = plain(transcript.text)
    assert text.count("your country can do for you") == 8 and text.count("can do for your country") == 8, text
    again = transcribe(cases / "rep8.mp3", number=2)
    assert again.text == transcript.text


@pytest.mark.parametrize("name", ["gap.webm", "gap.m4a"])
def test_missing_packets_are_silence_on_the_recordings_clock(transcribe: Transcribe, cases: Path, name: str) -> None:
    """Nine seconds of packets are missing, as after a mute. The sentence is spoken at 0 s and at 20 s."""
    transcript = transcribe(cases / name, word_timestamps=True)
    assert transcript.duration == pytest.approx(31.0, abs=0.1) and not _truncated(transcript)
    assert plain(transcript.text) == f"{SENTENCE} {SENTENCE}"
    first, second = (_start(transcript, "ask what you can do", occurrence) for occurrence in (0, 1))
    assert second - first == pytest.approx(20.0, abs=0.3)
    assert not any(11.5 < word.start < 19.5 for word in _words(transcript))


def test_sound_that_starts_late_keeps_its_time(transcribe: Transcribe, cases: Path) -> None:
    """A video whose sound begins at 5 s."""
    transcript, clean = (transcribe(cases / name, word_timestamps=True) for name in ("off5.mkv", "../audio/jfk.flac"))
    assert plain(transcript.text) == SENTENCE and not _truncated(transcript)
    assert transcript.duration == pytest.approx(16.0, abs=0.1)
    for words in ("ask not what", "ask what you can"):
        assert _start(transcript, words) - _start(clean, words) == pytest.approx(5.0, abs=0.3)


def test_a_damaged_middle_does_not_shift_the_clock(transcribe: Transcribe, cases: Path) -> None:
    """The sentence is spoken at 0 s and at 20 s; the audio between cannot be decoded."""
    transcript = transcribe(cases / "dmg.m4a", word_timestamps=True)
    assert transcript.duration == pytest.approx(31.0, abs=0.1) and transcript.warnings
    last = _words(transcript)[-1]
    assert plain(last.word) == "country" and last.end == pytest.approx(30.6, abs=0.6)


def test_float_samples_in_the_range_of_integers_are_scaled_with_a_warning(transcribe: Transcribe, cases: Path) -> None:
    transcript = transcribe(cases / "f32_int16range.wav")
    assert (transcript.language, plain(transcript.text)) == ("en", SENTENCE) and transcript.warnings


def test_channels_that_cancel_are_not_mixed(transcribe: Transcribe, cases: Path) -> None:
    assert plain(transcribe(cases / "anti.flac").text) == SENTENCE


def test_a_header_without_a_length_is_not_a_truncated_file(transcribe: Transcribe, cases: Path) -> None:
    transcript = transcribe(cases / "w_7fff.wav")
    assert not _truncated(transcript) and transcript.duration == pytest.approx(2.0, abs=0.05)
    assert plain(transcript.text).startswith("and so my fellow")
