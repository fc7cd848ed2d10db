"""Cutting: no speech lost, no sample twice, at most 30 s, the same for any block size, nothing without speech."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whispercore.audio.cutting import SpeechChunk, cut, cut_incrementally, speech
from whispercore.audio.recording import open_recording, read_samples
from whispercore.audio.silero import FRAME
from whispercore.audio.threads import AudioThreads
from whispercore.options import Options
from whispercore.types import SAMPLE_RATE, WINDOW_SAMPLES, Samples

DEFAULT = Options()
SAMPLES = Path(__file__).parents[3] / "samples"
RECORDINGS = sorted(path for path in SAMPLES.iterdir() if path.suffix in {".flac", ".mp3", ".ogg", ".wav"})
SECOND = np.zeros(SAMPLE_RATE, np.float32)


class Loudness:
    """A detector for synthetic speech: samples louder than 0.1 are speech."""

    def extract(self, samples: Samples) -> Samples:
        return samples

    def classify(self, samples: Samples) -> Samples:
        frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
        return (np.abs(frames).max(axis=1) > 0.1).astype(np.float32)


class Amplitude(Loudness):
    """A detector whose probability is the amplitude."""

    def classify(self, samples: Samples) -> Samples:
        return np.abs(np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)).max(axis=1)


@pytest.fixture
def loudness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.audio.cutting.VoiceDetector", Loudness)


def voice(seconds: float) -> Samples:
    """Synthetic speech: noise without quiet moments."""
    length = int(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(length).uniform(0.2, 0.6, length)
    return (noise * np.where(np.arange(length) % 2, 1, -1)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.random.default_rng(0).normal(scale=1e-4, size=int(seconds * SAMPLE_RATE)).astype(np.float32)


def drawn(*seconds: float) -> Samples:
    """Speech and silence in turn."""
    return np.concatenate([silence(length) if turn % 2 else voice(length) for turn, length in enumerate(seconds)])


def blocks(samples: Samples, size: int) -> Iterator[Samples]:
    return (samples[begin : begin + size] for begin in range(0, len(samples), size))


def times(chunks: list[SpeechChunk]) -> list[tuple[int, int]]:
    return [(begin := round(chunk.start * SAMPLE_RATE), begin + len(chunk.samples)) for chunk in chunks]


def check(recording: Samples, chunks: list[SpeechChunk]) -> None:
    """The chunks are in order, do not overlap, last at most 30 s and are slices of the recording."""
    end = 0
    for chunk, (begin, after) in zip(chunks, times(chunks), strict=True):
        assert begin >= end
        assert 0 < len(chunk.samples) <= WINDOW_SAMPLES
        np.testing.assert_array_equal(chunk.samples, recording[begin:after])
        end = after
    assert end <= len(recording)


LENGTHS = st.lists(st.floats(0.05, 45.0), min_size=1, max_size=8)


@settings(max_examples=settings().max_examples // 7)
@given(lengths=LENGTHS, size=st.integers(1_000, 700_000))
def test_no_speech_is_lost_for_any_block_size(lengths: list[float], size: int) -> None:
    recording = drawn(*lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whispercore.audio.cutting.VoiceDetector", Loudness)
        chunks = list(cut(blocks(recording, size), DEFAULT))
        assert times(chunks) == times(list(cut([recording], DEFAULT)))
    check(recording, chunks)
    kept = np.zeros(len(recording), bool)
    for begin, end in times(chunks):
        kept[begin:end] = True
    lost = np.flatnonzero((np.abs(recording) > 0.1) & ~kept)
    assert len(lost) <= 2 * FRAME * sum(length < 0.1 for length in lengths)  # a click of one frame is no speech


@settings(max_examples=settings().max_examples // 10)
@given(lengths=LENGTHS, size=st.integers(1_000, 700_000))
def test_without_the_filter_every_sample_is_kept_once(lengths: list[float], size: int) -> None:
    recording = drawn(*lengths)
    chunks = list(cut(blocks(recording, size), Options(vad_filter=False)))
    check(recording, chunks)
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), recording)


OPTIONS = st.builds(
    Options,
    strategy=st.sampled_from(["chunked", "sequential"]),
    vad_filter=st.sampled_from([None, True, False]),
    vad_min_speech_duration_ms=st.sampled_from([0, 64, 500]),
    vad_min_silence_duration_ms=st.sampled_from([0, 300, 2000, 40_000]),
    vad_speech_pad_ms=st.sampled_from([0, 400, 3000, 30_000]),
    clip_timestamps=st.lists(st.floats(0.0, 120.0), max_size=5).map(sorted).map(tuple),
)


def clips_of(options: Options, length: int) -> list[tuple[int, int]]:
    """First and after-last sample of each clip."""
    borders = [round(seconds * SAMPLE_RATE) for seconds in options.clip_timestamps] or [0]
    borders += [length] * (len(borders) % 2)
    return [(min(begin, length), min(end, length)) for begin, end in zip(borders[::2], borders[1::2], strict=True)]


def must_be_kept(recording: Samples, options: Options) -> npt.NDArray[np.bool_]:
    """Samples in a clip that are speech and no click, or all samples in a clip without the filter."""
    expected = np.zeros(len(recording), bool)
    for begin, end in clips_of(options, len(recording)):
        loud = np.abs(recording[begin:end]) > 0.1
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(np.int8))).reshape(-1, 2)
        for first, last in edges:
            long_enough = (last - first) / SAMPLE_RATE * 1000 >= options.vad_min_speech_duration_ms + 64
            expected[begin + first : begin + last] = long_enough
        if not options.vad:
            expected[begin:end] = True
    return expected


def covered(spans: list[tuple[int, int]], length: int) -> npt.NDArray[np.bool_]:
    kept = np.zeros(length, bool)
    for begin, end in spans:
        kept[begin:end] = True
    return kept


@settings(max_examples=settings().max_examples * 2 // 5)
@given(lengths=LENGTHS, size=st.integers(1_000, 700_000), options=OPTIONS)
def test_with_any_options_times_are_the_recordings_and_speech_in_clips_is_kept(lengths: list[float], size: int, options: Options) -> None:
    recording = drawn(*lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whispercore.audio.cutting.VoiceDetector", Loudness)
        chunks = list(cut(blocks(recording, size), options))
        spans = [span for span in speech(blocks(recording, size), options) if span]
    check(recording, chunks)
    spoken = [(round(begin * SAMPLE_RATE), round(end * SAMPLE_RATE)) for begin, end in spans]
    clips = clips_of(options, len(recording))
    expected = must_be_kept(recording, options)
    for kept_spans in (times(chunks), spoken):
        assert all(any(begin <= first and last <= end for begin, end in clips) for first, last in kept_spans)
        assert all(last <= following for (_, last), (following, _) in pairwise(kept_spans))
        assert not (expected & ~covered(kept_spans, len(recording))).any()
    if not options.vad:
        np.testing.assert_array_equal(covered(times(chunks), len(recording)), expected)
        assert spoken == [(begin, end) for begin, end in clips if begin < end]


@pytest.mark.usefixtures("loudness")
def test_each_option_of_the_filter_is_honoured() -> None:
    recording = drawn(20, 1.5, 0.2, 2.5, 20)

    def spans(**options: Any) -> list[Any]:
        chunks = cut([recording], Options(**options))
        return [pytest.approx((chunk.start, chunk.start + len(chunk.samples) / SAMPLE_RATE), abs=0.07) for chunk in chunks]

    assert spans() == [(0, 22.1), (23.8, 44.2)]
    assert spans(vad_speech_pad_ms=100) == [(0, 21.8), (24.1, 44.2)]
    assert spans(vad_min_silence_duration_ms=1000) == [(0, 20.4), (21.1, 22.1), (23.8, 44.2)]
    assert spans(vad_min_silence_duration_ms=1000, vad_min_speech_duration_ms=400) == [(0, 20.4), (23.8, 44.2)]
    # a pause that padding fills is kept
    assert spans(vad_min_silence_duration_ms=1000, vad_speech_pad_ms=1000) == [
        (0, 22.7),
        (23.2, 44.2),
    ]


@pytest.mark.parametrize(
    ("options", "voiced"),
    [
        ({}, 2.0),
        ({"vad_threshold": 0.3}, 3.0),
        ({"vad_threshold": 0.7}, 0.0),
        ({"vad_neg_threshold": 0.45}, 1.0),
        ({"vad_neg_threshold": 0.1}, 3.0),
    ],
)
def test_speech_begins_at_one_threshold_and_lasts_until_the_other(
    options: dict[str, float], voiced: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whispercore.audio.cutting.VoiceDetector", Amplitude)
    levels = [0.0, 0.6, 0.4, 0.3, 0.0]
    recording = np.repeat(np.array(levels, np.float32), SAMPLE_RATE)
    spans = [span for span in speech([recording], Options(vad_filter=True, vad_speech_pad_ms=0, **options)) if span]
    assert sum(end - begin for begin, end in spans) == pytest.approx(voiced, abs=0.07)


@pytest.mark.usefixtures("loudness")
def test_what_is_left_of_speech_after_a_cut_is_no_click() -> None:
    recording = voice(30.2)
    chunks = list(cut([np.concatenate([recording, silence(5)])], Options(vad_min_speech_duration_ms=12_000)))
    assert covered(times(chunks), len(recording) + 5 * SAMPLE_RATE)[: len(recording)].all()
    assert len(chunks) == 2


@pytest.mark.usefixtures("loudness")
def test_clips_are_cut_by_themselves_even_where_they_touch() -> None:
    recording = voice(80)
    chunks = list(cut(blocks(recording, 70_000), Options(clip_timestamps=(1.5, 3.25, 3.25, 3.25, 3.25, 10.0, 61.2))))
    assert [(chunk.start, len(chunk.samples) / SAMPLE_RATE) for chunk in chunks] == [(1.5, 1.75), (3.25, 6.75), (61.2, pytest.approx(18.8))]


@pytest.mark.usefixtures("loudness")
def test_a_recording_is_read_to_its_end_beyond_the_last_clip() -> None:
    """Its duration and its warnings are known only then."""
    for work in (cut, speech):
        left = blocks(voice(20), SAMPLE_RATE)
        assert list(work(left, Options(clip_timestamps=(1.0, 2.0))))
        assert next(left, None) is None


@pytest.mark.parametrize("options", [DEFAULT, Options(clip_timestamps=(599.0, 600.0))])
def test_long_silence_lets_others_read(options: Options) -> None:
    read = 0

    def reading() -> Iterator[Samples]:
        nonlocal read
        for block in blocks(np.zeros(600 * SAMPLE_RATE, np.float32), 5 * SAMPLE_RATE):
            read += len(block)
            yield block

    before = 0
    for chunk in cut_incrementally(reading(), options):
        assert chunk is None
        assert read - before <= 45 * SAMPLE_RATE
        before = read
    assert before > 550 * SAMPLE_RATE
    assert read == 600 * SAMPLE_RATE


def test_looking_for_speech_lets_others_work() -> None:
    read = 0

    def reading() -> Iterator[Samples]:
        nonlocal read
        for block in blocks(voice(60), 5 * SAMPLE_RATE):
            read += 1
            yield block

    news = speech(reading(), Options(strategy="sequential", clip_timestamps=(0.0, 10.0, 20.0, 30.0)))
    before = 0
    for _ in news:
        assert read - before <= 4
        before = read
    assert read == 12


@pytest.mark.usefixtures("loudness")
def test_a_short_recording_is_one_chunk() -> None:
    (chunk,) = cut([drawn(2, 9, 3, 8, 5)], DEFAULT)
    assert len(chunk.samples) == 27 * SAMPLE_RATE


@pytest.mark.usefixtures("loudness")
def test_long_silences_are_left_out_but_for_some_padding() -> None:
    chunks = list(cut([np.concatenate([silence(5), drawn(10, 6, 12, 1.5, 4, 20)])], DEFAULT))
    assert [chunk.start for chunk in chunks] == pytest.approx([4.6, 20.6], abs=0.04)
    assert [len(chunk.samples) / SAMPLE_RATE for chunk in chunks] == pytest.approx([10.8, 18.3], abs=0.06)


@pytest.mark.usefixtures("loudness")
def test_long_speech_is_cut_at_the_last_long_pause() -> None:
    first, second, third = cut([drawn(8, 0.6, 13.4, 0.6, 4, 0.7, 1.0, 0.2, 22, 0.3, 9)], DEFAULT)
    assert first.start == 0.0
    assert 22 + 4.6 <= second.start <= 22 + 4.6 + 0.7  # not the shorter pause after it, nor a long one before it
    assert third.start == second.start + len(second.samples) / SAMPLE_RATE


@pytest.mark.usefixtures("loudness")
def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    recording = voice(45)
    dip = slice(int(24.3 * SAMPLE_RATE), int(24.4 * SAMPLE_RATE))
    recording[dip] *= 0.6
    recording[int(26 * SAMPLE_RATE)] = 0.0  # one quiet sample is no quiet place
    first, second = cut([recording], DEFAULT)
    assert 24.3 <= second.start <= 24.4
    assert len(first.samples) + len(second.samples) == len(recording)


@pytest.mark.usefixtures("loudness")
def test_speech_begins_early_in_its_window() -> None:
    """Whisper's first timestamp is at most 1.0 s."""
    recording = drawn(*[2.3, 1.1, 1.7, 0.4, 3.1, 1.9, 6.1, 2.4, 0.9, 7.0] * 6)
    for chunk in cut([recording], DEFAULT):
        assert np.flatnonzero(np.abs(chunk.samples) > 0.1)[0] < 0.5 * SAMPLE_RATE


