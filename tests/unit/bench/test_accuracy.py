"""The accuracy bench: its arithmetic, its sets, rows in processes of their own, results that are kept as they come, and its tables."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from bench import (
    accuracy,
    accuracy_table,
    datasets,
    edits,
    espeak,
    goals,
    listening,
    peers,
    plot,
    results,
    rows,
    scores,
    segment_times,
    sounds,
)
from bench.datasets import Recording, Set, Utterance
from bench.edits import Edits
from bench.espeak import TrueWord
from bench.peers import Heard, Row, Setup
from bench.rows import Job
from bench.work import ROOT
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import sha256
from whispercore.errors import ConfigurationError, EngineError
from whispercore.types import SAMPLE_RATE, Word

# Scores


def test_edits_are_counted_after_whispers_normalizer() -> None:
    assert edits.edits("MISTER HARALD'S CODE IS ONE TWO", "Mr. Harold's code is 12!", "en") == Edits(6, 0, 0, 1)
    assert edits.edits("eins zwei drei vier fünf", "Eins, drei vier fünf sechs", "de") == Edits(5, 1, 1, 0)


def test_languages_without_spaces_count_characters() -> None:
    assert edits.edits("今日は晴れです。", "今日は雨です", "ja") == Edits(7, 0, 1, 1)
    assert edits.edits("今日は晴れです。", "今日は雨です", "fr").said == 1
    assert edits.words_of("สวัสดี", "th") != ["สวัสดี"]


def test_edits_add_up_and_a_rate_of_nothing_is_none() -> None:
    both = edits.edits("red green", "red", "en") + edits.edits("", "thank you", "en")
    assert both == Edits(2, 2, 1, 0) and both.errors == 3 and both.rate == 1.5
    assert Edits(insertions=2).rate is None and Edits(insertions=2).figures["wer"] is None


def test_a_difference_shows_what_was_lost_added_and_misheard() -> None:
    said = "the quick brown fox jumps over the lazy dog and then it sleeps all day long"
    heard = "a quick brown fox jumps over the lazy dog and then it all day long too"
    shown = edits.difference(said, heard, "en")
    assert shown == "[-the-]{+a+} quick brown fox jumps … dog and then it [-sleeps-] all day long {+too+}"
    assert edits.difference("One.", "one", "en") == "one"


def _one(text: str, language: str = "en", **fields: Any) -> Recording:
    return Recording(Path(f"{text[:5] or 'quiet'}.wav"), text, language=language, **fields)


def test_a_set_has_its_words_and_languages_each_by_itself() -> None:
    heard_set = Set("any", [_one("red green"), _one("ein zwei drei vier", "de"), _one("")])
    seen = scores.of(heard_set, [Heard("red green", language="en"), Heard("ein zwei", language="nl"), Heard("You", language="en")])
    assert (seen["words"], seen["deletions"], seen["insertions"]) == (6, 2, 1) and seen["wer"] == 0.5
    assert seen["languages"]["de"]["wer"] == 0.5 and seen["mean_rate"] == 0.5, "the word in silence is one of two in English"
    assert seen["language_right"] == 1 and seen["language_wrong"] == ["ein z.wav: nl"], "silence has no language"
    assert seen["made_up"] == ["quiet.wav: You"]
    told = scores.of(replace(heard_set, told=True), [Heard("")] * 3)
    assert "language_right" not in told and "made_up" not in told and "word_times" not in told and "segment_times" not in told


def test_word_times_compare_only_words_heard_right_whose_time_is_known() -> None:
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


def test_a_word_that_is_two_keeps_its_start_and_its_end() -> None:
    said = [TrueWord("seven", 1.0, 1.5), TrueWord("forty", 1.5, 2.0)]
    seen = scores.word_times([said], [[Word(" seven-forty.", 1.1, 2.3, 1.0)]])
    assert (seen["start"]["compared"], seen["start"]["mean"]) == (1, pytest.approx(0.1))
    assert (seen["end"]["compared"], seen["end"]["mean"]) == (1, pytest.approx(0.3))


def test_no_word_times_are_no_figures() -> None:
    assert scores.word_times([[TrueWord("one", 0.0, 1.0)]], [[]]) == {"words": 1, "start": {"compared": 0}, "end": {"compared": 0}}


# Segment times


@pytest.fixture
def talk(tmp_path: Path) -> Recording:
    """Three utterances: at 1 s, voice at 1.3; at 3 s, 0.4 s after the first; at 20 s, after a long pause. Noise where there is a voice."""
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


def test_segments_that_begin_amid_an_utterance_have_no_truth(talk: Recording) -> None:
    heard = _segments((1.0, 1.5, "red"), (1.9, 2.6, "green blue"), (3.0, 4.0, "cut dog mouse"), (20.0, 21.0, "north east south"))
    seen = segment_times.of([(talk, heard)])
    assert seen["compared"] == 3 and seen["within"] == 1, "a first word that is misheard is still the first"


def test_nothing_heard_is_far_off(talk: Recording) -> None:
    assert segment_times.of([(talk, [])])["within"] == 0
    assert segment_times.of([]) == {"utterances": 0, "compared": 0, "shown_in_silence": 0.0}


def test_a_voice_begins_where_it_is_loud_for_a_while() -> None:
    samples = np.full(SAMPLE_RATE, 1e-4, np.float32)
    samples[: SAMPLE_RATE // 100] = 0.5  # a click
    samples[SAMPLE_RATE // 2 :] = 0.1
    assert segment_times.voice_onset(samples) == pytest.approx(0.5, abs=0.02)
    assert segment_times.voice_onset(samples[:100]) == 0


# Recordings


def _sound(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(int(seconds * SAMPLE_RATE), np.float32), SAMPLE_RATE)
    return path


def test_a_folder_holds_audio_with_text_beside_it(tmp_path: Path) -> None:
    for name in ("b.flac", "deep/a.wav", "without-text.flac"):
        _sound(tmp_path / name, 1.5)
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "deep" / "a.txt").write_text("\ufeffone", encoding="utf-8")
    found = datasets.folder(tmp_path)
    assert [(one.path.name, one.text, one.seconds) for one in found] == [("b.flac", "two", 1.5), ("a.wav", "one", 1.5)]


def test_librispeechs_layout(tmp_path: Path) -> None:
    chapter = tmp_path / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    (chapter / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN A CONFUSED COMPLAINT\n61-70968-0001 GIVE NOT\n")
    found = datasets.librispeech(tmp_path)
    assert found[0] == Recording(chapter / "61-70968-0000.flac", "HE BEGAN A CONFUSED COMPLAINT")
    assert [one.path.name for one in found] == ["61-70968-0000.flac", "61-70968-0001.flac"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.jsonl", '{"audio": "a.flac", "text": "say \\"one\\""}\n\n{"audio_filepath": "deep/b.flac", "text": "two"}\n'),
        ("m.json", '[{"file": "a.flac", "text": "say \\"one\\""}, {"file": "deep/b.flac", "text": "two"}]'),
        ("m.csv", 'audio,speaker,text\na.flac,7,"say ""one"""\ndeep/b.flac,8,two\n'),
        ("m.tsv", 'client_id\tpath\tsentence\n1\ta.flac\tsay "one"\n2\tdeep/b.flac\ttwo\n'),
    ],
)
def test_manifests_name_audio_and_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    expected = [Recording(tmp_path / "a.flac", 'say "one"'), Recording(tmp_path / "deep" / "b.flac", "two")]
    assert datasets.manifest(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.jsonl", '{"audio": "a.flac"}', "entry 1: it needs an audio file"),
        ("m.jsonl", "{", "is not a manifest"),
        ("m.json", "[]", "lists no recording"),
        ("m.json", "[1]", "entry 1"),
        ("m.xml", "<a/>", "must end in .json, .jsonl, .csv or .tsv"),
        ("m.csv", 'audio,text\na.flac,"open', "is not a manifest"),
        ("m.tsv", "audio\ttext\na.flac\n", "entry 1"),
    ],
)
def test_a_bad_manifest_says_where(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=reason):
        datasets.manifest(tmp_path / name)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        datasets.manifest(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        datasets.librispeech(tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"holds no \*\.trans\.txt"):
        datasets.librispeech(tmp_path)
    with pytest.raises(ConfigurationError, match="holds no audio file with its words"):
        datasets.folder(tmp_path)


def test_a_container_that_libsndfile_does_not_know_has_a_length_too(tmp_path: Path) -> None:
    import av

    path = tmp_path / "speech.m4a"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * SAMPLE_RATE), np.float32), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert Recording(path, "").seconds == pytest.approx(2.0, abs=0.2)


