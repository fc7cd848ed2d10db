"""Whether the engine gives results: readiness for probes, and a stall that calls for a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..api.reply import Body, json_body
from .scheduler import Scheduler
from .transcriber import Transcriber

STALLED_BATCHES = 20
"""An engine that needs this many times as long as for its longest batch lately has stalled."""


@dataclass(slots=True)
class Health:
    """What the schedulers' clocks and the watchdog say about the engines.

    `transcriber`: of the default model, which the watchdog tests. `others`: the schedulers of the other models that are
    loaded. `watchdog_failed`: the last test failed.
    """

    transcriber: Transcriber
    others: Callable[[], Sequence[Scheduler]] = tuple
    watchdog_failed: bool = False

    @property
    def is_stalled(self) -> bool:
        """Whether the engine has given no result for so long that the process is to be restarted."""
        return self._stalls(1.0)

    @property
    def gives_results(self) -> bool:
        """Whether the watchdog's last test passed, and the engine is idle or has given a result within half of a stall's time."""
        return not (self.watchdog_failed or self._stalls(0.5))

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the engine that works longest without a result began or gave its last one; 0.0 when all are idle."""
        return max(scheduler.stalled_seconds for scheduler in self._schedulers)

    @property
    def longest_seconds(self) -> float:
        """Seconds of the longest batch so far, which the watchdog's test may have to wait for.

        Batches of other models count while they run, too: the first one of a large model may take longer than any before.
        """
        others = (max(scheduler.longest_seconds, scheduler.stalled_seconds) for scheduler in self.others())
        return max(self.transcriber.scheduler.longest_seconds, *others, 0.0)

    @property
    def _schedulers(self) -> list[Scheduler]:
        return [self.transcriber.scheduler, *self.others()]

    def _stalls(self, share: float) -> bool:
        """Whether any engine has given no result for this share of the time that makes a stall."""
        setting = self.transcriber.settings.stall_seconds
        return setting > 0 and any(
            scheduler.stalled_seconds > share * max(setting, STALLED_BATCHES * scheduler.longest_seconds) for scheduler in self._schedulers
        )

    @property
    def last_success_timestamp(self) -> float | None:
        """Unix time of the last window that the default model has decoded; None before the first."""
        success = self.transcriber.scheduler.last_success
        return None if success is None else round(time.time() - (time.monotonic() - success), 3)

    def report(self, *, is_ready: bool, open_requests: int) -> Body:
        """The body of the route `health/ready`."""
        scheduler = self.transcriber.scheduler
        success = None if scheduler.last_success is None else round(time.monotonic() - scheduler.last_success, 1)
        return json_body(
            {
                "status": "ready" if is_ready else "not ready",
                "last_success_timestamp": self.last_success_timestamp,
                "seconds_since_last_success": success,
                "stalled_seconds": round(self.stalled_seconds, 1),
                "watchdog": "failed" if self.watchdog_failed else "passed",
                "open_requests": open_requests,
                "waiting_audio_seconds": round(self.transcriber.waiting_audio_seconds, 1),
            }
        )
