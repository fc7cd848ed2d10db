"""Where there is voice in a sound that is still arriving."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from whispercore.audio.silero import CONTEXT, FRAME, initial_state, network
from whispercore.audio.vad import stacked
from whispercore.types import SAMPLE_RATE, Samples

from .audio import Pcm

BLOCK = 4
"""Frames of 32 ms that are classified together. What a client's messages hold does not change the result."""
_LEVEL, _MAX_GAIN = 0.1, 30.0
"""Quiet speech is amplified to the level at which the network detects best, by 30 dB at most: noise is not speech."""
_DECAY = 0.7 ** (BLOCK * FRAME / SAMPLE_RATE / 5.0)
"""Of the remembered level, for a block: 0.7 in five seconds, as in the detector of files."""
_NOISE = 0.001
_WARM_UP = 16


class StreamingVoiceDetector:
    """Silero's network over a stream, with its state kept from block to block.

    As in the core's detector of files, each frame is also classified from a state that has seen only the half second
    before the block: the state after a long silence is insensitive. The higher probability counts. Faint noise keeps
    the state from getting stuck in digital silence.
    """

    def __init__(self) -> None:
        """Raises ConfigurationError when faster-whisper, which brings the network, is missing."""
        self._network = network()
        self._rest = np.zeros(0, np.float32)
        self._level = 0.0
        self._context = np.zeros(CONTEXT, np.float32)
        self._state = initial_state()
        self._before = self._features(np.zeros((_WARM_UP, FRAME), np.float32) + _noise(_WARM_UP))

    def __call__(self, samples: Pcm) -> list[float]:
        """The next samples → the speech probabilities of the frames of 512 samples that are complete now, in blocks of four."""
        self._rest = np.concatenate([self._rest, samples.astype(np.float32) / 32768])
        size = BLOCK * FRAME
        blocks = [self._rest[at : at + size] for at in range(0, len(self._rest) - size + 1, size)]
        self._rest = self._rest[len(blocks) * size :]
        return [probability for block in blocks for probability in self._classify(block.reshape(BLOCK, FRAME))]

    def _classify(self, frames: Samples) -> list[float]:
        loudest = float(np.sqrt(np.square(frames).mean(axis=1).max()))
        self._level = max(loudest, self._level * _DECAY)
        gain = min(_LEVEL / self._level, _MAX_GAIN) if self._level else 1.0
        features = self._features(frames * np.float32(gain) + _noise(BLOCK))
        fresh = self._network.probabilities(self._before, initial_state())[1]
        probabilities, (h, c) = self._network.probabilities(features, stacked(self._state, fresh))
        self._state = h[:, :1], c[:, :1]
        self._before = np.concatenate([self._before, features])[-_WARM_UP:]
        return [float(probability) for probability in probabilities.max(axis=1)]

    def _features(self, frames: Samples) -> Samples:
        tails = np.concatenate([self._context[None], frames[:-1, -CONTEXT:]])
        self._context = frames[-1, -CONTEXT:]
        return self._network.features(np.concatenate([tails, frames], axis=1))


@lru_cache(maxsize=2)
def _noise(frames: int) -> Samples:
    noise: Samples = np.random.default_rng(0).normal(scale=_NOISE, size=(frames, FRAME)).astype(np.float32)
    return noise
