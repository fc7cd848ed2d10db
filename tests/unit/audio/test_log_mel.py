"""Spectrograms of windows against those that whisper.transcribe cuts out of the whole recording's."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st

from whispercore.audio.log_mel import log_mel, log_mels, log_mels_batched
from whispercore.audio.recording import read_samples
from whispercore.audio.spectrogram import log_mel_arrays, loudest
from whispercore.types import WINDOW_SAMPLES, Decoding, Samples, Window

ROOT = Path(__file__).resolve().parents[3]
HOP, BEFORE, AFTER = 160, 320, 200


def noise(length: int, seed: int = 0) -> Samples:
    """Noise that swells and fades: its loudest moment is in one place only."""
    random = np.random.default_rng(seed)
    swell = np.interp(np.arange(length), np.linspace(0, length, 9), random.uniform(0, 1, 9) ** 6)
    return (random.normal(0, 0.2, length) * swell).astype(np.float32)


def cut(recording: Samples, seek: int, frames: int, loudness: float | None = None) -> Window:
    """A window out of a recording with the margins that a strategy gives it."""
    begin, end = seek * HOP, min((seek + frames) * HOP, len(recording))
    before, after = min(begin, BEFORE), min(AFTER, len(recording) - end)
    return Window(recording[begin - before : end + after], begin / 16_000, Decoding(), (before, after), loudness)


def spectrogram(recording: Samples, n_mels: int = 80) -> torch.Tensor:
    """whisper.transcribe's spectrogram of a whole recording."""
    return whisper.audio.log_mel_spectrogram(recording, n_mels, padding=WINDOW_SAMPLES)


def of_whisper(whole: torch.Tensor, seek: int, frames: int) -> torch.Tensor:
    """Frames of the whole recording's spectrogram, as whisper.transcribe feeds them to its model."""
    frames = min(frames, whole.shape[-1] - 3000 - seek)
    return whisper.audio.pad_or_trim(whole[:, seek : seek + frames], 3000)


def loudest_of(recording: Samples, n_mels: int = 80, frames: int = 700) -> float:
    """Of all pieces, as of a recording too long to be in memory."""
    pieces = [cut(recording, seek, frames) for seek in range(0, -(-len(recording) // HOP), frames)]
    return max(loudest(piece.samples, piece.margin, n_mels) for piece in pieces)


def whole_maximum(recording: Samples, n_mels: int = 80) -> float:
    """log10 of the whole recording's strongest mel power; whisper.audio maps it to (x + 4) / 4."""
    return float(spectrogram(recording, n_mels).max()) * 4 - 4


LONG = noise(75 * 16_000 + 77)


@cache
def long_spectrogram(n_mels: int) -> tuple[torch.Tensor, float]:
    """Of `LONG`: whisper.transcribe's spectrogram, and our loudest moment."""
    return spectrogram(LONG, n_mels), loudest_of(LONG, n_mels)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    ("seek", "frames"), [(0, 3000), (0, 700), (1, 3000), (2, 500), (1234, 3000), (3001, 999), (6000, 3000), (7400, 3000), (7499, 3000)]
)
def test_a_window_of_a_long_recording_has_its_frames(seek: int, frames: int, n_mels: int) -> None:
    whole, maximum = long_spectrogram(n_mels)
    ours, theirs = log_mel(cut(LONG, seek, frames, maximum), n_mels), of_whisper(whole, seek, frames)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_speech_in_windows_has_its_frames() -> None:
    paths = sorted((ROOT / "tests" / "data" / "heldout").glob("synthetic-*.flac"))
    recording = np.concatenate([read_samples(path) for path in paths])
    assert len(recording) > 2 * WINDOW_SAMPLES
    whole, maximum = spectrogram(recording), loudest_of(recording)
    for seek in (0, 1471, 3000, len(recording) // HOP - 1100):
        ours = log_mel(cut(recording, seek, 3000, maximum), 80)
        torch.testing.assert_close(ours, of_whisper(whole, seek, 3000), rtol=0, atol=1e-5)


@settings(max_examples=settings().max_examples // 4)
@given(length=st.integers(1, 9_600), seek=st.integers(0, 80), frames=st.integers(1, 80), seed=st.integers(0, 9))
def test_any_window_of_any_recording_has_its_frames(length: int, seek: int, frames: int, seed: int) -> None:
    recording = noise(length, seed)
    seek = min(seek, (length - 1) // HOP)
    ours = log_mel(cut(recording, seek, frames, loudest_of(recording, frames=frames)), 80)
    torch.testing.assert_close(ours, of_whisper(spectrogram(recording), seek, frames), rtol=0, atol=2e-5)


@pytest.mark.parametrize("length", [1, 100, 5 * 16_000 + 77, WINDOW_SAMPLES])
def test_a_window_alone_is_scaled_by_itself(length: int) -> None:
    recording = noise(length, seed=length)
    assert torch.equal(log_mel(Window(recording, 0.0, Decoding()), 80), of_whisper(spectrogram(recording), 0, 3000))


def test_the_loudest_moment_may_be_in_another_window() -> None:
    recording = np.concatenate([noise(30 * 16_000) * np.float32(1e-3), noise(16_000, seed=1)])
    apart = log_mel(cut(recording, 0, 1000), 80)
    scaled = log_mel(cut(recording, 0, 1000, loudest_of(recording)), 80)
    assert not torch.allclose(apart, scaled, atol=0.1)
    torch.testing.assert_close(scaled, of_whisper(spectrogram(recording), 0, 1000), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 160, 700 * HOP, 700 * HOP + 1, 700 * HOP + 201, 2100 * HOP + 159])
def test_the_loudest_of_the_pieces_is_the_recordings(length: int) -> None:
    recording = np.zeros(length, np.float32)
    recording[-1] = 0.5  # only the frames in the silence after it see it whole
    assert loudest_of(recording) == pytest.approx(whole_maximum(recording), abs=1e-5)


def test_a_batch_is_its_windows() -> None:
    windows = [cut(noise(16_000, seed), 10, 50) for seed in range(3)]
    assert torch.equal(log_mels(windows, 80), torch.stack([log_mel(window, 80) for window in windows]))


@pytest.mark.parametrize("n_mels", [80, 128])
def test_windows_together_have_the_same_frames(n_mels: int) -> None:
    """A batch, as a GPU computes it and as NumPy does: the other windows' lengths and maxima do not change a window."""
    recording = noise(40 * 16_000 + 77)
    cuts = [cut(recording, seek, frames) for seek, frames in ((0, 3000), (0, 700), (1234, 3000), (3999, 3000))]
    windows = [*cuts, cut(recording, 1000, 500, 1.5), *(Window(recording[:length], 0.0, Decoding()) for length in (1, 159, 160, 16_001))]
    assert torch.allclose(log_mels_batched(windows, n_mels, "cpu"), log_mels(windows, n_mels), atol=1e-5)
    numpy = torch.from_numpy(log_mel_arrays(windows, n_mels))
    torch.testing.assert_close(numpy, log_mels(windows, n_mels), rtol=0, atol=2e-5)