@pytest.mark.usefixtures("loudness")
def test_a_stretch_comes_as_soon_as_its_end_is_certain() -> None:
    read = 0

    def reading() -> Iterator[Samples]:
        nonlocal read
        for block in blocks(drawn(*[10, 3] * 30), SAMPLE_RATE):
            read += len(block)
            yield block

    for chunk in cut(reading(), DEFAULT):
        end = chunk.start + len(chunk.samples) / SAMPLE_RATE
        assert read / SAMPLE_RATE <= max(end, 30) + 2 + 3 * 5.12 + 1  # one chunk is decoded while the two before it are analysed


def test_an_empty_recording_has_no_chunk() -> None:
    assert list(cut([], DEFAULT)) == []
    assert list(cut([], Options(vad_filter=False))) == []


def test_a_recording_of_exactly_30_seconds_is_one_window() -> None:
    (chunk,) = cut([voice(30.0)], Options(vad_filter=False))
    assert len(chunk.samples) == WINDOW_SAMPLES


HELDOUT = Path(__file__).parents[2] / "data" / "heldout"


def joined(pauses: tuple[float, ...], *, hiss: float) -> tuple[Samples, list[tuple[int, int]]]:
    """Held-out recordings with pauses between them, and the times of speech, by the synthesizer."""
    pieces, spans, position = [], [], 0
    for index, entry in enumerate(json.loads((HELDOUT / "manifest.json").read_text())):
        sound = read_samples(HELDOUT / entry["file"])
        for segment in entry["segments"]:
            spans.append((position + round(segment["start"] * SAMPLE_RATE), position + round(segment["end"] * SAMPLE_RATE)))
        pieces += [sound, np.zeros(int(pauses[index % len(pauses)] * SAMPLE_RATE), np.float32)]
        position += len(pieces[-2]) + len(pieces[-1])
    recording = np.concatenate(pieces)
    return recording + np.random.default_rng(0).normal(scale=hiss, size=len(recording)).astype(np.float32), spans


