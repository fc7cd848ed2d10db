"""Recordings: folders, manifests, LibriSpeech, the sets of real speech, and the committed word times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import (
    datasets,
    espeak,
)
from bench.datasets import Recording, Utterance
from bench.espeak import TrueWord
from tests.unit.bench.conftest import write_sound
from whispercore.audio.recording import read_samples
from whispercore.errors import ConfigurationError
from whispercore.types import SAMPLE_RATE


def test_a_folder_holds_audio_with_text_beside_it(tmp_path: Path) -> None:
    for name in ("b.flac", "deep/a.wav", "without-text.flac"):
        write_sound(tmp_path / name, 1.5)
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
def test_an_error_in_a_manifest_names_its_place(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=reason):
        datasets.manifest(tmp_path / name)


def test_missing_data_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        datasets.manifest(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        datasets.librispeech(tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"holds no \*\.trans\.txt"):
        datasets.librispeech(tmp_path)
    with pytest.raises(ConfigurationError, match="holds no audio file with its words"):
        datasets.folder(tmp_path)


def test_a_container_that_libsndfile_does_not_support_has_a_duration(tmp_path: Path) -> None:
    import av

    path = tmp_path / "speech.m4a"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * SAMPLE_RATE), np.float32), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert Recording(path, "").seconds == pytest.approx(2.0, abs=0.2)


def test_quiet_is_the_model_cards_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "SCRATCH", tmp_path)
    found = datasets.quiet()
    expected = espeak.nano("heldout").quiet(datasets.QUIET_SEED)
    assert len(found) == len(expected) and {one.text for one in found} == {""}
    for one, sound in zip(found[::9], expected[::9], strict=True):
        assert np.allclose(read_samples(one.path), sound.samples, atol=1e-6)
    assert datasets.quiet() == found


def test_the_sets_of_real_speech(speech: Path) -> None:
    def names(name: str) -> list[str]:
        return [one.path.stem for one in datasets.named(name).recordings]

    assert names("test-clean") == ["a"] and names("languages") == names("languages-told") == ["b", "c"]
    assert names("noisy-10dB") == ["d"] and names("noisy-0dB") == ["e"], "0 dB is left out of the manifest"
    given, timed = datasets.named("languages-told"), datasets.named("word-times")
    assert given.language_given and not datasets.named("languages").language_given and not given.timed
    assert timed.timed and timed.recordings[0].words == (TrueWord("five", 0.1, 0.5),) and timed.recordings[0].language == "nl"
    assert datasets.named("chapters").recordings[0].utterances == (Utterance(0, 1, "six"),)
    with pytest.raises(ConfigurationError, match="lists no recording of the set dictation"):
        datasets.named("dictation")
    with pytest.raises(ConfigurationError, match="unknown set 'test-dirty'; known: test-clean"):
        datasets.named("test-dirty")


def test_missing_speech_data_names_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_SPEECH_DATA", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"there is no .*manifest\.jsonl; set WHISPER_SPEECH_DATA"):
        datasets.named("test-clean")


def test_every_layout_is_recognised(tmp_path: Path) -> None:
    write_sound(tmp_path / "folder" / "a.wav").with_suffix(".txt").write_text("one")
    (tmp_path / "m.jsonl").write_text('{"audio": "folder/a.wav", "text": "one"}\n')
    (tmp_path / "libri").mkdir()
    (tmp_path / "libri" / "1.trans.txt").write_text("1-0 ONE\n")
    found = [datasets.of(tmp_path / name)[0] for name in ("folder", "m.jsonl", "libri")]
    assert [one.path.name for one in found] == ["a.wav", "a.wav", "1-0.flac"] and {one.text.lower() for one in found} == {"one"}


# Reference word times


ECHO = 0.15
"""Seconds for which the voice en-us+f4 is still audible after a sentence."""


def test_committed_word_times_lie_on_thewrite_sound() -> None:
    """Pauses hold only the added noise; every word is louder."""
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
            assert inside > 50 * espeak.NOISE, f"{one.path.name}: '{word.word}' is silent at {word.start}"
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
