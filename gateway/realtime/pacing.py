"""How often an open turn is transcribed: again and again, as fast as the machine can."""

from __future__ import annotations

SHORTEST, LONGEST = 0.25, 10.0
"""Seconds of new sound for which a turn is transcribed again, at least and at most."""
_WEIGHT = 0.4
"""Of the newest measurement in the running mean."""


class Pacing:
    """The interval that all sessions share: what a transcription takes.

    It grows with the load and with the number of sessions, so that a queue never builds up. A word is certain at the
    second transcription that has it, which ends two and a half intervals after the word in the median.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    @property
    def interval(self) -> float:
        """Seconds of new sound for which a turn is transcribed again."""
        return min(LONGEST, max(SHORTEST, self._seconds))

    def measured(self, seconds: float) -> None:
        """A transcription of an open turn has taken this long, waiting for the engine included."""
        self._seconds = seconds if not self._seconds else (1 - _WEIGHT) * self._seconds + _WEIGHT * seconds

    def refused(self) -> None:
        """The back end has refused a transcription: twice the interval."""
        self._seconds = min(LONGEST, 2 * max(self._seconds, SHORTEST))
