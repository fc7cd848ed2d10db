"""Log-mel spectrograms of windows, the same numbers as `whisper.transcribe` feeds its model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, log_mel_spectrogram, pad_or_trim

from ..types import Samples, Window


def log_mel(samples: Samples, n_mels: int, device: str = "cpu") -> torch.Tensor:
    """(n,) samples → float32 (n_mels, 3000).

    As whisper.transcribe: silence follows the samples, and frames beyond them are 0, not silence. It appends 30 s of zeros;
    one STFT frame of them gives the same frames and the same maximum at half the cost.
    """
    spectrogram = log_mel_spectrogram(samples, n_mels, padding=N_FFT, device=device)
    heard: torch.Tensor = pad_or_trim(spectrogram[:, : len(samples) // HOP_LENGTH], N_FRAMES)
    return heard


def log_mels(windows: Sequence[Window], n_mels: int, device: str = "cpu") -> torch.Tensor:
    """Windows → float32 (windows, n_mels, 3000)."""
    return torch.stack([log_mel(window.samples, n_mels, device) for window in windows])
