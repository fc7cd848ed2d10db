"""How often an open turn is transcribed: as often as the machine can transcribe all turns that are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHORTEST, LONGEST = 0.25, 10.0
"""Seconds of new sound for which a turn is transcribed again, at least and at most."""
_WEIGHT = 0.4
"""Of the newest measurement in the running mean."""


class Pacing:
    """The interval that all sessions share: what one transcription takes, times the number of open turns.

    So the transcriptions of the sessions follow each other and do not queue. A word is certain at the second transcription
    that has it: in the median, one and a half intervals and a transcription after its end.
    """

    def __init__(self, open_turns: Callable[[], int], clock: Callable[[], float]) -> None:
        """`open_turns` counts those of all sessions; `clock` gives seconds."""
        self._open_turns, self._clock = open_turns, clock
        self._running = 0
        self._seconds = 0.0

    @property
    def interval(self) -> float:
        """Seconds of new sound for which a turn is transcribed again."""
        return min(LONGEST, max(SHORTEST, self._seconds * max(1, self._open_turns())))

    @contextmanager
    def transcription(self) -> Iterator[None]:
        """Measure the transcription of an open turn. Those that are under way share the engine, so each has its part of the time.

        Waiting behind other requests is measured, too: it leaves them room. One that fails or is cancelled does not count.
        """
        self._running += 1
        together, began = self._running, self._clock()
        try:
            yield
        finally:
            together = max(together, self._running)
            self._running -= 1
        seconds = (self._clock() - began) / together
        self._seconds = seconds if not self._seconds else (1 - _WEIGHT) * self._seconds + _WEIGHT * seconds

    def refused(self) -> None:
        """The back end has refused a transcription: twice the interval."""
        self._seconds = min(LONGEST, 2 * max(self._seconds, SHORTEST))
