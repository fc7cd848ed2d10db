"""The accuracy bench: its arithmetic, the layouts it reads, the truth of its word times, and rows that fail without taking others."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bench import __main__ as command
from bench import accuracy, datasets, espeak, peers, plot, results, scores, table
from bench.datasets import Recording
from bench.espeak import TrueWord
from bench.peers import Heard, Row, Setup
from whispercore.audio import read_samples
from whispercore.checkpoints import sha256
from whispercore.errors import ConfigurationError, EngineError
from whispercore.types import SAMPLE_RATE, Word

# Scores


def test_errors_are_counted_over_all_recordings_together() -> None:
    seen = scores.errors(["one two three four", "five"], ["One, too three!", "five six"], "en")
    assert (seen["words"], seen["substitutions"], seen["deletions"], seen["insertions"]) == (5, 1, 1, 1)
    assert seen["wer"] == pytest.approx(3 / 5)
    # "one two three four five": 22 characters; w→o, " four" deleted, " six" inserted
    assert seen["cer"] == pytest.approx((1 + 5 + 4) / 22, abs=1e-6)


def test_whispers_normalizer_joins_digits_and_the_plain_one_does_not() -> None:
    seen = scores.errors(["The code is one two three."], ["the code is 123"], "en")
    assert seen["whisper_normalizer"]["wer"] == 0 and seen["whisper_normalizer"]["words"] == 4
    assert seen["wer"] == pytest.approx(3 / 6) and seen["words"] == 6


def test_other_languages_get_the_basic_normalizer() -> None:
    assert scores.normalizer("en")("It's colour") == "it is color"
    assert scores.normalizer("es")("¿Qué tal?").split() == ["qué", "tal"]
    assert scores.normalizer(None)("It's").split() == ["it", "s"]


def test_words_of_a_silent_recording_are_insertions_and_a_rate_of_nothing_is_none() -> None:
    assert scores.errors(["", "one"], ["thank you", "one"], "en")["wer"] == 2
    nothing = scores.errors([""], ["you"], "en")
    assert nothing["wer"] is None and nothing["cer"] is None and nothing["insertions"] == 1


def test_words_made_up_in_silence_are_counted_without_punctuation() -> None:
    assert scores.made_up(["", ".", "Thank you.", "you"]) == {"recordings": 4, "recordings_with_words": 2, "words": 3}


def test_word_times_compare_only_words_heard_right_whose_time_is_known() -> None:
    said = [TrueWord("Turn", 0.0, 0.5), TrueWord("on", 0.5, None), TrueWord("the", None, 1.0), TrueWord("light.", 1.0, 1.5)]
    heard = [Word(" turn", 0.05, 0.5, 1.0), Word(" on", 0.8, 0.9, 1.0), Word(" a", 0.9, 3.0, 1.0), Word(" light", 1.6, 1.6, 1.0)]
    seen = scores.word_times([said], [heard])
    assert seen["words"] == 4
    assert seen["start"] == {
        "compared": 3,
        "mean": pytest.approx((0.05 + 0.3 + 0.6) / 3, abs=1e-4),
        "median": pytest.approx(0.3),
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


def test_every_default_row_differs_from_the_others_in_one_run_of_equal_decoding() -> None:
    assert len(set(accuracy.ROWS)) == len(accuracy.ROWS)
    runners = {Row.parse(text).runner for text in accuracy.ROWS}
    assert runners == {"openai", "torch", "ct2", "openai-whisper", "faster-whisper"}


def test_peers_take_one_recording_at_a_time() -> None:
    with pytest.raises(ConfigurationError, match="one recording at a time"), peers.open_runner(Row.parse("openai-whisper@2"), Setup()):
        pass


@contextmanager
def _parrot(row: Row, setup: Setup) -> Iterator[peers.Hear]:
    """Hears what it should; words half a second late; fails on one file, and cannot be loaded as int8."""
    if row.compute_type == "int8":
        raise RuntimeError(f"no int8 in {accuracy.ROOT}/here\nsecond line")
    said = {one.path: one for one in datasets.manifest(datasets.HELDOUT) + datasets.manifest(datasets.WORDS)}

    def hear(path: Path, words: bool) -> Heard:
        if path.stem == "synthetic-01":
            raise EngineError("it broke")
        one = said.get(path)
        late = [Word(f" {w.word}", w.start + 0.5, w.start + 0.6, 1.0) for w in one.words if w.start is not None] if one else []
        return Heard(one.text if one else "you", tuple(late) if words else ())

    yield hear


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(peers.RUNNERS, "faster-whisper", _parrot)
    monkeypatch.setattr(accuracy, "SCRATCH", tmp_path)
    return tmp_path


ROWS = ["--rows", "faster-whisper:sequential:float32", "faster-whisper:batched:int8", "--limit", "3"]


def test_a_run_keeps_figures_failures_and_what_was_heard(parrot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["accuracy", *ROWS]) == 1, "a row failed"
    content = json.loads((parrot / "accuracy" / "accuracy.json").read_text())
    good, bad = content["result"]["rows"]
    assert bad["failure"] == "RuntimeError: no int8 in here", "one line, without this checkout's path"
    assert good["speech"]["failures"] == ["synthetic-01.flac: it broke"] and good["speech"]["failed"] == 1
    said = [one.text for one in datasets.manifest(datasets.HELDOUT)[:3]]
    missed = len(said[1].split())
    assert good["speech"]["deletions"] == missed, "what failed was not heard"
    assert good["speech"]["wer"] == pytest.approx(missed / sum(len(text.split()) for text in said), abs=1e-5)
    assert good["quiet"]["words"] == 3 and good["quiet"]["recordings"] == 3
    assert good["words"]["start"]["mean"] == pytest.approx(0.5) and good["words"]["start"]["within"] == {"0.1": 0, "0.2": 0, "0.5": 1}
    assert good["speech"]["rtfx"] > 0 and good["speech"]["audio_seconds"] > 5
    assert content["settings"]["models"]["nano"] and content["provenance"]["versions"]["jiwer"]
    heard = [json.loads(line) for line in (parrot / "accuracy-heard.jsonl").read_text().splitlines()]
    assert [line["heard"] for line in heard] == [said[0], "", said[2]]
    page = capsys.readouterr().out
    assert "| faster-whisper, batched, int8 | failed: RuntimeError: no int8 in here |" in page
    assert "| faster-whisper, sequential, float32 | " in page


def test_without_a_row_that_failed_all_is_well(parrot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["--rows", "faster-whisper:sequential:float32", "--limit", "1", "--no-quiet", "--no-words", "--json"]
    assert accuracy.main(rows) == 0
    row = json.loads(capsys.readouterr().out)["result"]["rows"][0]
    assert row["speech"]["wer"] == 0 and row["quiet"] is None and row["words"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rows", "nobody"], "unknown row"),
        (["--dataset", "librispeech"], "needs --root"),
        (["--manifest", "nowhere.csv"], "cannot be read"),
        (["--model", "no-such-model"], "no checkpoint at"),
    ],
)
def test_what_is_not_there_ends_it_before_it_begins(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(arguments) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_only_the_whole_run_is_the_readmes() -> None:
    parse = accuracy._parser().parse_args
    assert accuracy._standard(parse([])) and accuracy._standard(parse(["--json"]))
    assert not any(accuracy._standard(parse(given)) for given in (["--limit", "3"], ["--threads", "2"], ["--rows", "ct2"], ["--no-quiet"]))


def test_it_is_a_program_too() -> None:
    """From another folder, with nothing on the path."""
    run = [sys.executable, "-E", str(accuracy.ROOT / "bench" / "accuracy.py"), "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, cwd="/", check=True).stdout
    assert "--dataset" in shown and "faster-whisper:batched:int8" in shown


RUNNERS = ("openai-whisper", "faster-whisper:sequential:float32", "faster-whisper:batched:float32", "openai", "ct2:sequential", "torch")


@pytest.mark.parametrize("text", RUNNERS)
def test_every_runner_hears_the_bundled_model_with_and_without_word_times(text: str) -> None:
    """The sample that the model hears without a mistake."""
    with peers.open_runner(Row.parse(text), Setup(device="cpu")) as hear:
        heard, timed = (hear(accuracy.ROOT / "samples" / "timer.flac", words) for words in (False, True))
    assert scores.plain(heard.text) == scores.plain(timed.text) == "set a timer for five minutes"
    assert [scores.plain(word.word) for word in timed.words] == scores.plain(heard.text).split() and not heard.words
    times = [time for word in timed.words for time in (word.start, word.end)]
    assert times == sorted(times) and 0 <= times[0] < times[-1] < 4


# The table and the plot


def test_the_readme_shows_the_committed_results() -> None:
    page = table.MEASURED.read_text(encoding="utf-8")
    assert table.block(page, table.ACCURACY_BEGIN, table.ACCURACY_END) == table.accuracy(), "run: python -m bench table"


def test_the_committed_result_has_every_peer_and_is_of_the_bundled_model() -> None:
    content = results.load(results.RESULTS, "accuracy")
    assert content is not None and [row["row"] for row in content["result"]["rows"]] == list(accuracy.ROWS)
    assert (results.RESULTS / "accuracy.svg").is_file()
    bundled = sha256(accuracy.ROOT / "whisper-models" / "nano.pt")
    assert content["settings"]["models"] == {"nano": bundled}, "another model than was measured: python -m bench accuracy"


def test_update_changes_the_accuracy_block_and_nothing_else(tmp_path: Path, parrot: Path) -> None:
    accuracy.main([*ROWS, "--results", str(tmp_path / "kept")])
    page = tmp_path / "README.md"
    page.write_text(f"{table.BEGIN}bench\n{table.END}\n{table.ACCURACY_BEGIN}old\n{table.ACCURACY_END}\nafter\n", encoding="utf-8")
    table.update_accuracy(page, tmp_path / "kept")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"{table.BEGIN}bench\n{table.END}\n") and text.endswith(f"{table.ACCURACY_END}\nafter\n")
    assert table.block(text, table.ACCURACY_BEGIN, table.ACCURACY_END) == table.accuracy(tmp_path / "kept") != ""


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert table.accuracy(tmp_path) == ""


def test_the_plot_is_the_same_for_the_same_figures(parrot: Path) -> None:
    pytest.importorskip("matplotlib", reason=plot.MISSING)
    accuracy.main([*ROWS, "--results", str(parrot)])
    rows = json.loads((parrot / "accuracy.json").read_text())["result"]["rows"]
    first = (parrot / "accuracy.svg").read_bytes()
    assert plot.save(parrot, rows) == str(parrot / "accuracy.svg") and (parrot / "accuracy.svg").read_bytes() == first
    assert b"faster-whisper:sequential:float32" in first and plot.save(parrot, rows[1:]) == "no plot: no row has a result"


def test_without_matplotlib_there_is_no_plot_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.save(tmp_path, [{"row": "any"}]) == plot.MISSING
    assert not list(tmp_path.iterdir())
