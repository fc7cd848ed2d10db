"""Log-mel spectrograms of windows in NumPy, and which frames of a window they have. `log_mel` makes them in PyTorch.

Both are the spectrograms that `whisper.transcribe` computes, up to rounding: they differ by 2e-5 at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from .. import openai_whisper
from ..types import HOP, WINDOW_FRAMES, Samples, Window

N_FFT = 400
RANGE = 8.0
"""Powers of ten. Mel powers further below the maximum are raised to this distance from it."""
_WHOLE_MARGIN = N_FFT // 2
"""Samples after a window that its last frame needs. With fewer the recording ends there, and silence follows."""
_LEAST_POWER = 1e-10
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


def log_mel_arrays(windows: Sequence[Window], n_mels: int) -> Samples:
    """Windows → float32 (windows, n_mels, 3000), on the caller's thread."""
    spectrograms = np.zeros((len(windows), n_mels, WINDOW_FRAMES), np.float32)
    for spectrogram, window in zip(spectrograms, windows, strict=True):
        _, _, kept = frame_range(window)
        power = _log_power(window.samples, window.margin, n_mels)
        maximum = power.max() if window.loudest is None else window.loudest
        spectrogram[:, :kept] = (np.maximum(power[:, :kept], np.float32(maximum - RANGE)) + 4) / 4
    return spectrograms


def loudest(samples: Samples, margin: tuple[int, int], n_mels: int) -> float:
    """log10 of the strongest mel power in a piece of a recording.

    The maximum over all pieces is the recording's `loudest`.
    """
    return float(_log_power(samples, margin, n_mels).max())


def frame_range(window: Window) -> tuple[int, int, int]:
    """Of the frames of the window's samples: the first one, the number searched for the maximum, the number kept."""
    searched = frames_between(len(window.samples), window.margin)
    last = (len(window.samples) + N_FFT) // HOP + 1
    counted = min(searched.stop, last) - searched.start
    return searched.start, counted, min((len(window.samples) - sum(window.margin)) // HOP, counted, WINDOW_FRAMES)


def loudest_or_nan(window: Window) -> float:
    """The window's `loudest`; NaN stands for None, the window's own maximum."""
    return math.nan if window.loudest is None else window.loudest


def frames_between(length: int, margin: tuple[int, int]) -> slice:
    """The frames of the samples between the margins, including those that reach beyond the recording's end."""
    before, after = margin
    first = before // HOP
    inside = (length - before - after) // HOP
    return slice(first, (length + N_FFT) // HOP if after < _WHOLE_MARGIN else first + inside)


def _log_power(samples: Samples, margin: tuple[int, int], n_mels: int) -> Samples:
    """log10 of the mel power, float32 (n_mels, frames), of the samples between the margins and of the silence that
    their end reaches into.

    whisper.transcribe appends 30 s of silence. N_FFT samples of it give the same frames and the same maximum.
    """
    from scipy.fft import rfft  # here: it takes 27 MB, which reader processes need for the strategy sequential only

    audio = np.pad(np.pad(samples, (0, N_FFT)), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(audio, N_FFT)[::HOP][frames_between(len(samples), margin)]
    spectra = rfft(frames * _HANN)
    power = np.ascontiguousarray((spectra.real**2 + spectra.imag**2).T, np.float32)
    mel_power = np.stack([(power[first : first + len(weights)] * weights).sum(axis=0) for first, weights in _bands(n_mels)])
    logarithm: Samples = np.log10(np.maximum(mel_power, np.float32(_LEAST_POWER)))
    return logarithm


@cache
def _bands(n_mels: int) -> tuple[tuple[int, Samples], ...]:
    """openai-whisper's filters: for each mel band its first bin of the spectrum, and the weights from there on, (bins, 1).

    A band has a few bins, so their sum is as fast as the product with the whole matrix, and takes no threads of BLAS.
    """
    with np.load(openai_whisper.folder() / "assets" / "mel_filters.npz", allow_pickle=False) as stored:
        filters: Samples = stored[f"mel_{n_mels}"]
    bins = [np.flatnonzero(weights) for weights in filters]
    return tuple((int(used[0]), weights[used[0] : used[-1] + 1, None]) for used, weights in zip(bins, filters, strict=True))
