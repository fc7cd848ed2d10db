"""Cutting: no sample of speech lost, none twice, at most 30 s, the same for any block size; nothing where nobody speaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whispercore import windows
from whispercore.audio import open_recording, read_samples
from whispercore.options import Options
from whispercore.silero import FRAME
from whispercore.types import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from whispercore.vad import VoiceDetector
from whispercore.windows import Stretch, cut

DEFAULT = Options()
SAMPLES = Path(__file__).parents[2] / "samples"
RECORDINGS = sorted(path for path in SAMPLES.iterdir() if path.suffix in {".flac", ".mp3", ".ogg", ".wav"})
SECOND = np.zeros(SAMPLE_RATE, np.float32)


class Loudness:
    """A detector to draw speech with: whatever is louder than 0.1 is speech."""

    def __call__(self, samples: Samples) -> Samples:
        frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
        return (np.abs(frames).max(axis=1) > 0.1).astype(np.float32)


@pytest.fixture
def loudness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "VoiceDetector", Loudness)


def speech(seconds: float) -> Samples:
    """Drawn speech: noise that is nowhere quiet."""
    length = int(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(length).uniform(0.2, 0.6, length)
    return (noise * np.where(np.arange(length) % 2, 1, -1)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.random.default_rng(0).normal(scale=1e-4, size=int(seconds * SAMPLE_RATE)).astype(np.float32)


def drawn(*seconds: float) -> Samples:
    """Speech and silence in turn."""
    return np.concatenate([silence(length) if turn % 2 else speech(length) for turn, length in enumerate(seconds)])


def blocks(samples: Samples, size: int) -> Iterator[Samples]:
    return (samples[begin : begin + size] for begin in range(0, len(samples), size))


def times(stretches: list[Stretch]) -> list[tuple[int, int]]:
    return [(begin := round(one.start * SAMPLE_RATE), begin + len(one.samples)) for one in stretches]


def check(recording: Samples, stretches: list[Stretch]) -> None:
    """Ordered, apart, at most 30 s, and a slice of the recording each."""
    end = 0
    for stretch, (begin, after) in zip(stretches, times(stretches), strict=True):
        assert begin >= end
        assert 0 < len(stretch.samples) <= WINDOW_SAMPLES
        np.testing.assert_array_equal(stretch.samples, recording[begin:after])
        end = after
    assert end <= len(recording)


LENGTHS = st.lists(st.floats(0.05, 45.0), min_size=1, max_size=8)


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, size=st.integers(1_000, 700_000))
def test_no_speech_is_lost_whatever_the_blocks(lengths: list[float], size: int) -> None:
    recording = drawn(*lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "VoiceDetector", Loudness)
        stretches = list(cut(blocks(recording, size), DEFAULT))
        assert times(stretches) == times(list(cut([recording], DEFAULT)))
    check(recording, stretches)
    kept = np.zeros(len(recording), bool)
    for begin, end in times(stretches):
        kept[begin:end] = True
    lost = np.flatnonzero((np.abs(recording) > 0.1) & ~kept)
    assert len(lost) <= 2 * FRAME * sum(length < 0.1 for length in lengths)  # a click of one frame is no speech


@settings(max_examples=10, deadline=None)
@given(lengths=LENGTHS, size=st.integers(1_000, 700_000))
def test_without_the_filter_every_sample_is_kept_once(lengths: list[float], size: int) -> None:
    recording = drawn(*lengths)
    stretches = list(cut(blocks(recording, size), Options(vad_filter=False)))
    check(recording, stretches)
    np.testing.assert_array_equal(np.concatenate([one.samples for one in stretches]), recording)


@pytest.mark.usefixtures("loudness")
def test_a_short_recording_is_one_stretch() -> None:
    (stretch,) = cut([drawn(2, 9, 3, 8, 5)], DEFAULT)
    assert len(stretch.samples) == 27 * SAMPLE_RATE


@pytest.mark.usefixtures("loudness")
def test_long_silences_are_left_out_but_for_some_padding() -> None:
    stretches = list(cut([np.concatenate([silence(5), drawn(10, 6, 12, 1.5, 4, 20)])], DEFAULT))
    assert [one.start for one in stretches] == pytest.approx([4.6, 20.6], abs=0.04)
    assert [len(one.samples) / SAMPLE_RATE for one in stretches] == pytest.approx([10.8, 18.3], abs=0.06)


@pytest.mark.usefixtures("loudness")
def test_long_speech_is_cut_at_the_last_long_pause() -> None:
    first, second, third = cut([drawn(8, 0.6, 13.4, 0.6, 4, 0.7, 1.0, 0.2, 22, 0.3, 9)], DEFAULT)
    assert first.start == 0.0
    assert 22 + 4.6 <= second.start <= 22 + 4.6 + 0.7  # not the shorter pause after it, nor a long one before it
    assert third.start == second.start + len(second.samples) / SAMPLE_RATE


@pytest.mark.usefixtures("loudness")
def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    recording = speech(45)
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
    for stretch in cut([recording], DEFAULT):
        assert np.flatnonzero(np.abs(stretch.samples) > 0.1)[0] < 0.5 * SAMPLE_RATE


@pytest.mark.usefixtures("loudness")
def test_a_stretch_comes_as_soon_as_its_end_is_certain() -> None:
    read = 0

    def reading() -> Iterator[Samples]:
        nonlocal read
        for block in blocks(drawn(*[10, 3] * 30), SAMPLE_RATE):
            read += len(block)
            yield block

    for stretch in cut(reading(), DEFAULT):
        end = stretch.start + len(stretch.samples) / SAMPLE_RATE
        assert read / SAMPLE_RATE <= max(end, 30) + 2 + 5.12 + 1


def test_an_empty_recording_has_no_stretch() -> None:
    assert list(cut([], DEFAULT)) == []
    assert list(cut([], Options(vad_filter=False))) == []


def test_a_recording_of_exactly_30_seconds_is_one_window() -> None:
    (stretch,) = cut([speech(30.0)], Options(vad_filter=False))
    assert len(stretch.samples) == WINDOW_SAMPLES


T = np.arange(12 * SAMPLE_RATE) / SAMPLE_RATE
NOISE = np.random.default_rng(0).normal(size=len(T))
NOBODY = {
    "silence": 0 * T,
    "noise": NOISE / 5,
    "rumble": np.cumsum(NOISE) / 500,
    "hum": np.sin(2 * np.pi * 50 * T) + 0.3 * np.sin(2 * np.pi * 150 * T),
    "tone": np.sin(2 * np.pi * 1000 * T),
    "beeps": np.sin(2 * np.pi * 880 * T) * (T % 1 < 0.2),
    "square": np.sign(np.sin(2 * np.pi * 100 * T)),
    "clicks": (np.random.default_rng(1).random(len(T)) < 1e-4) * 1.0,
}


@pytest.mark.parametrize("name", NOBODY)
@pytest.mark.parametrize("level", [0.5, 0.001])
def test_where_nobody_speaks_there_is_no_window(name: str, level: float) -> None:
    assert list(cut([(NOBODY[name] * level).astype(np.float32)], DEFAULT)) == []


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_every_word_of_the_samples_is_kept(path: Path, level: float) -> None:
    """Also 40 dB fainter: whatever is within 30 dB of the loudest moment."""
    with open_recording(path) as recording:
        whole = np.concatenate(list(recording.blocks())) * np.float32(level)
    stretches = list(cut([np.concatenate([np.tile(SECOND, 35), whole, SECOND])], DEFAULT))
    energy = np.convolve(whole**2, np.ones(800) / 800, mode="same")
    loud = 35 * SAMPLE_RATE + np.flatnonzero(energy > energy.max() * 1e-3)
    kept = np.zeros(len(loud), bool)
    for begin, end in times(stretches):
        kept |= (begin <= loud) & (loud < end)
    assert kept.all()


def test_isolated_digits_between_long_silences_are_all_kept() -> None:
    """The bare detector loses one in six: its state sticks in digital silence."""
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
    stretches = times(list(cut([np.concatenate(pieces)], DEFAULT)))
    for begin, end in spans:
        assert any(left <= begin and end <= right for left, right in stretches)
    assert len(stretches) == len(spans)


def test_the_detector_hears_a_recording_in_pieces_as_one_stream() -> None:
    recording = read_samples(RECORDINGS[0])[: 40 * FRAME]
    detector = VoiceDetector()
    pieces = [detector(piece) for piece in blocks(recording, 20 * FRAME)]
    assert [piece.shape for piece in pieces] == [(20,), (20,)]
    assert max(piece.max() for piece in pieces) > 0.9
