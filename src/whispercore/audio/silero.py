"""Silero's voice activity network, v6 (https://github.com/snakers4/silero-vad), in two parts that need a fifth of the
CPU time.

The original encodes frames and updates its recurrent state in one step, so a frame that is needed with two states is
encoded twice. Here the Fourier transform is two products with half as many terms as the convolution, the four
convolutions over a frame's four spectra are dense layers, and the recurrent layer runs several states as a batch. The
results are the same.
whisper-models/silero/prepare.py makes the two networks in silero_vad_v6/ from Silero's file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Samples

FRAME = 512
CONTEXT = 64
FEATURES = 128
_HOP = 128
_WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)).astype(np.float32)
"""Hann's, periodic: the one in Silero's file, bit by bit."""
_HALF = len(_WINDOW) // 2
_ANGLES = 2 * np.pi * np.outer(np.arange(_HALF + 1), np.arange(_HALF + 1)) / len(_WINDOW)
_COSINES, _SINES = np.cos(_ANGLES).astype(np.float32), np.sin(_ANGLES[1:-1]).astype(np.float32)
_NETWORKS = Path(__file__).parent / "silero_vad_v6"

State = tuple[Samples, Samples]
"""A batch of b LSTM states: h and c, shape (1, b, 128) each."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Two onnxruntime sessions. Any number of threads may run them."""

    encoder: Any
    recurrent: Any

    def features(self, frames: Samples) -> Samples:
        """Frames, each after the 64 samples before it, shape (n, 576) → the LSTM's input, shape (n, 128)."""
        padded = np.pad(frames, ((0, 0), (0, CONTEXT)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(_WINDOW), axis=1)[:, ::_HOP]
        magnitudes = _magnitudes((windows * _WINDOW).reshape(-1, len(_WINDOW)))
        features: Samples = self.encoder.run(None, {"x": magnitudes.reshape(len(frames), -1)})[0]
        return features

    def probabilities(self, features: Samples, state: State) -> tuple[Samples, State]:
        """Features in order, shape (n, 128), and b states → speech probabilities, shape (n, b), and the new states."""
        h, c = state
        repeated = np.repeat(features[:, None], h.shape[1], axis=1)
        probabilities, h, c = self.recurrent.run(None, {"x": repeated, "h": h, "c": c})
        return probabilities.reshape(len(features), -1), (h, c)


def _magnitudes(rows: Samples) -> Samples:
    """Of the Fourier transform of each row, shape (n, 256) → (n, 129).

    A cosine is even and a sine is odd, so that a row's first half, plus or minus its mirrored second half, is enough. SciPy's FFT takes
    half of the time, 0.1 s less for an hour of audio, but 27 MB more in each process; NumPy's takes four times as long.
    """
    mirrored = rows[:, :_HALF:-1]
    even = rows[:, : _HALF + 1].copy()
    even[:, 1:-1] += mirrored
    odd = rows[:, 1:_HALF] - mirrored
    magnitudes: Samples = np.sqrt(np.square(even @ _COSINES) + np.square(odd @ _SINES))
    return magnitudes


def initial_state() -> State:
    """A batch of one state, before any audio."""
    return np.zeros((1, 1, FEATURES), np.float32), np.zeros((1, 1, FEATURES), np.float32)


@lru_cache(maxsize=1)
def network() -> Network:
    """The process's only copy of the network."""
    return Network(_session(_NETWORKS / "encoder.onnx"), _session(_NETWORKS / "recurrent.onnx"))


def _session(file: Path) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # built into onnxruntime since 1.31
    import onnxruntime  # here: it takes 0.1 s, and only voice detection needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"], sess_options=options)