def test_quiet_is_the_model_cards_own_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "SCRATCH", tmp_path)
    found = datasets.quiet()
    expected = espeak.nano("heldout").quiet(datasets.QUIET_SEED)
    assert len(found) == len(expected) and {one.text for one in found} == {""}
    for one, sound in zip(found[::9], expected[::9], strict=True):
        assert np.allclose(read_samples(one.path), sound.samples, atol=1e-6)
    assert datasets.quiet() == found


# The truth of word times


ECHO = 0.15
"""Seconds that the voice en-us+f4 is heard after it has spoken."""


def test_committed_word_times_lie_on_the_sound() -> None:
    """In the pauses there is only the noise that was put there; in every word there is more."""
    recordings = datasets.manifest(datasets.WORDS)
    timed = [word for one in recordings for word in one.words]
    assert len(timed) > 80 and sum(word.start is None for word in timed) < 10
    for one in recordings:
        samples = read_samples(one.path)
        assert [word.word for word in one.words] == one.text.split()
        quiet = np.ones(len(samples), bool)
        known = [word for word in one.words if word.start is not None and word.end is not None]
        for word in known:
            inside = _loudness(samples[int(word.start * SAMPLE_RATE) : int(word.end * SAMPLE_RATE)])
            assert inside > 50 * espeak.NOISE, f"{one.path.name}: nothing is heard in '{word.word}' at {word.start}"
        for start, end in _sentences(one.words):
            quiet[int(start * SAMPLE_RATE) : int((end + ECHO) * SAMPLE_RATE)] = False
        assert quiet.sum() > 0.5 * SAMPLE_RATE
        assert _loudness(samples[quiet]) < 10 * espeak.NOISE, one.path.name