@pytest.mark.parametrize("hiss", [0.0, 1e-3])
@pytest.mark.parametrize("pauses", [(0.0,), (0.3, 1.1, 4.0, 12.0, 0.1, 2.5)], ids=["dense", "sparse"])
def test_all_speech_of_known_times_is_covered_and_cut_in_pauses(pauses: tuple[float, ...], hiss: float) -> None:
    recording, spans = joined(pauses, hiss=hiss)
    chunks = list(cut(blocks(recording, 90_000), DEFAULT))
    check(recording, chunks)
    kept = covered(times(chunks), len(recording))
    sound = [span for span in speech(blocks(recording, 90_000), Options(vad_filter=True)) if span]
    detected = covered([(round(begin * SAMPLE_RATE), round(end * SAMPLE_RATE)) for begin, end in sound], len(recording))
    for begin, end in spans:
        assert kept[begin:end].all()
        assert detected[begin:end].all()
    energy = np.convolve(recording**2, np.ones(1024) / 1024, mode="same")
    borders = [border for span in times(chunks) for border in span if 0 < border < len(recording)]
    assert len(borders) > 5
    assert max(energy[borders]) < 10**-2.5 * np.quantile(energy, 0.95)  # 64 ms of at least 25 dB below loud speech
    assert (len(recording) - kept.sum()) / SAMPLE_RATE >= sum(
        pauses[index % len(pauses)] - 2 for index in range(38) if pauses[index % len(pauses)] > 3
    )


