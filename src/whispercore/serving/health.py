"""Whether the engine gives results: readiness for probes, and a stall that calls for a restart."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..api.reply import Body, json_body
from .transcriber import Transcriber

STALLED_BATCHES = 20
"""An engine that needs this many times as long as for its longest batch lately has stalled."""


@dataclass(slots=True)
class Health:
    """What the scheduler's clocks and the watchdog say about the engines. `watchdog_failed`: its last test failed."""

    transcriber: Transcriber
    watchdog_failed: bool = False

    @property
    def is_stalled(self) -> bool:
        """Whether the engine has given no result for so long that the process is to be restarted."""
        return 0 < self._stall_limit < self.transcriber.scheduler.stalled_seconds

    @property
    def gives_results(self) -> bool:
        """Whether the watchdog's last test passed, and the engine is idle or has given a result within half of a stall's time."""
        return not self.watchdog_failed and not 0 < self._stall_limit / 2 < self.transcriber.scheduler.stalled_seconds

    @property
    def _stall_limit(self) -> float:
        """Seconds; 0.0: no limit."""
        setting = self.transcriber.settings.stall_seconds
        return max(setting, STALLED_BATCHES * self.transcriber.scheduler.longest_seconds) if setting else 0.0

    @property
    def last_success_timestamp(self) -> float | None:
        """Unix time of the last window that was decoded; None before the first."""
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
                "stalled_seconds": round(scheduler.stalled_seconds, 1),
                "watchdog": "failed" if self.watchdog_failed else "passed",
                "open_requests": open_requests,
                "waiting_audio_seconds": round(self.transcriber.waiting_audio_seconds, 1),
            }
        )
