"""Log-mel spectrograms of windows, the same numbers as `whisper.transcribe` feeds its model."""

from __future__ import annotations

import math
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
    return _scaled(window, _log_power(window.samples, window.margin, n_mels, device))


def log_mels(windows: Sequence[Window], n_mels: int, device: str = "cpu") -> torch.Tensor:
    """Windows → float32 (windows, n_mels, 3000); on a GPU all at once."""
    if torch.device(device).type != "cpu":
        return log_mels_together(windows, n_mels, device)
    return torch.stack([log_mel(window, n_mels, device) for window in windows])


def log_mels_together(windows: Sequence[Window], n_mels: int, device: str) -> torch.Tensor:
    """The same as `log_mels` in one transform, but for the order of sums; one copy to the device, which nobody waits for."""
    audio = torch.zeros(len(windows), max(len(window.samples) for window in windows) + N_FFT)
    for row, window in zip(audio, windows, strict=True):
        row[: len(window.samples)] = torch.from_numpy(window.samples)
    facts = torch.tensor([[*cut(window), loudness(window)] for window in windows], dtype=torch.float64)
    if torch.device(device).type == "cuda":
        audio, facts = audio.pin_memory(), facts.pin_memory()
    audio, facts = audio.to(device, non_blocking=True), facts.to(device, non_blocking=True)
    return log_mels_of(audio, facts[:, :3].long(), facts[:, 3].float(), n_mels)


def log_mels_of(audio: torch.Tensor, cuts: torch.Tensor, loudest: torch.Tensor, n_mels: int) -> torch.Tensor:
    """Samples (windows, n), silence after each for N_FFT at least, with each window's `cut` (windows, 3) and `loudness` (windows,).

    Float32 (windows, n_mels, 3000). Nothing here waits for the device, and all sizes are those of `audio`.
    """
    power = _mel_power(_transform(audio), n_mels)
    first, counted, heard = (each[:, None, None] for each in cuts.unbind(1))
    columns = torch.arange(power.shape[2], device=audio.device)
    own = power.masked_fill((columns < first) | (columns >= first + counted), -torch.inf).amax(dim=(1, 2))
    least = (torch.where(loudest.isnan(), own, loudest) - _RANGE)[:, None, None]
    frames = torch.arange(N_FRAMES, device=audio.device)
    chosen = (first + frames).clamp(max=power.shape[2] - 1).expand(-1, n_mels, -1)
    return ((power.gather(2, chosen).maximum(least) + 4.0) / 4.0).masked_fill(frames >= heard, 0.0)


def cut(window: Window) -> tuple[int, int, int]:
    """Of the frames that its samples make: its first one, how many count for its loudest moment, how many are heard."""
    frames = _frames(len(window.samples), window.margin)
    last = (len(window.samples) + N_FFT) // HOP_LENGTH + 1
    counted = min(frames.stop, last) - frames.start
    return frames.start, counted, min((len(window.samples) - sum(window.margin)) // HOP_LENGTH, counted, N_FRAMES)


def loudness(window: Window) -> float:
    """`loudest`, not a number where it is the window's own."""
    return math.nan if window.loudest is None else window.loudest


def loudest(samples: Samples, margin: tuple[int, int], n_mels: int) -> float:
    """log10 of the strongest mel power of a piece of a recording, cut as a window is: the maximum of all pieces is the recording's."""
    return float(_log_power(samples, margin, n_mels, "cpu").max())


def _log_power(samples: Samples, margin: tuple[int, int], n_mels: int, device: str) -> torch.Tensor:
    """log10 of the mel power, float32 (n_mels, frames): of the samples between the margins, and what the last of them adds to silence.

    whisper.transcribe appends 30 s of silence; one frame of it gives the same frames and the same maximum at half the cost.
    """
    transform = _transform(pad(torch.from_numpy(samples).to(device), (0, N_FFT)))
    return _mel_power(transform[:, _frames(len(samples), margin)], n_mels)


def _transform(audio: torch.Tensor) -> torch.Tensor:
    """Samples (…, n) → complex64 (…, 201, frames)."""
    return torch.stft(audio, N_FFT, HOP_LENGTH, window=torch.hann_window(N_FFT, device=audio.device), return_complex=True)


def _frames(length: int, margin: tuple[int, int]) -> slice:
    """The frames that are of the samples between the margins: also those that the last of them adds to silence."""
    before, after = margin
    first = before // HOP_LENGTH
    inside = (length - before - after) // HOP_LENGTH
    return slice(first, (length + N_FFT) // HOP_LENGTH if after < _WHOLE_MARGIN else first + inside)


def _mel_power(transform: torch.Tensor, n_mels: int) -> torch.Tensor:
    """log10 of the mel power (…, n_mels, frames)."""
    logarithm: torch.Tensor = torch.clamp(mel_filters(transform.device, n_mels) @ transform.abs() ** 2, min=1e-10).log10()
    return logarithm


def _scaled(window: Window, power: torch.Tensor) -> torch.Tensor:
    """A window's frames as the model wants them: 0 beyond them, nothing far below the loudest moment."""
    loudest = power.max() if window.loudest is None else window.loudest
    frames = (len(window.samples) - sum(window.margin)) // HOP_LENGTH
    heard: torch.Tensor = pad_or_trim((power[:, :frames].clamp(min=loudest - _RANGE) + 4.0) / 4.0, N_FRAMES)
    return heard