T = np.arange(12 * SAMPLE_RATE) / SAMPLE_RATE
NOISE = np.random.default_rng(0).normal(size=len(T))
NO_SPEECH = {
    "silence": 0 * T,
    "noise": NOISE / 5,
    "rumble": np.cumsum(NOISE) / 500,
    "hum": np.sin(2 * np.pi * 50 * T) + 0.3 * np.sin(2 * np.pi * 150 * T),
    "tone": np.sin(2 * np.pi * 1000 * T),
    "beeps": np.sin(2 * np.pi * 880 * T) * (T % 1 < 0.2),
    "square": np.sign(np.sin(2 * np.pi * 100 * T)),
    "clicks": (np.random.default_rng(1).random(len(T)) < 1e-4) * 1.0,
}


@pytest.mark.parametrize("name", NO_SPEECH)
@pytest.mark.parametrize("level", [0.5, 0.001])
def test_without_speech_there_is_no_chunk(name: str, level: float) -> None:
    assert list(cut([(NO_SPEECH[name] * level).astype(np.float32)], DEFAULT)) == []


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_every_word_of_the_samples_is_kept(path: Path, level: float) -> None:
    """Also 40 dB fainter: whatever is within 30 dB of the loudest moment."""
    with open_recording(path) as recording:
        whole = np.concatenate(list(recording.blocks())) * np.float32(level)
    chunks = list(cut([np.concatenate([np.tile(SECOND, 35), whole, SECOND])], DEFAULT))
    energy = np.convolve(whole**2, np.ones(800) / 800, mode="same")
    loud = 35 * SAMPLE_RATE + np.flatnonzero(energy > energy.max() * 1e-3)
    kept = np.zeros(len(loud), bool)
    for begin, end in times(chunks):
        kept |= (begin <= loud) & (loud < end)
    assert kept.all()