def _loudness(samples: Any) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def _sentences(words: tuple[TrueWord, ...]) -> Iterator[tuple[float, float]]:
    start = math.inf
    for word in words:
        start = min(start, math.inf if word.start is None else word.start)
        if word.word[-1] in ".?":
            assert word.end is not None
            yield start, word.end
            start = math.inf


def test_words_end_where_the_next_begins_or_the_pause_before_it() -> None:
    rate = 1000
    words = espeak._words("Turn on the light.", {0: 0, 5: 300, 12: 700}, [250, 1100, 1500], rate)
    assert words == (
        TrueWord("Turn", 0.0, 0.25),
        TrueWord("on", 0.3, None),
        TrueWord("the", None, 0.7),
        TrueWord("light.", 0.7, 1.1),
    )


def test_the_committed_words_can_be_made_again(tmp_path: Path) -> None:
    try:
        espeak.speak("One.", "en-us")
    except ConfigurationError as error:
        pytest.skip(str(error))
    with pytest.raises(ConfigurationError, match="has no voice 'xx\\+m1'"):
        espeak.speak("One.", "xx+m1")
    espeak.write(tmp_path, 11)
    made, kept = (json.loads(path.read_text()) for path in (tmp_path / "manifest.json", datasets.WORDS))
    assert [entry["text"] for entry in made] == [entry["text"] for entry in kept]
    for one, other in zip(made, kept, strict=True):  # another release of espeak-ng may speak a little faster
        assert one["words"][0]["start"] == other["words"][0]["start"]


