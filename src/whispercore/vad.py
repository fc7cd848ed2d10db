"""Where somebody speaks: Silero's voice activity detector (v6, the copy inside faster-whisper), streamed."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigurationError
from .types import Samples

FRAME = 512
_CONTEXT = 64
# How words are not missed, measured on 2,400 of FSDD's digits with pauses of 0.05 to 8 s at 0 to -40 dB: the bare detector
# missed 124. Its state sticks in digital silence (with a hiss of -60 dBFS: 51), it hears best at one level (24), and its
# memory of long silence deafens it: each piece is heard a second time without memory (1).
_HISS, _LEVEL, _MAX_GAIN = 0.001, 0.1, 1000.0
_FADE = 0.7  # of the remembered level with each call: silence after speech is not raised to the level of speech
_WARM_UP = 16  # frames; without half a second before it, 5% of the digits that begin at once are missed

_State = tuple[Samples, Samples, Samples]  # the last 64 samples, and the network's h and c


class VoiceDetector:
    """Speech probabilities of one recording, called with its samples piece by piece: about five seconds each."""

    def __init__(self) -> None:
        self._level = 0.0
        self._heard = _hiss(_WARM_UP)
        self._state = self._forgetful()

    def __call__(self, samples: Samples) -> Samples:
        """Probabilities, shape (n,), of the n frames of 512 samples in `samples`, shape (512 n,); the last frame zero-padded."""
        frames = self._levelled(np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME))
        anew, _ = _run(frames, self._forgetful())
        probabilities, self._state = _run(frames, self._state)
        self._heard = np.concatenate([self._heard, frames])[-_WARM_UP:]
        return np.maximum(probabilities, anew)

    def _levelled(self, frames: Samples) -> Samples:
        """The loudest frame at the level the detector knows best, and the hiss."""
        loudest = float(np.sqrt(np.square(frames).mean(axis=1).max()))
        self._level = max(loudest, self._level * _FADE)
        gain = min(_LEVEL / self._level, _MAX_GAIN) if self._level else 1.0
        return frames * np.float32(gain) + _hiss(len(frames))

    def _forgetful(self) -> _State:
        """A state that knows only the last half second."""
        zeros = np.zeros((1, 1, 128), np.float32)
        return _run(self._heard, (np.zeros(_CONTEXT, np.float32), zeros, zeros))[1]


def _run(frames: Samples, state: _State) -> tuple[Samples, _State]:
    """Probabilities of `frames`, shape (n, 512), each heard with the 64 samples before it, and the state after them."""
    context, h, c = state
    tails = np.concatenate([context[None], frames[:-1, -_CONTEXT:]])
    inputs = {"input": np.concatenate([tails, frames], axis=1), "h": h, "c": c}
    probabilities, h, c = _session().run(None, inputs)
    return np.asarray(probabilities, np.float32).reshape(-1), (frames[-1, -_CONTEXT:], h, c)


@lru_cache(maxsize=4)
def _hiss(frames: int) -> Samples:
    """White noise, the same each time, shape (frames, 512)."""
    noise: Samples = np.random.default_rng(0).normal(scale=_HISS, size=(frames, FRAME)).astype(np.float32)
    return noise


@lru_cache(maxsize=1)
def _session() -> Any:
    """One session for all recordings: its run may be called from many threads."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.31 has some built in
    import onnxruntime  # costs 0.1 s: only when the filter is used

    package = importlib.util.find_spec("faster_whisper")  # not imported: that costs seconds
    if package is None or package.origin is None:
        raise ConfigurationError("the voice activity detector is missing: pip install 'faster-whisper>=1.2.1'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    path = Path(package.origin).parent / "assets" / "silero_vad_v6.onnx"
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"], sess_options=options)
