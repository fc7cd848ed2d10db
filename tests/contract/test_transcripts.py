"""Transcripts of the bundled model: the same words with every batch size and strategy, true times, no words without
speech."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from tests.contract.conftest import Recording
from whispercore.engines import Engine
from whispercore.engines.fake import FakeEngine
from whispercore.engines.rules import compression_ratio
from whispercore.options import Options, Strategy
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Decoded, Samples, Segment, Transcript, Window

PATIENCE = 600.0
UNCONDITIONED = Options(language="en", condition_on_previous_text=False)
SEQUENTIAL = replace(UNCONDITIONED, strategy="sequential")
TOLERANCE = 0.02
"""The most that batch size, engine or strategy may change the word error rate of the held-out set."""


@pytest.fixture(scope="module", params=["openai", "ct2-float32"])
def transcriber(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Iterator[Transcriber]:
    yield from _transcriber(engines[request.param])


@pytest.fixture(scope="module")
def fast(engines: dict[str, Engine]) -> Iterator[Transcriber]:
    yield from _transcriber(engines["ct2-int8"])


def _transcriber(engine: Engine) -> Iterator[Transcriber]:
    transcriber = Transcriber(Settings(), engine=engine)
    yield transcriber
    transcriber.scheduler.close()  # the engine belongs to the session


def wav(samples: Samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def together(transcriber: Transcriber, recordings: Sequence[Samples], options: Options) -> list[Transcript]:
    jobs = [transcriber.submit(wav(samples), options) for samples in recordings]
    return [job.result(PATIENCE) for job in jobs]


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def word_error_rate(expected: Sequence[str], transcripts: Sequence[Transcript]) -> float:
    return float(jiwer.wer([plain(text) for text in expected], [plain(transcript.text) for transcript in transcripts]))


def test_batch_size_and_strategy_do_not_change_the_word_error_rate(transcriber: Transcriber, heldout: list[Recording]) -> None:
    samples, texts = [recording.samples for recording in heldout], [recording.text for recording in heldout]
    limit = transcriber.scheduler.batch_limit
    results: dict[str, list[Transcript]] = {"chunked, together": together(transcriber, samples, UNCONDITIONED)}
    results["sequential, together"] = together(transcriber, samples, SEQUENTIAL)
    transcriber.scheduler.batch_limit = 1
    results["chunked, one by one"] = [transcript for clip in samples for transcript in together(transcriber, [clip], UNCONDITIONED)]
    transcriber.scheduler.batch_limit = limit
    rates = {name: word_error_rate(texts, transcripts) for name, transcripts in results.items()}
    assert max(rates.values()) - min(rates.values()) <= TOLERANCE, rates
    alone, among = results["chunked, one by one"], results["chunked, together"]
    assert sum(single.text != batched.text for single, batched in zip(alone, among, strict=True)) <= 1


def test_both_strategies_agree_on_a_recording_of_minutes(transcriber: Transcriber, heldout: list[Recording]) -> None:
    spoken = [recording for recording in heldout if recording.kind == "synthetic"]
    long, starts = joined([recording.samples for recording in spoken], pause=1.2)
    chunked, sequential = (together(transcriber, [long], options)[0] for options in (UNCONDITIONED, SEQUENTIAL))
    text = [" ".join(recording.text for recording in spoken)]
    assert len(long) > 60 * SAMPLE_RATE
    assert abs(word_error_rate(text, [chunked]) - word_error_rate(text, [sequential])) <= 0.1
    assert word_error_rate(text, [chunked]) <= 0.2
    assert max(segment.end - segment.start for segment in chunked.segments) < 12.0, "segments are as short as subtitles"
    assert len(chunked.segments) >= 0.8 * len(starts)


def test_removed_silence_does_not_shift_times(fast: Transcriber, heldout: list[Recording]) -> None:
    """VAD removes the pauses of 9 s between the sentences; starts must not shift."""
    spoken = [recording.samples for recording in heldout if recording.kind == "synthetic"]
    long, starts = joined(spoken, pause=9.0)
    errors = {}
    for options in (UNCONDITIONED, SEQUENTIAL):
        transcript = together(fast, [long], options)[0]
        nearest = [min(abs(segment.start - start) for segment in transcript.segments) for start in starts]
        errors[options.strategy] = float(np.median(nearest))
    assert errors["chunked"] <= errors["sequential"] + 0.05 and errors["chunked"] < 0.3, errors


def joined(pieces: Sequence[Samples], pause: float) -> tuple[Samples, list[float]]:
    """The pieces with a pause after each, and the second at which the speech of each piece begins."""
    silence = np.zeros(round(pause * SAMPLE_RATE), np.float32)
    starts, length = [], 0
    for piece in pieces:
        starts.append((length + int(np.argmax(np.abs(piece) > 0.02))) / SAMPLE_RATE)
        length += len(piece) + len(silence)
    return np.concatenate([part for piece in pieces for part in (piece, silence)]), starts


WITHOUT_SPEECH = {
    "silence": lambda rng, times: np.zeros_like(times),
    "noise": lambda rng, times: rng.normal(scale=0.05, size=len(times)),
    "hum": lambda rng, times: 0.2 * np.sin(2 * np.pi * 50 * times) + 0.1 * np.sin(2 * np.pi * 150 * times),
    "music": lambda rng, times: sum(0.1 * np.sin(2 * np.pi * tone * times) for tone in (220, 277.2, 329.6, 440)) * np.sin(2 * times),
}


@pytest.mark.parametrize("kind", WITHOUT_SPEECH)
@pytest.mark.parametrize(("strategy", "minutes"), [("chunked", 15), ("sequential", 2)])
def test_an_hour_without_speech_has_no_words(fast: Transcriber, kind: str, strategy: Strategy, minutes: int) -> None:
    """Four kinds of 15 minutes each; two minutes for the sequential strategy, which decodes every second."""
    times = np.arange(minutes * 60 * SAMPLE_RATE) / SAMPLE_RATE
    samples = np.asarray(WITHOUT_SPEECH[kind](np.random.default_rng(0), times), np.float32)
    (transcript,) = together(fast, [samples], Options(strategy=strategy))
    assert transcript.text == "" and transcript.segments == ()
    assert transcript.duration == pytest.approx(minutes * 60)


class Looping(FakeEngine):
    """Repeats itself at temperature 0, as large models do on applause."""

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        return [self._looped(decoded) if decoded.temperature == 0.0 else decoded for decoded in super().decode(windows)]

    def _looped(self, decoded: Decoded) -> Decoded:
        text = " Thank you." * 30
        begin = self.tokenizer.timestamp_begin
        tokens = (begin, *self.tokenizer.encode(text), begin + 500)
        return replace(decoded, tokens=tokens, text=text.strip(), compression_ratio=compression_ratio(text))


@pytest.mark.parametrize("strategy", ["chunked", "sequential"])
def test_a_repetition_loop_is_decoded_at_a_higher_temperature(strategy: Strategy) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 45 * SAMPLE_RATE).astype(np.float32)
    with Transcriber(Settings(), engine=Looping()) as transcriber:
        (transcript,) = together(transcriber, [noise], Options(strategy=strategy, vad_filter=False))
        assert transcriber.scheduler.counters.retries_at_higher_temperature >= 2
    assert "Thank you" not in transcript.text and transcript.segments
    assert {segment.temperature for segment in transcript.segments} == {0.2}


def test_words_are_near_the_synthesizers_times(transcriber: Transcriber) -> None:
    """tests/data/words has sentences with the word times from espeak-ng."""
    folder = Path(__file__).resolve().parents[1] / "data" / "words"
    errors: list[float] = []
    for item in json.loads((folder / "manifest.json").read_text()):
        samples, _ = soundfile.read(folder / item["file"], dtype="float32")
        (transcript,) = together(transcriber, [samples], replace(UNCONDITIONED, word_timestamps=True))
        errors += matched(transcript.segments, item["words"])
    assert len(errors) > 30
    assert np.median(errors) < 0.4, f"{np.median(errors):.3f} s: the bundled model's attention to the audio is imprecise"


def matched(segments: Sequence[Segment], truth: Sequence[dict[str, object]]) -> list[float]:
    """Errors of word starts in seconds; empty for a sentence with a wrong word."""
    words = [word for segment in segments for word in segment.words]
    if [plain(word.word) for word in words] != [plain(str(word["word"])) for word in truth]:
        return []
    starts = [(word.start, other["start"]) for word, other in zip(words, truth, strict=True)]
    return [abs(start - float(true)) for start, true in starts if isinstance(true, float | int)]