@pytest.fixture
def speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as WHISPER_SPEECH_DATA names it, of silence."""
    lines = [
        {"audio": "a.wav", "text": "one two", "language": "en", "set": "librispeech-test-clean", "seconds": 1.0},
        {"audio": "b.wav", "text": "eins", "language": "de", "set": "common-voice"},
        {"audio": "c.wav", "text": "one", "language": "en", "set": "common-voice"},
        {"audio": "d.wav", "text": "three", "language": "en", "set": "derived-noisy", "snr_db": 10},
        {"audio": "e.wav", "text": "four", "language": "en", "set": "derived-noisy"},
        {
            "audio": "f.wav",
            "text": "five",
            "language": "nl",
            "set": "nathalie",
            "words": [{"text": "five", "start": 0.1, "end": 0.5}],
        },
        {
            "audio": "g.wav",
            "text": "six",
            "language": "en",
            "set": "librispeech-chapters",
            "segments": [{"start": 0, "end": 1, "text": "six"}],
        },
    ]
    for line in lines:
        _sound(tmp_path / "speech" / str(line["audio"]))
    (tmp_path / "speech" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("WHISPER_SPEECH_DATA", str(tmp_path / "speech"))
    return tmp_path / "speech"


def test_the_sets_of_real_speech(speech: Path) -> None:
    def names(name: str) -> list[str]:
        return [one.path.stem for one in datasets.named(name).recordings]

    assert names("test-clean") == ["a"] and names("languages") == names("languages-told") == ["b", "c"]
    assert names("noisy-10dB") == ["d"] and names("noisy-0dB") == ["e"], "0 dB is left out of the manifest"
    told, timed = datasets.named("languages-told"), datasets.named("word-times")
    assert told.told and not datasets.named("languages").told and not told.timed
    assert timed.timed and timed.recordings[0].words == (TrueWord("five", 0.1, 0.5),) and timed.recordings[0].language == "nl"
    assert datasets.named("chapters").recordings[0].utterances == (Utterance(0, 1, "six"),)
    with pytest.raises(ConfigurationError, match="lists no recording of the set dictation"):
        datasets.named("dictation")
    with pytest.raises(ConfigurationError, match="unknown set 'test-dirty'; known: test-clean"):
        datasets.named("test-dirty")


def test_without_speech_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_SPEECH_DATA", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"there is no .*manifest\.jsonl; set WHISPER_SPEECH_DATA"):
        datasets.named("test-clean")


def test_every_layout_is_recognised(tmp_path: Path) -> None:
    _sound(tmp_path / "folder" / "a.wav").with_suffix(".txt").write_text("one")
    (tmp_path / "m.jsonl").write_text('{"audio": "folder/a.wav", "text": "one"}\n')
    (tmp_path / "libri").mkdir()
    (tmp_path / "libri" / "1.trans.txt").write_text("1-0 ONE\n")
    found = [datasets.of(tmp_path / name)[0] for name in ("folder", "m.jsonl", "libri")]
    assert [one.path.name for one in found] == ["a.wav", "a.wav", "1-0.flac"] and {one.text.lower() for one in found} == {"one"}


# Sounds without speech


def test_sounds_are_always_the_same_last_as_long_as_asked_and_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "SCRATCH", tmp_path)
    paths = sounds.made(0.04)  # four seconds each
    assert len(paths) == sounds.ROUNDS * len(sounds.KINDS) == len(set(paths))
    assert sum(soundfile.info(path).duration for path in paths) == pytest.approx(144)
    written = [path.stat().st_mtime_ns for path in paths]
    assert sounds.made(0.04) == paths and [path.stat().st_mtime_ns for path in paths] == written
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", list(sounds.KINDS))
def test_a_sound_is_loud_enough_and_differs_with_its_number(name: str) -> None:
    first, again, other = (sounds.sound(name, 2, number) for number in (0, 0, 1))
    assert np.array_equal(first, again) and first.dtype == np.float32 and first.shape == (2 * SAMPLE_RATE,)
    if name == "silence":
        assert not first.any()
    else:
        assert 0.04 < np.abs(first).max() <= 0.5 and not np.array_equal(first, other)


def test_noise_falls_with_its_colour_and_hum_stands_at_the_mains() -> None:
    def power(name: str) -> Any:
        return np.abs(np.fft.rfft(sounds.sound(name, 10, 0))) ** 2  # a tenth of a hertz a bin

    white, pink, brown = (power(name)[10_000:11_000].mean() / power(name)[2_000:2_200].mean() for name in list(sounds.KINDS)[:3])
    assert white == pytest.approx(1, rel=0.3) and pink == pytest.approx(0.2, rel=0.3) and brown == pytest.approx(0.04, rel=0.4)
    for hertz in (50, 60):
        hum = power(f"hum-{hertz}Hz")
        assert hum[10 * hertz] > 100 * hum[10 * hertz + 50 : 10 * hertz + 90].max()


# Rows


def test_rows_are_named_by_runner_mode_precision_and_how_many_at_once() -> None:
    assert Row.parse("ct2") == Row("ct2", "chunked", "auto", 1)
    assert Row.parse("faster-whisper:batched:int8") == Row("faster-whisper", "batched", "int8")
    assert str(Row.parse("ct2:sequential:float32@8")) == "ct2:sequential:float32@8"
    assert [str(Row.parse(text)) for text in accuracy.ROWS] == list(accuracy.ROWS)


@pytest.mark.parametrize("text", ["whisperx", "ct2:batched", "openai-whisper:chunked", "ct2:chunked:int8:more", "ct2@0", "ct2@many"])
def test_an_unknown_row_says_what_is_known(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must be one of|knows "):
        Row.parse(text)


def test_the_default_rows_have_every_engine_and_peer_and_share_a_core_of_sets() -> None:
    runners = {Row.parse(text).runner for text in accuracy.ROWS}
    assert runners == {"openai", "torch", "ct2", "hf", "onnx", "jax", "sherpa", "openai-whisper", "faster-whisper"}
    assert all(set(accuracy_table.CORE) <= set(names) <= set(datasets.SETS) for names in accuracy.ROWS.values())
    needed = {goals.OURS, goals.OURS_EXACT, goals.REFERENCE, goals.BATCHED, goals.PLAIN, *goals.STUDY_ROWS, *accuracy_table.README_ROWS}
    assert needed | {*goals.INT8, *goals.INT8.values()} <= set(accuracy.ROWS)
    assert {"languages", "languages-told", "word-times", "sounds"} <= set(accuracy.ROWS[goals.OURS])
    assert set(goals.WORDS) <= set(accuracy.ROWS[goals.OURS]) & set(accuracy.ROWS[goals.REFERENCE]) & set(accuracy.ROWS[goals.BATCHED])


def test_peers_take_one_recording_at_a_time() -> None:
    with pytest.raises(ConfigurationError, match="one recording at a time"), peers.open_runner(Row.parse("openai-whisper@2"), Setup()):
        pass


def test_processor_time_counts_children_that_run_and_that_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = listening.processor_seconds()
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        assert listening.processor_seconds() - before > 0.25, "it still runs"
        child.communicate(b"\n")
    assert listening.processor_seconds() - before > 0.25, "it has ended"


def test_what_fails_was_not_heard_and_the_language_is_told_when_the_set_says_so() -> None:
    asked: list[tuple[str, bool, str | None]] = []

    def hear(path: Path, words: bool, language: str | None) -> Heard:
        asked.append((path.name, words, language))
        if path.stem == "bad":
            raise EngineError("it broke\nsecond line")
        return Heard("one")

    some = [Recording(Path("good.wav"), "one", language="nl"), Recording(Path("bad.wav"), "two")]
    ticks: list[int] = []
    heard = listening.listen(hear, Set("any", some), together=1, tick=lambda: ticks.append(1))
    assert [one.text for one in heard.heard] == ["one", ""] and heard.failures == ["bad.wav: it broke"] and len(ticks) == 2
    listening.listen(hear, Set("any", some[:1], told=True, timed=True), together=1, tick=lambda: None)
    assert asked == [("good.wav", False, None), ("bad.wav", False, None), ("good.wav", True, "nl")]


def test_an_english_model_hears_english_only(speech: Path) -> None:
    job = Job(row="ct2", setup=Setup(model="tiny.en"), sets=("languages",))
    assert [one.path.stem for one in job.recordings("languages").recordings] == ["c"]
    assert len(replace(job, setup=Setup(model="base")).recordings("languages").recordings) == 2
    assert len(replace(job, setup=Setup(model="base"), limit=1).recordings("languages").recordings) == 1


def test_a_job_travels_to_its_process_as_json() -> None:
    job = Job(row="ct2:chunked:int8", setup=Setup(model="base", threads=2), sets=("test-clean", "sounds"), hours=0.1)
    assert Job.of(json.loads(json.dumps(asdict(job)))) == job


# Runs


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run keeps its results; what it heard goes there too."""
    monkeypatch.setattr(accuracy, "SCRATCH", tmp_path / "scratch")
    return tmp_path / "kept"


