"""Rows of `bench accuracy`, their runners, and one pass over a set."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import (
    accuracy,
    datasets,
    passes,
    peers,
    scores,
)
from bench.datasets import Recording, Set
from bench.peers import Hypothesis, Row, Setup
from bench.report import accuracy as report
from bench.report import goals
from bench.rows import Job
from bench.work import ROOT
from whispercore.errors import ConfigurationError, EngineError


def test_rows_are_named_by_runner_mode_precision_and_how_many_at_once() -> None:
    assert Row.parse("ct2") == Row("ct2", "chunked", "auto", 1)
    assert Row.parse("faster-whisper:batched:int8") == Row("faster-whisper", "batched", "int8")
    assert str(Row.parse("ct2:sequential:float32@8")) == "ct2:sequential:float32@8"
    assert [str(Row.parse(text)) for text in accuracy.ROWS] == list(accuracy.ROWS)


@pytest.mark.parametrize("text", ["whisperx", "ct2:batched", "openai-whisper:chunked", "ct2:chunked:int8:more", "ct2@0", "ct2@many"])
def test_an_unknown_row_is_an_error_that_names_the_known_ones(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must be one of|knows "):
        Row.parse(text)


def test_the_default_rows_have_every_engine_and_peer_and_share_a_core_of_sets() -> None:
    runners = {Row.parse(text).runner for text in accuracy.ROWS}
    assert runners == {"openai", "torch", "ct2", "hf", "onnx", "jax", "sherpa", "openai-whisper", "faster-whisper"}
    assert all(set(datasets.CORE) <= set(names) <= set(datasets.SETS) for names in accuracy.ROWS.values())
    needed = {goals.DEFAULT, goals.DEFAULT_FLOAT32, goals.OPENAI, goals.BATCHED, goals.PLAIN, *goals.STUDY_ROWS, *report.README_ROWS}
    assert needed | {*goals.INT8, *goals.INT8.values()} <= set(accuracy.ROWS)
    assert {"languages", "languages-told", "word-times", "sounds"} <= set(accuracy.ROWS[goals.DEFAULT])
    assert set(goals.GOAL_SETS) <= set(accuracy.ROWS[goals.DEFAULT]) & set(accuracy.ROWS[goals.OPENAI]) & set(accuracy.ROWS[goals.BATCHED])


def test_peers_take_one_recording_at_a_time() -> None:
    with pytest.raises(ConfigurationError, match="one recording at a time"), peers.open_runner(Row.parse("openai-whisper@2"), Setup()):
        pass


def test_processor_time_counts_children_that_run_and_that_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = passes.processor_seconds()
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        assert passes.processor_seconds() - before > 0.25, "it still runs"
        child.communicate(b"\n")
    assert passes.processor_seconds() - before > 0.25, "it has ended"


def test_a_failed_recording_has_an_empty_hypothesis_and_the_set_decides_whether_the_language_is_given() -> None:
    calls: list[tuple[str, bool, str | None]] = []

    def transcribe(path: Path, words: bool, language: str | None) -> Hypothesis:
        calls.append((path.name, words, language))
        if path.stem == "bad":
            raise EngineError("it broke\nsecond line")
        return Hypothesis("one")

    some = [Recording(Path("good.wav"), "one", language="nl"), Recording(Path("bad.wav"), "two")]
    ticks: list[int] = []
    done = passes.run_pass(transcribe, Set("any", some), together=1, tick=lambda: ticks.append(1))
    assert [hypothesis.text for hypothesis in done.hypotheses] == ["one", ""] and done.failures == ["bad.wav: it broke"] and len(ticks) == 2
    passes.run_pass(transcribe, Set("any", some[:1], language_given=True, timed=True), together=1, tick=lambda: None)
    assert calls == [("good.wav", False, None), ("bad.wav", False, None), ("good.wav", True, "nl")]


def test_an_english_model_gets_english_recordings_only(speech: Path) -> None:
    job = Job(row="ct2", setup=Setup(model="tiny.en"), sets=("languages",))
    assert [one.path.stem for one in job.recordings("languages").recordings] == ["c"]
    assert len(replace(job, setup=Setup(model="base")).recordings("languages").recordings) == 2
    assert len(replace(job, setup=Setup(model="base"), limit=1).recordings("languages").recordings) == 1


def test_a_job_survives_json() -> None:
    job = Job(row="ct2:chunked:int8", setup=Setup(model="base", threads=2), sets=("test-clean", "sounds"), hours=0.1)
    assert Job.of(json.loads(json.dumps(asdict(job)))) == job


RUNNERS = ("openai-whisper", "faster-whisper:sequential:float32", "faster-whisper:batched:float32", "openai", "ct2:sequential", "torch")


@pytest.mark.slow
@pytest.mark.parametrize("text", RUNNERS)
def test_every_runner_transcribes_with_and_without_word_times(text: str) -> None:
    """A sample that the bundled model transcribes without an error."""
    with peers.open_runner(Row.parse(text), Setup(model="nano", device="cpu")) as transcribe:
        plain, timed = (transcribe(ROOT / "samples" / "timer.flac", words, "en") for words in (False, True))
        detected = transcribe(ROOT / "samples" / "timer.flac", False, None)
    assert scores.plain(plain.text) == scores.plain(timed.text) == scores.plain(detected.text) == "set a timer for five minutes"
    assert plain.language == detected.language == "en"
    assert [scores.plain(word.word) for word in timed.words] == scores.plain(plain.text).split() and not plain.words
    times = [time for word in timed.words for time in (word.start, word.end)]
    assert times == sorted(times) and 0 <= times[0] < times[-1] < 4
    assert scores.plain("".join(one.text for one in plain.segments)) == scores.plain(plain.text) and plain.segments[0].end <= 4
