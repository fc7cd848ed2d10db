"""Speech probabilities → turns: where speech starts and stops."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from whispercore.audio.silero import FRAME
from whispercore.types import SAMPLE_RATE

from .options import ServerVad

LONGEST = 30 * SAMPLE_RATE
"""Samples of a turn: Whisper's window. A longer one is cut and goes on as a further turn."""
EAGER_FROM = 15 * SAMPLE_RATE
"""From this length on ever shorter silences end a turn, so that it ends between two words."""
SHORTEST_SILENCE = SAMPLE_RATE // 10
SHORTEST_VOICE = 3
"""Frames of voice that start a turn; less is a click."""
HYSTERESIS = 0.15
"""Speech ends below the threshold minus this, as in Silero's own iterator."""
_CUT_WITHIN = 3 * SAMPLE_RATE
"""Without any silence a turn is cut at the least voiced frame of its last three seconds."""


@dataclass(frozen=True, slots=True)
class Started:
    """Speech has started. `at`: the first sample of the turn, the padding included."""

    at: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Speech has stopped. `at`: the sample after the turn."""

    at: int


class Turns:
    """Turns of a stream, found frame by frame. Positions are samples of the session."""

    def __init__(self, detection: ServerVad, position: int = 0) -> None:
        """`position`: the sample at which the first frame begins."""
        self.detection = detection
        self.last_voice = position
        """The sample after the last voiced frame."""
        self._position = position
        self._free_from = position
        self._start: int | None = None
        self._run = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_CUT_WITHIN // FRAME)

    @property
    def speaking(self) -> bool:
        """Whether a turn is open."""
        return self._start is not None

    @property
    def needed_from(self) -> int:
        """Sound before this position can be in no further turn."""
        if self._start is not None:
            return self._start
        return max(self._free_from, self._position - self._run * FRAME - self._samples(self.detection.prefix_padding_ms))

    def feed(self, probability: float) -> list[Started | Stopped]:
        """The speech probability of the next frame → what it changes."""
        self._position += FRAME
        if self._start is None:
            return self._maybe_start(probability)
        if probability >= self.detection.threshold - HYSTERESIS:
            self.last_voice = self._position
        self._recent.append((probability, self._position))
        length = self._position - self._start
        if self._position - self.last_voice >= self._silence(length):
            return self._stop(self._position)
        if length + FRAME > LONGEST:
            cut = min(self._recent)[1]
            return [*self._stop(cut), *self._begin(cut)]
        return []

    def end_turn(self, position: int) -> None:
        """End the turn, or forget what may begin one: the client has committed or cleared the sound before `position`."""
        self._stop(position)

    def _maybe_start(self, probability: float) -> list[Started | Stopped]:
        self._run = self._run + 1 if probability >= self.detection.threshold else 0
        if self._run < SHORTEST_VOICE:
            return []
        begin = self.needed_from
        self.last_voice = self._position
        return self._begin(begin)

    def _begin(self, position: int) -> list[Started | Stopped]:
        self._start, self._run = position, 0
        self._recent.clear()
        return [Started(position)]

    def _stop(self, position: int) -> list[Started | Stopped]:
        self._start, self._run = None, 0
        self._free_from = position
        return [Stopped(position)]

    def _silence(self, length: int) -> int:
        """The silence that ends a turn of this length."""
        asked = max(FRAME, self._samples(self.detection.silence_duration_ms))
        shortest = min(asked, SHORTEST_SILENCE)
        share = min(1.0, max(0.0, (length - EAGER_FROM) / (LONGEST - 2 * SAMPLE_RATE - EAGER_FROM)))
        return round(asked + (shortest - asked) * share)

    @staticmethod
    def _samples(milliseconds: int) -> int:
        return milliseconds * SAMPLE_RATE // 1000