def _run(kept: Path, *given: str) -> int:
    return accuracy.main(["--model", "nano", "--limit", "2", "--results", str(kept), *given])


def _kept(kept: Path) -> list[dict[str, Any]]:
    content = results.load(kept, "accuracy")
    assert content is not None
    found: list[dict[str, Any]] = content["result"]["rows"]
    return found


def test_a_row_runs_apart_keeps_each_set_and_goes_on_where_it_stopped(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(kept, "--rows", "ct2:chunked:int8", "--sets", "heldout", "espeak", "--show-errors") == 0
    (row,) = _kept(kept)
    assert (row["row"], row["model"], row["limit"], set(row["sets"])) == ("ct2:chunked:int8", "nano", 2, {"heldout", "espeak"})
    heldout, espeaks = row["sets"]["heldout"], row["sets"]["espeak"]
    assert heldout["words"] > 5 and heldout["wer"] < 0.5 and heldout["failed"] == 0
    assert heldout["seconds"] > 0 and heldout["cpu_seconds"] > 0 and 100 < heldout["peak_rss_mb"] < 8000
    assert espeaks["word_times"]["start"]["compared"] > 5
    assert heldout["measured"]["commit"] and heldout["measured"]["date"]
    told = capsys.readouterr().err
    assert "nano ct2:chunked:int8 heldout: WER" in told and "word times: median" in told
    heard = [json.loads(line) for line in (kept.parent / "scratch" / "accuracy-heard.jsonl").read_text().splitlines()]
    assert [line["set"] for line in heard] == ["heldout"] * 2 + ["espeak"] * 2 and heard[0]["heard"]

    monkeypatch.setattr(rows, "apart", _never)
    assert _run(kept, "--rows", "ct2:chunked:int8", "--sets", "heldout", "--resume") == 0, "it has been heard"


def _never(job: Job, cores: Sequence[int], stopped: threading.Event) -> Iterator[dict[str, Any]]:
    raise AssertionError("nothing is missing")


def test_rows_that_cannot_be_take_no_others_with_them(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(job: Job, cores: Sequence[int], stopped: threading.Event) -> Iterator[dict[str, Any]]:
        yield {"tick": 1}
        yield {"set": "quiet", "figures": FIGURES, "heard": [{"audio": "a", "text": "", "heard": "you", "language": "en"}]}
        if job.row.startswith("openai"):
            yield {"failure": "its process ended with killed by signal 9"}

    monkeypatch.setattr(rows, "apart", apart)
    given = ["--rows", "openai:chunked:float32", "sherpa:chunked:nonsense", "ct2:chunked:int8=quiet", "--sets", "quiet", "heldout"]
    assert _run(kept, *given, "--jobs", "2") == 1
    found = {row["row"]: row for row in _kept(kept)}
    assert list(found["openai:chunked:float32"]["sets"]) == ["quiet"], "what it heard before is kept"
    assert "signal 9" in found["openai:chunked:float32"]["failure"]
    assert "nonsense" in found["sherpa:chunked:nonsense"]["failure"]
    assert "failure" not in found["ct2:chunked:int8"]


def test_a_process_that_dies_says_how() -> None:
    job = Job(row="ct2:chunked:int8", setup=Setup(model="nano"), sets=("no-such-set",))
    told = list(rows.apart(job, [0], threading.Event()))
    assert told[-1]["failure"].startswith("unknown set 'no-such-set'")
    broken = replace(job, row="nobody")
    with pytest.raises(ConfigurationError):
        list(rows.apart(broken, [0], threading.Event()))


def test_a_stopped_run_leaves_no_process_behind() -> None:
    """Neither when it is no longer listened to nor when it is told to stop."""
    job, stopped = Job(row="ct2:chunked:int8", setup=Setup(model="nano"), sets=("heldout",)), threading.Event()
    for end in (lambda running: running.close(), lambda running: stopped.set() or list(running)):
        others = set(psutil.Process().children())
        running = rows.apart(job, [0], stopped)
        assert "tick" in next(running)
        (child,) = set(psutil.Process().children()) - others
        end(running)
        assert not child.is_running()


def test_a_run_that_is_stopped_keeps_what_it_has(kept: Path) -> None:
    given = ["--model", "nano", "--results", str(kept), "--rows", "ct2:chunked:int8", "--sets", "heldout", "quiet", "espeak"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-m", "bench.accuracy", *given], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as run:
        while not (kept / "accuracy.json").exists():
            assert run.poll() is None
            time.sleep(0.1)
        children = psutil.Process(run.pid).children(recursive=True)
        run.terminate()
        assert run.wait(60) == 1
    assert not any(child.is_running() for child in children)
    assert "heldout" in _kept(kept)[0]["sets"] and "failure" not in _kept(kept)[0]


def test_two_runs_beside_each_other_keep_both_rows(kept: Path) -> None:
    one, other = accuracy.Results(kept), accuracy.Results(kept)
    told = {"set": "quiet", "figures": {}}
    for results_file, row in ((one, "ct2:chunked:int8"), (other, "ct2:sequential:int8")):
        results_file.add(Job(row=row, setup=Setup(model="nano"), sets=("quiet",)), told, {})
    assert [row["row"] for row in _kept(kept)] == ["ct2:chunked:int8", "ct2:sequential:int8"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rows", "nobody"], "unknown row"),
        (["--rows", "ct2=nothing"], "unknown set 'nothing'"),
        (["--sets", "nothing"], "unknown set 'nothing'"),
        (["--root", "nowhere"], "nowhere is not a folder"),
        (["--model", "no-such-model"], "no checkpoint at"),
    ],
)
def test_what_is_not_there_ends_it_before_it_begins(
    arguments: list[str], reason: str, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main(["--model", "nano", "--results", str(kept), *arguments]) == 2
    assert reason in " ".join(capsys.readouterr().err.split()) and not kept.exists()


def test_a_root_is_the_set_whole_alone_or_with_others(tmp_path: Path) -> None:
    _sound(tmp_path / "a.wav").with_suffix(".txt").write_text("one")
    parse = accuracy._parser().parse_args
    alone = accuracy.chosen(parse(["--model", "nano", "--root", str(tmp_path), "--rows", "ct2"]))
    both = accuracy.chosen(parse(["--model", "nano", "--root", str(tmp_path), "--rows", "ct2", "--sets", "heldout"]))
    assert alone[0].sets == ("whole",) and both[0].sets == ("heldout", "whole")
    assert [one.text for one in alone[0].recordings("whole").recordings] == ["one"]


def test_rows_beside_each_other_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy.os, "sched_getaffinity", lambda _: {3, 5, 7, 9})
    assert accuracy._cores(2, 2) == [(3, 5), (7, 9)] and accuracy._cores(3, 2)[2] == (3, 5)


def test_it_is_a_program_too() -> None:
    """From another folder, with nothing on the path."""
    run = [sys.executable, "-E", str(ROOT / "bench" / "accuracy.py"), "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, cwd="/", check=True).stdout
    assert "--sets" in shown and "faster-whisper:batched:int8  test-clean" in shown


RUNNERS = ("openai-whisper", "faster-whisper:sequential:float32", "faster-whisper:batched:float32", "openai", "ct2:sequential", "torch")


@pytest.mark.parametrize("text", RUNNERS)
def test_every_runner_hears_the_bundled_model_with_and_without_word_times(text: str) -> None:
    """The sample that the model hears without a mistake."""
    with peers.open_runner(Row.parse(text), Setup(model="nano", device="cpu")) as hear:
        heard, timed = (hear(ROOT / "samples" / "timer.flac", words, "en") for words in (False, True))
        detected = hear(ROOT / "samples" / "timer.flac", False, None)
    assert scores.plain(heard.text) == scores.plain(timed.text) == scores.plain(detected.text) == "set a timer for five minutes"
    assert heard.language == detected.language == "en"
    assert [scores.plain(word.word) for word in timed.words] == scores.plain(heard.text).split() and not heard.words
    times = [time for word in timed.words for time in (word.start, word.end)]
    assert times == sorted(times) and 0 <= times[0] < times[-1] < 4
    assert scores.plain("".join(one.text for one in heard.segments)) == scores.plain(heard.text) and heard.segments[0].end <= 4


# The tables and the plot


FIGURES: dict[str, Any] = {
    "recordings": 4,
    "words": 100,
    "wer": 0.05,
    "insertions": 1,
    "deletions": 2,
    "substitutions": 2,
    "audio_seconds": 60.0,
    "seconds": 10.0,
    "cpu_seconds": 9.0,
    "rtfx": 6.0,
    "failed": 0,
    "failures": [],
    "peak_rss_mb": 900.0,
    "load_seconds": 2.0,
    "measured": {"date": "2026-01-01", "commit": "0123456789", "dirty": False, "load_average": [0.0]},
}
LANGUAGES = {
    name: {"words": 10, "wer": wer, "insertions": 0, "deletions": 1, "substitutions": 0} for name, wer in (("de", 0.1), ("zh", 0.3))
}


def _row(text: str, wer: float = 0.05, **other: Any) -> dict[str, Any]:
    """A row that has heard everything with this error rate."""
    row = Row.parse(text)
    known = FIGURES | {"wer": wer}
    times = {"utterances": 10, "compared": 8, "shown_in_silence": 1.0, "median": 0.05, "worst": 1.0, "within": 0.96, "within_cut": 0.5}
    start = {"compared": 9, "mean": 0.06, "median": 0.05, "p90": 0.1, "worst": 0.2, "within": {}}
    sets = dict.fromkeys((*goals.WORDS, "mix", "whole"), known)
    sets |= dict.fromkeys(("chapters", "silence"), known | {"segment_times": times})
    sets["languages"] = known | {"languages": LANGUAGES, "mean_rate": wer, "language_right": 4, "language_wrong": []}
    sets["languages-told"] = known | {"languages": LANGUAGES, "mean_rate": wer}
    sets["word-times"] = known | {"word_times": {"words": 10, "start": start, "end": start}}
    sets["sounds"] = known | {"words": 0, "wer": None, "insertions": 0}
    named = {"row": str(row), "runner": row.runner, "mode": row.mode, "compute_type": row.compute_type, "together": row.together}
    return named | {"model": "base", "threads": 1, "beam_size": None, "limit": None, "sets": sets} | other


def _save(folder: Path, *found: dict[str, Any]) -> None:
    results.save(folder, "accuracy", results.provenance(), {}, {"rows": list(found)})


def _verdicts(folder: Path) -> dict[str, str]:
    lines = [line for line in accuracy_table.full(folder).splitlines() if line.startswith("- ") and ("met" in line or "missed" in line)]
    return {line.removeprefix("- ").partition(":")[0]: "missed" if "**missed**" in line else "met" for line in lines}


def test_the_tables_say_which_goals_are_met(tmp_path: Path) -> None:
    ours = _row(goals.OURS, 0.05)
    _save(tmp_path, ours, _row(goals.REFERENCE, 0.0492), _row(goals.BATCHED, 0.05), _row(goals.OURS_EXACT, 0.0485))
    assert set(_verdicts(tmp_path).values()) == {"met"} and len(_verdicts(tmp_path)) == 8
    ours["sets"]["sounds"]["insertions"] = 1
    ours["sets"]["whole"] = FIGURES | {"wer": 0.053}
    ours["sets"]["languages"]["language_right"] = 3
    ours["sets"]["chapters"]["segment_times"]["within"] = 0.9
    ours["sets"]["word-times"]["word_times"]["start"]["median"] = 0.09
    _save(tmp_path, ours, _row(goals.REFERENCE, 0.0488), _row(goals.BATCHED, 0.0498), _row(goals.OURS_EXACT, 0.0478))
    assert set(_verdicts(tmp_path).values()) == {"missed"}
    page = accuracy_table.full(tmp_path)
    assert "test-clean 5.0% against 4.9%" in page and "0 of 12 sets" in page


def test_the_page_has_every_row_and_the_readme_the_chosen_ones(tmp_path: Path) -> None:
    shown = [_row(text) for text in (goals.REFERENCE, goals.BATCHED, goals.OURS, "jax:chunked:float32")]
    failed = _row("sherpa:chunked:int8", failure="no wheel | here") | {"sets": {}}
    cut = _row("hf:chunked:float32", limit=2)
    _save(tmp_path, *shown, failed, cut, _row(goals.OURS, model="tiny.en"))
    page, readme = accuracy_table.full(tmp_path), accuracy_table.readme(tmp_path)
    assert "### base" in page and "### tiny.en" in page and "`0123456`" in page
    assert "| **this server**, jax, chunked, float32 | 5.0% |" in page and "- sherpa:chunked:int8: no wheel | here" in page
    assert "hf, chunked" not in page, "two recordings of each set are no measurement"
    assert [line.split(" | ")[0] for line in readme.splitlines() if "chunked" in line or "whisper, " in line][-1].endswith(
        "ct2, chunked, int8"
    )
    assert "jax" not in readme and "4 of 4" in readme and "45 s" in readme, "five sets of nine processor seconds"


def test_the_study_is_compared_with_pytorch(tmp_path: Path) -> None:
    slow, quick = _row(goals.STUDY_ROWS[0]), _row("onnx:chunked:int8")
    quick["sets"]["test-clean"] = FIGURES | {"cpu_seconds": 4.5}
    _save(tmp_path, slow, quick, _row(goals.PLAIN, 0.06), _row(goals.REFERENCE, 0.05))
    page = accuracy_table.full(tmp_path)
    assert "| **this server**, onnx, chunked, int8 | 5.0% | 1.00 | 0.50 | 900 MB |" in page
    assert "Here it has 6.0% beside openai-whisper's 5.0%: 1.2 times." in page


def test_the_pages_show_the_committed_results() -> None:
    page = accuracy_table.MEASURED.read_text(encoding="utf-8")
    assert accuracy_table.shown(page) == accuracy_table.full() != "", "run: python -m bench table"
    readme = accuracy_table.README.read_text(encoding="utf-8")
    if accuracy_table.BEGIN in readme:
        assert accuracy_table.shown(readme) == accuracy_table.readme(), "run: python -m bench table"


def test_the_bundled_models_committed_figures_are_of_the_bundled_model() -> None:
    content = results.load(results.RESULTS, "accuracy")
    assert content is not None
    of_nano = {row["weights"] for row in content["result"]["rows"] if row["model"] == "nano"}
    assert of_nano == {sha256(ROOT / "whisper-models" / "nano.pt")}, "another model: python -m bench accuracy --model nano"


def test_update_changes_the_block_and_nothing_else(tmp_path: Path) -> None:
    _save(tmp_path, _row(goals.OURS), _row(goals.REFERENCE))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{accuracy_table.BEGIN}old\n{accuracy_table.END}\nafter\n", encoding="utf-8")
    assert accuracy_table.update_readme(page, tmp_path)
    expected = accuracy_table.readme(tmp_path)
    assert page.read_text(encoding="utf-8") == f"before\n{accuracy_table.BEGIN}{expected}{accuracy_table.END}\nafter\n" and expected
    accuracy_table.update(page, tmp_path)
    assert accuracy_table.shown(page.read_text(encoding="utf-8")) == accuracy_table.full(tmp_path)
    page.write_text("no markers", encoding="utf-8")
    assert not accuracy_table.update_readme(page, tmp_path)
    with pytest.raises(ValueError, match="needs the lines"):
        accuracy_table.update(page, tmp_path)


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert accuracy_table.full(tmp_path) == accuracy_table.readme(tmp_path) == ""


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason=plot.MISSING)
    found = [_row(goals.OURS), _row(goals.REFERENCE)]
    assert plot.save(tmp_path, found) == str(tmp_path / "accuracy.svg")
    first = (tmp_path / "accuracy.svg").read_bytes()
    plot.save(tmp_path, found)
    assert (tmp_path / "accuracy.svg").read_bytes() == first and goals.OURS.encode() in first
    assert plot.save(tmp_path, [_row(goals.OURS, model="nano")]).startswith("no plot: no row of base")


def test_without_matplotlib_there_is_no_plot_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.save(tmp_path, [_row(goals.OURS)]) == plot.MISSING
    assert not list(tmp_path.iterdir())