def test_isolated_digits_between_long_silences_are_all_kept() -> None:
    """The network alone loses one in six: its state gets stuck in digital silence."""
    digits = read_samples(SAMPLES / "digits.flac")
    energy = np.convolve(digits**2, np.ones(800) / 800, mode="same")
    voiced = np.flatnonzero(energy > energy.max() * 1e-3)
    words = np.split(voiced, np.flatnonzero(np.diff(voiced) > 0.15 * SAMPLE_RATE) + 1)
    words = [word for word in words if len(word) > 0.1 * SAMPLE_RATE]
    assert len(words) >= 3
    pieces, spans, position = [np.tile(SECOND, 4)], [], 4 * SAMPLE_RATE
    for word in [*words, *words, *words]:
        sound = digits[max(0, word[0] - 800) : word[-1] + 800]
        spans.append((position, position + len(sound)))
        pieces += [sound, np.tile(SECOND, 4)]
        position += len(sound) + 4 * SAMPLE_RATE
    chunks = times(list(cut([np.concatenate(pieces)], DEFAULT)))
    for begin, end in spans:
        assert any(left <= begin and end <= right for left, right in chunks)
    assert len(chunks) == len(spans)


def test_threads_change_no_cut() -> None:
    recording, _ = joined((0.3, 4.0), hiss=0.0)
    threads = AudioThreads(2)
    try:
        chunks = list(cut(blocks(recording, 90_000), DEFAULT, threads))
    finally:
        threads.close()
    alone = list(cut(blocks(recording, 90_000), DEFAULT))
    assert times(chunks) == times(alone) and len(chunks) > 2
    for chunk, expected in zip(chunks, alone, strict=True):
        np.testing.assert_array_equal(chunk.voiced, expected.voiced)
