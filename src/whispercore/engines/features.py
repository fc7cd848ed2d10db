"""Log-mel spectrograms of windows, the same numbers as `whisper.transcribe` feeds its model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, mel_filters, pad_or_trim

from ..types import Samples, Window

_WHOLE_MARGIN = N_FFT // 2
"""With so many samples after a window its last frame sees no silence; with fewer the recording ends there."""
_RANGE = 8.0
"""What is weaker than the loudest moment by so many powers of ten is raised to that."""


def log_mel(window: Window, n_mels: int, device: str = "cpu") -> torch.Tensor:
    """A window → float32 (n_mels, 3000), as whisper.transcribe cuts it out of the spectrogram of the whole recording.

    Silence follows the recording's last sample, and frames beyond the window are 0, not silence.
    """
    power = _log_power(window.samples, window.margin, n_mels, device)
    loudest = power.max() if window.loudest is None else window.loudest
    frames = (len(window.samples) - sum(window.margin)) // HOP_LENGTH
    heard: torch.Tensor = pad_or_trim((power[:, :frames].clamp(min=loudest - _RANGE) + 4.0) / 4.0, N_FRAMES)
    return heard


def log_mels(windows: Sequence[Window], n_mels: int, device: str = "cpu") -> torch.Tensor:
    """Windows → float32 (windows, n_mels, 3000)."""
    return torch.stack([log_mel(window, n_mels, device) for window in windows])


def loudest(samples: Samples, margin: tuple[int, int], n_mels: int) -> float:
    """log10 of the strongest mel power of a piece of a recording, cut as a window is: the maximum of all pieces is the recording's."""
    return float(_log_power(samples, margin, n_mels, "cpu").max())


def _log_power(samples: Samples, margin: tuple[int, int], n_mels: int, device: str) -> torch.Tensor:
    """log10 of the mel power, float32 (n_mels, frames): of the samples between the margins, and what the last of them adds to silence.

    whisper.transcribe appends 30 s of silence; one frame of it gives the same frames and the same maximum at half the cost.
    """
    before, after = margin
    audio = pad(torch.from_numpy(samples).to(device), (0, N_FFT))
    transform = torch.stft(audio, N_FFT, HOP_LENGTH, window=torch.hann_window(N_FFT, device=device), return_complex=True)
    first = before // HOP_LENGTH
    inside = (len(samples) - before - after) // HOP_LENGTH
    last = transform.shape[-1] - 1 if after < _WHOLE_MARGIN else first + inside
    power = mel_filters(transform.device, n_mels) @ transform[:, first:last].abs() ** 2
    logarithm: torch.Tensor = torch.clamp(power, min=1e-10).log10()
    return logarithm
