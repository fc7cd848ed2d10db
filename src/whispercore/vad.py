"""Where somebody speaks: Silero's voice activity detector (v6, the copy inside faster-whisper), streamed."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigurationError
from .types import Samples

FRAME = 512
_CONTEXT = 64
# Without silence before it the detector misses 5% of the digits of FSDD, which begin at once; with half a second none.
_SILENT_FRAMES = 16
# It hears down to about -45 dBFS; below, the loudest frame is raised to -30 dBFS, by 60 dB at most.
_FAINT, _MAX_GAIN = 0.03, 1000.0
_FADE = 0.7  # of the remembered level with each call: silence after speech is not raised to the level of speech


class VoiceDetector:
    """Speech probabilities of one recording, called with its samples piece by piece."""

    def __init__(self) -> None:
        self._session = _session()
        self._context = np.zeros(_CONTEXT, np.float32)
        self._h = self._c = np.zeros((1, 1, 128), np.float32)
        self._level = 0.0
        self._run(np.zeros((_SILENT_FRAMES, FRAME), np.float32))

    def __call__(self, samples: Samples) -> Samples:
        """Probabilities, shape (n,), of the n frames of 512 samples in `samples`, shape (512 n,); the last frame zero-padded."""
        frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
        loudest = float(np.sqrt(np.square(frames).mean(axis=1).max()))
        self._level = max(loudest, self._level * _FADE)
        gain = min(max(_FAINT / self._level, 1.0), _MAX_GAIN) if self._level else 1.0
        return self._run(frames * np.float32(gain))

    def _run(self, frames: npt.NDArray[np.float32]) -> Samples:
        """`frames`: shape (n, 512); each is heard with the 64 samples before it."""
        tails = np.concatenate([self._context[None], frames[:-1, -_CONTEXT:]])
        inputs = {"input": np.concatenate([tails, frames], axis=1), "h": self._h, "c": self._c}
        probabilities, self._h, self._c = self._session.run(None, inputs)
        self._context = frames[-1, -_CONTEXT:]
        return np.asarray(probabilities, np.float32).reshape(-1)


@lru_cache(maxsize=1)
def _session() -> Any:
    """One session for all recordings: its run may be called from many threads."""
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
