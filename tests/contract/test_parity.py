"""The sequential strategy and `whisper.transcribe` give equal tokens, in float32 and greedily.

The recordings of 2 s to 10 min consist of held-out speech, silence, noise and tones. The nano model transcribes all of them
simultaneously, so that their windows share batches. Random weights with tiny's and base's dimensions, whose text is nonsense with
irregular timestamps, transcribe a few.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import whisper.transcribe
from whisper.model import Whisper

from whispercore.checkpoints import dimensions, load_checkpoint, write_random
from whispercore.engines.openai import OpenAIEngine
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.transcript.words import clamp
from whispercore.types import SAMPLE_RATE, Samples, Segment, Transcript, Word

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = sorted((ROOT / "tests" / "data" / "heldout").glob("*.flac"))
DURATIONS = [*np.geomspace(2, 100, 44), *np.geomspace(110, 150, 5), 600]
"""Of the recordings, in seconds: most are short, some take minutes."""
PATIENCE = 600.0


@lru_cache
def held_out(index: int) -> Samples:
    samples, rate = soundfile.read(HELD_OUT[index % len(HELD_OUT)], dtype="float32")
    assert rate == SAMPLE_RATE
    return np.asarray(samples)


def recording(index: int) -> Samples:
    """Sentences with gaps of 0 to 12 s, which hold silence, noise or tones; cut off at the duration."""
    rng = np.random.default_rng(index)
    length = round(DURATIONS[index % len(DURATIONS)] * SAMPLE_RATE)
    pieces: list[Samples] = []
    while sum(map(len, pieces)) < length:
        gap = round(float(rng.choice([0.0, 0.2, 0.7, 1.5, 3.0, 12.0], p=[0.15, 0.3, 0.3, 0.15, 0.07, 0.03])) * SAMPLE_RATE)
        pieces += [held_out(int(rng.integers(1000))) * np.float32(rng.uniform(0.3, 1.0)), between(rng, gap)]
    return np.concatenate(pieces)[:length]


def between(rng: np.random.Generator, length: int) -> Samples:
    """Silence, noise, or a chord of three tones."""
    times = np.arange(length) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * tone * times) for tone in rng.uniform(100, 2000, 3)) * 0.05
    kinds = (np.zeros(length), rng.normal(scale=0.01, size=length), tones)
    return np.asarray(kinds[rng.integers(3)], np.float32)


def wav(samples: Samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


NANO = ROOT / "whisper-models" / "nano.pt"


def engine(path: Path) -> OpenAIEngine:
    return OpenAIEngine(load_checkpoint(path), max_batch=8)


@pytest.fixture(scope="module", params=["nano", "tiny", "base"])
def transcriber(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    path = NANO
    if request.param != "nano":
        path = tmp_path_factory.mktemp("random") / f"{request.param}.pt"
        write_random(dimensions(request.param), path)
    with Transcriber(Settings(), engine=engine(path)) as started:
        yield started


def theirs(transcriber: Transcriber, samples: Samples, **options: Any) -> list[dict[str, Any]]:
    """The segments of whisper.transcribe that have text."""
    assert isinstance(transcriber.engine, OpenAIEngine)
    model = transcriber.engine.model
    assert isinstance(model, Whisper)
    result = whisper.transcribe(model, samples, language="en", temperature=0.0, fp16=False, verbose=None, **options)
    return [segment for segment in result["segments"] if segment["text"]]


def ours(transcriber: Transcriber, samples: Samples, **options: Any) -> Transcript:
    sequential = Options(strategy="sequential", language="en", temperature=(0.0,), **options)
    return transcriber.submit(wav(samples), sequential).result(PATIENCE)


def assert_same(transcript: Transcript, segments: list[dict[str, Any]]) -> None:
    expected = [as_segment(segment) for segment in segments]
    if any(segment.words for segment in expected):
        expected = clamp(expected, 0.0, math.floor(transcript.duration * 100) / 100)  # openai-whisper's words may overlap slightly
    assert [segment.tokens for segment in transcript.segments] == [segment.tokens for segment in expected]
    for segment, other in zip(transcript.segments, expected, strict=True):
        assert (segment.start, segment.end) == (pytest.approx(other.start, abs=2e-3), pytest.approx(other.end, abs=2e-3))
        assert segment.seek == other.seek and segment.text == other.text
        assert segment.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-3)
        assert timed(segment) == timed(other)


def timed(segment: Segment) -> list[tuple[str, float, float]]:
    """The words with rounded times: openai-whisper's times are sums of rounded ones."""
    return [(word.word, round(word.start, 3), round(word.end, 3)) for word in segment.words]


def as_segment(segment: dict[str, Any]) -> Segment:
    """openai-whisper's dictionary as a `Segment`."""
    words = tuple(Word(word["word"], word["start"], word["end"], word["probability"]) for word in segment.get("words", ()))
    fields = {name: segment[name] for name in ("start", "end", "text", "avg_logprob", "seek")}
    return Segment(**fields, tokens=tuple(segment["tokens"]), words=words)


@pytest.mark.parametrize("conditioned", [True, False])
def test_simultaneous_recordings_equal_whisper_transcribe(conditioned: bool) -> None:
    with Transcriber(Settings(), engine=engine(NANO)) as transcriber:
        recordings = [recording(index) for index in (range(1, len(DURATIONS), 3) if conditioned else range(3, len(DURATIONS), 6))]
        options = Options(strategy="sequential", language="en", temperature=(0.0,), condition_on_previous_text=conditioned)
        jobs = [transcriber.submit(wav(samples), options) for samples in recordings]
        transcripts = [job.result(PATIENCE) for job in jobs]  # before whisper.transcribe uses the same model
        for transcript, samples in zip(transcripts, recordings, strict=True):
            assert_same(transcript, theirs(transcriber, samples, condition_on_previous_text=conditioned))
        counters = transcriber.scheduler.counters
        assert counters.windows > 2 * counters.batches, "sequential requests share batches"


@pytest.mark.parametrize("index", [3, 30, 40])
def test_random_weights(transcriber: Transcriber, index: int) -> None:
    samples = recording(index)
    assert_same(ours(transcriber, samples, max_new_tokens=40), theirs(transcriber, samples, sample_len=40))


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"initial_prompt": "Turn on the light."}, {}),
    ({"initial_prompt": "Turn on the light.", "carry_initial_prompt": True}, {}),
    ({"word_timestamps": True}, {}),
    ({"word_timestamps": True, "hallucination_silence_threshold": 1.0}, {}),
    ({"clip_timestamps": (3.0, 9.5, 12.0)}, {"clip_timestamps": [3.0, 9.5, 12.0]}),
    ({"without_timestamps": True}, {}),
    ({"beam_size": 3, "patience": 1.5}, {}),
    ({"suppress_tokens": (50, 60), "no_speech_threshold": None}, {"suppress_tokens": [50, 60]}),
]


@pytest.mark.parametrize(("transcriber", "index"), [("nano", 33), ("tiny", 24)], indirect=["transcriber"])
@pytest.mark.parametrize(("options", "whisper_options"), OPTIONS, ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_every_option_of_the_loop(transcriber: Transcriber, index: int, options: dict[str, Any], whisper_options: dict[str, Any]) -> None:
    samples = recording(index)
    assert_same(
        ours(transcriber, samples, max_new_tokens=40, **options),
        theirs(transcriber, samples, sample_len=40, **{**options, **whisper_options}),
    )
