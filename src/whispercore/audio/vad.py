"""Where somebody speaks: Silero's voice activity detector, streamed, so that no word is missed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..types import Samples
from .silero import CONTEXT, FRAME, Memory, network, nothing

# How words are not missed, measured on 2,400 of FSDD's digits with pauses of 0.05 to 8 s of digital silence at 0 to -40 dB: the bare
# network missed 123. Its state sticks in digital silence, so a hiss of -60 dBFS is added; that drowns what is faint (175), so each
# piece is raised to the level it hears best (7); its memory of long silence deafens it, so each piece is also heard without (1).
_HISS, _LEVEL, _MAX_GAIN = 0.001, 0.1, 1000.0
_FADE = 0.7  # of the remembered level with each call: silence after speech is not raised to the level of speech
_WARM_UP = 16  # frames; without half a second before it, 5% of the digits that begin at once are missed


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """A piece as the network hears it, before it remembers anything.

    `features`, shape (frames, 128), None of digital silence; `before`: those of the half second before it; `begins`: nothing came before.
    """

    frames: int
    features: Samples | None = None
    before: Samples | None = None
    begins: bool = True


class VoiceDetector:
    """Speech probabilities of one recording, called with its samples piece by piece: about five seconds each.

    `hear` and `judge` are its halves, each called once for a piece and in their order: one thread may hear a piece while another judges
    the one before it.
    """

    def __init__(self) -> None:
        self._network = network()
        self._level = 0.0
        self._before: Samples | None = None
        self._context = np.zeros(CONTEXT, np.float32)
        self._memory = nothing()

    def __call__(self, samples: Samples) -> Samples:
        """Probabilities, shape (n,), of the n frames of 512 samples in `samples`, shape (512 n,); the last frame zero-padded."""
        return self.judge(self.hear(samples))

    def hear(self, samples: Samples) -> Sound:
        """The first half: levelled, and through the layers that know one frame only."""
        frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
        levelled = self._levelled(frames)
        if not frames.any():  # an unused channel costs nothing
            self._before = None
            return Sound(len(frames))
        begins, before = self._before is None, self._before
        if before is None:  # half a second of hiss has been heard, nothing else
            self._context = np.zeros(CONTEXT, np.float32)
            before = self._features(_hiss(_WARM_UP))
        features = self._features(levelled)
        self._before = np.concatenate([before, features])[-_WARM_UP:]
        return Sound(len(frames), features, before, begins)

    def judge(self, sound: Sound) -> Samples:
        """The second half: the layers that remember, with all that came before and with half a second of it."""
        if sound.features is None or sound.before is None:
            return np.zeros(sound.frames, np.float32)
        anew = self._network.listen(sound.before, nothing())[1]
        memory = anew if sound.begins else self._memory
        probabilities, (h, c) = self._network.listen(sound.features, _both(memory, anew))
        self._memory = h[:, :1], c[:, :1]
        return np.asarray(probabilities.max(axis=1))

    def _levelled(self, frames: Samples) -> Samples:
        """The loudest frame at the level the detector knows best, and the hiss."""
        loudest = float(np.sqrt(np.square(frames).mean(axis=1).max()))
        self._level = max(loudest, self._level * _FADE)
        gain = min(_LEVEL / self._level, _MAX_GAIN) if self._level else 1.0
        return frames * np.float32(gain) + _hiss(len(frames))

    def _features(self, frames: Samples) -> Samples:
        """Of frames, shape (n, 512), that follow those of the last call: shape (n, 128)."""
        tails = np.concatenate([self._context[None], frames[:-1, -CONTEXT:]])
        self._context = frames[-1, -CONTEXT:]
        return self._network.features(np.concatenate([tails, frames], axis=1))


def _both(one: Memory, other: Memory) -> Memory:
    return np.concatenate([one[0], other[0]], axis=1), np.concatenate([one[1], other[1]], axis=1)


@lru_cache(maxsize=4)
def _hiss(frames: int) -> Samples:
    """White noise, the same each time, shape (frames, 512)."""
    noise: Samples = np.random.default_rng(0).normal(scale=_HISS, size=(frames, FRAME)).astype(np.float32)
    return noise
