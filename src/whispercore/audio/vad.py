"""Streaming voice activity detection with Silero's network, prepared so that it misses no word."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..types import Samples
from .silero import CONTEXT, FRAME, State, initial_state, network

# Missed words, measured on 2,400 of FSDD's digits with pauses of 0.05 to 8 s of digital silence at 0 to -40 dB:
# 123  the network alone: its state gets stuck in digital silence
# 175  with noise at -60 dBFS added, which masks faint speech
#   7  with each piece amplified to the level at which the network detects best
#   1  with each piece also classified from a fresh state, because a state after long silence is insensitive
_NOISE, _LEVEL, _MAX_GAIN = 0.001, 0.1, 1000.0
_LEVEL_DECAY = 0.7  # of the remembered level, per call, so that silence after speech is not amplified to the level of speech
_WARM_UP = 16  # frames, half a second; without it, 5% of the digits at the very start of a recording are missed


@dataclass(frozen=True, slots=True, eq=False)
class PieceFeatures:
    """A piece after the layers without state.

    `features`: shape (frames, 128); None for digital silence. `warm_up`: the features of the half second before it.
    `first`: no audio precedes the piece, or only digital silence.
    """

    frames: int
    features: Samples | None = None
    warm_up: Samples | None = None
    first: bool = True


class VoiceDetector:
    """Speech probabilities of one recording, called with its samples piece by piece, about five seconds each.

    `extract` and `classify` are its two halves. Each must be called once per piece, in order. One thread may extract a
    piece while another one classifies the piece before it.
    """

    def __init__(self) -> None:
        self._network = network()
        self._level = 0.0
        self._previous: Samples | None = None
        self._context = np.zeros(CONTEXT, np.float32)
        self._state = initial_state()

    def __call__(self, samples: Samples) -> Samples:
        """Samples, shape (512 n,), the last frame zero-padded → probabilities of the n frames, shape (n,)."""
        return self.classify(self.extract(samples))

    def extract(self, samples: Samples) -> PieceFeatures:
        """The first half: normalize the level and apply the layers without state."""
        frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
        normalized = self._normalized(frames)
        if not frames.any():  # digital silence, as on an unused channel, needs no network
            self._previous = None
            return PieceFeatures(len(frames))
        first, warm_up = self._previous is None, self._previous
        if warm_up is None:  # as if half a second of noise came before
            self._context = np.zeros(CONTEXT, np.float32)
            warm_up = self._features(_noise(_WARM_UP))
        features = self._features(normalized)
        self._previous = np.concatenate([warm_up, features])[-_WARM_UP:]
        return PieceFeatures(len(frames), features, warm_up, first)

    def classify(self, piece: PieceFeatures) -> Samples:
        """The second half: the LSTM, from the state so far and from a fresh one; the higher probability wins."""
        if piece.features is None or piece.warm_up is None:
            return np.zeros(piece.frames, np.float32)
        fresh = self._network.probabilities(piece.warm_up, initial_state())[1]
        state = fresh if piece.first else self._state
        probabilities, (h, c) = self._network.probabilities(piece.features, stacked(state, fresh))
        self._state = h[:, :1], c[:, :1]
        return np.asarray(probabilities.max(axis=1))

    def _normalized(self, frames: Samples) -> Samples:
        """The frames, amplified so that the loudest one has the level the network detects best, plus noise."""
        loudest = float(np.sqrt(np.square(frames).mean(axis=1).max()))
        self._level = max(loudest, self._level * _LEVEL_DECAY)
        gain = min(_LEVEL / self._level, _MAX_GAIN) if self._level else 1.0
        return frames * np.float32(gain) + _noise(len(frames))

    def _features(self, frames: Samples) -> Samples:
        """Frames, shape (n, 512), that follow those of the last call → shape (n, 128)."""
        tails = np.concatenate([self._context[None], frames[:-1, -CONTEXT:]])
        self._context = frames[-1, -CONTEXT:]
        return self._network.features(np.concatenate([tails, frames], axis=1))


def stacked(first: State, second: State) -> State:
    """Two states of the recurrent network as one of a batch of two."""
    return np.concatenate([first[0], second[0]], axis=1), np.concatenate([first[1], second[1]], axis=1)


@lru_cache(maxsize=4)
def _noise(frames: int) -> Samples:
    """White noise, always the same, shape (frames, 512)."""
    noise: Samples = np.random.default_rng(0).normal(scale=_NOISE, size=(frames, FRAME)).astype(np.float32)
    return noise
