"""When to test whether recordings are transcribed, and what a failed test means.

The launcher tests the worker behind TorchServe with it (`server/watchdog.py`), and `SelfTest` the engine of its own
process. This file imports nothing heavy, because the launcher loads no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

HEADER = "x-watchdog-token"
"""With this header and the launcher's token, the route `health/ready` transcribes `self_test.recording` before it answers."""
BATCHES = 10
"""A test may take as long as this many of the longest batch lately: it waits for the batch that is being decoded."""
LARGEST_SHARE, LONGEST_PAUSE = 0.05, 10
"""Tests take at most this share of the time: a window of large-v3 takes a CPU ten seconds. But none is put off for longer
than this many times `seconds`."""
PAUSE_SECONDS = 2.0
"""Between a failed test and the next one."""
MOST_FAILURES = 2
"""So many failed tests in a row call for a restart."""
MOST_RESTARTS = 3
"""So many restarts without a success in between end the server."""


class Verdict(Enum):
    """What to do after a failure."""

    TEST_AGAIN = auto()
    RESTART = auto()
    END = auto()


@dataclass(slots=True)
class Watchdog:
    """The policy. It has no clock: `now` and other moments are seconds by any clock that the caller always uses.

    `seconds`: a test is due when there has been no success for this long; 0.0: never. `failures`, `restarts`: in a row.
    """

    seconds: float
    failures: int = 0
    restarts: int = 0
    _not_before: float = -math.inf

    @property
    def is_ready(self) -> bool:
        """Whether the last test did not fail, and there was a success after the last restart."""
        return not (self.failures or self.restarts)

    def is_due(self, now: float, last_success: float) -> bool:
        """Whether to test now. `last_success`: when a window was last decoded, of whichever request."""
        if not self.seconds or now < self._not_before:
            return False
        return not self.is_ready or now - last_success >= self.seconds

    def deadline(self, longest_batch: float) -> float:
        """The seconds that a test may take. `longest_batch`: the seconds of the longest batch lately."""
        return max(self.seconds, BATCHES * longest_batch)

    def note_success(self, now: float, took: float = 0.0) -> None:
        """A window was decoded, of whichever request. `took`: the seconds of the test, if it was a test."""
        self.failures = self.restarts = 0
        self._not_before = now + min(took / LARGEST_SHARE, LONGEST_PAUSE * self.seconds)

    def note_failure(self, now: float) -> Verdict:
        """A test failed, or did not end in time."""
        self.failures += 1
        self._not_before = now + min(PAUSE_SECONDS, self.seconds)
        if self.failures < MOST_FAILURES:
            return Verdict.TEST_AGAIN
        return Verdict.END if self.restarts >= MOST_RESTARTS else Verdict.RESTART

    def note_restart(self) -> Verdict:
        """What is tested has been started again, whether it died or was ended."""
        self.restarts += 1
        self.failures = 0
        self._not_before = -math.inf
        return Verdict.END if self.restarts > MOST_RESTARTS else Verdict.TEST_AGAIN
