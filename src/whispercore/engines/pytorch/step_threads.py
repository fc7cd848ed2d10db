"""One thread or several for the steps of a lone window: whichever has been faster lately.

A step meets its threads about two hundred times. On a quiet machine two threads need 3.9 ms for a token of base, and one 4.9. While
another process uses one of two cores, two threads need 8 ms and more, because each meeting waits for the slower one; one still needs 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_TRY_EVERY = 256
"""Steps after which the other number of threads is tried."""
_TRIAL = 4
"""Steps of a trial. The first does not count: threads that have slept are slow to begin."""
_WEIGHT = 0.2
"""Of the last step in the mean time of a number of threads."""
_OUTLIER = 4.0
"""A step counts at most this many times the other number's mean, so that one stall is soon forgotten."""


@dataclass(slots=True)
class StepThreads:
    """Chooses 1 or `several`. Not thread-safe."""

    several: int
    _means: dict[int, float] = field(default_factory=dict)
    _steps: int = 0
    _last: int = 0

    def choose(self) -> int:
        """The threads of the next step."""
        self._steps += 1
        if untried := [threads for threads in (1, self.several) if threads not in self._means]:
            return untried[0]
        faster, slower = sorted((1, self.several), key=lambda threads: self._means[threads])
        return slower if self._steps % _TRY_EVERY < _TRIAL else faster

    def note(self, threads: int, seconds: float) -> None:
        """The time of a step on so many threads."""
        self._last, last = threads, self._last
        if threads != last:
            return
        other = self._means.get(self.several if threads == 1 else 1, seconds)
        mean = self._means.setdefault(threads, seconds)
        self._means[threads] = mean + _WEIGHT * (min(seconds, _OUTLIER * other) - mean)
