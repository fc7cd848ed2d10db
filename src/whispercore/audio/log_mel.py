"""Log-mel spectrograms of windows in PyTorch, equal to those that `whisper.transcribe` computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from whisper.audio import HOP_LENGTH, N_FRAMES, mel_filters, pad_or_trim

from ..types import Samples, Window
from .spectrogram import N_FFT, RANGE, frame_range, frames_between, loudest_or_nan


def log_mel(window: Window, n_mels: int, device: str = "cpu") -> torch.Tensor:
    """A window → float32 (n_mels, 3000), as whisper.transcribe cuts it out of the whole recording's spectrogram.

    Silence follows the recording's last sample. Frames beyond the window are 0, which is not silence.
    """
    return _scaled(window, _log_power(window.samples, window.margin, n_mels, device))


def log_mels(windows: Sequence[Window], n_mels: int, device: str = "cpu") -> torch.Tensor:
    """Windows → float32 (windows, n_mels, 3000); on a GPU in one batch."""
    if torch.device(device).type != "cpu":
        return log_mels_batched(windows, n_mels, device)
    return torch.stack([log_mel(window, n_mels, device) for window in windows])


def log_mels_batched(windows: Sequence[Window], n_mels: int, device: str) -> torch.Tensor:
    """The same as `log_mels` up to rounding, in one batched transform after one asynchronous copy to the device."""
    audio = torch.zeros(len(windows), max(len(window.samples) for window in windows) + N_FFT)
    for row, window in zip(audio, windows, strict=True):
        row[: len(window.samples)] = torch.from_numpy(window.samples)
    ranges = torch.tensor([[*frame_range(window), loudest_or_nan(window)] for window in windows], dtype=torch.float64)
    if torch.device(device).type == "cuda":
        audio, ranges = audio.pin_memory(), ranges.pin_memory()
    audio, ranges = audio.to(device, non_blocking=True), ranges.to(device, non_blocking=True)
    return log_mels_of(audio, ranges[:, :3].long(), ranges[:, 3].float(), n_mels)


def log_mels_of(audio: torch.Tensor, ranges: torch.Tensor, loudest: torch.Tensor, n_mels: int) -> torch.Tensor:
    """Samples (windows, n) → float32 (windows, n_mels, 3000).

    At least N_FFT zeros follow each window's samples. `ranges`: each window's `frame_range`, shape (windows, 3);
    `loudest`: its `loudest_or_nan`, shape (windows,). Nothing here synchronizes with the device, and all shapes follow
    from the shape of `audio`.
    """
    power = _mel_power(_transform(audio), n_mels)
    first, counted, kept = (column[:, None, None] for column in ranges.unbind(1))
    indices = torch.arange(power.shape[2], device=audio.device)
    own = power.masked_fill((indices < first) | (indices >= first + counted), -torch.inf).amax(dim=(1, 2))
    floor = (torch.where(loudest.isnan(), own, loudest) - RANGE)[:, None, None]
    frames = torch.arange(N_FRAMES, device=audio.device)
    selected = (first + frames).clamp(max=power.shape[2] - 1).expand(-1, n_mels, -1)
    return ((power.gather(2, selected).maximum(floor) + 4.0) / 4.0).masked_fill(frames >= kept, 0.0)


def _log_power(samples: Samples, margin: tuple[int, int], n_mels: int, device: str) -> torch.Tensor:
    """log10 of the mel power, float32 (n_mels, frames), of the samples between the margins and of the silence that
    their end reaches into.

    whisper.transcribe appends 30 s of silence. N_FFT samples of it give the same frames and the same maximum at half
    the cost.
    """
    transform = _transform(pad(torch.from_numpy(samples).to(device), (0, N_FFT)))
    return _mel_power(transform[:, frames_between(len(samples), margin)], n_mels)


def _transform(audio: torch.Tensor) -> torch.Tensor:
    """Samples (…, n) → complex64 (…, 201, frames)."""
    return torch.stft(audio, N_FFT, HOP_LENGTH, window=torch.hann_window(N_FFT, device=audio.device), return_complex=True)


def _mel_power(transform: torch.Tensor, n_mels: int) -> torch.Tensor:
    """log10 of the mel power (…, n_mels, frames)."""
    logarithm: torch.Tensor = torch.clamp(mel_filters(transform.device, n_mels) @ transform.abs() ** 2, min=1e-10).log10()
    return logarithm


def _scaled(window: Window, power: torch.Tensor) -> torch.Tensor:
    """A window's frames as the model takes them: scaled, bounded below by the maximum, zero beyond the window."""
    loudest = power.max() if window.loudest is None else window.loudest
    frames = (len(window.samples) - sum(window.margin)) // HOP_LENGTH
    scaled: torch.Tensor = pad_or_trim((power[:, :frames].clamp(min=loudest - RANGE) + 4.0) / 4.0, N_FRAMES)
    return scaled
