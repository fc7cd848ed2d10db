"""How often an open turn is transcribed: as often as the machine can, with room left for other requests."""

from __future__ import annotations

SHORTEST, LONGEST = 0.3, 10.0
"""Seconds of new sound for which a turn is transcribed again, at least and at most."""
REST = 1.15
"""An interval, in times of what a transcription takes: the sessions leave some time to other requests."""
_WEIGHT = 0.4
"""Of the newest measurement in the running mean."""


class Pacing:
    """The interval that all sessions share. What one transcription takes grows with the load and the number of sessions."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @property
    def interval(self) -> float:
        """Seconds of new sound for which a turn is transcribed again."""
        return min(LONGEST, max(SHORTEST, REST * self._seconds))

    def measured(self, seconds: float) -> None:
        """A transcription of an open turn has taken this long, waiting for the engine included."""
        self._seconds = seconds if not self._seconds else (1 - _WEIGHT) * self._seconds + _WEIGHT * seconds

    def refused(self) -> None:
        """The back end has refused a transcription: twice the interval."""
        self._seconds = min(LONGEST, 2 * max(self._seconds, SHORTEST))
