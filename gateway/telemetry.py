"""The gateway's own metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Telemetry:
    """Counters with closed sets of labels: routes of the application, statuses, names of keys."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("whisper_gateway_requests", "Replies.", ["route", "status"], registry=self._registry)
        self.seconds = Histogram(
            "whisper_gateway_request_seconds",
            "From a request's first byte to its reply's last one.",
            ["route"],
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900),
            registry=self._registry,
        )
        self.audio_seconds = Counter("whisper_gateway_audio_seconds", "Audio transcribed for a key.", ["key"], registry=self._registry)
        self.jobs = Gauge("whisper_jobs", "Jobs by their state.", ["state"], registry=self._registry)
        self.realtime_sessions = Gauge("whisper_realtime_sessions", "Open realtime sessions.", registry=self._registry)

    def text(self) -> str:
        """Prometheus' text format, without the times at which counters were made."""
        lines = generate_latest(self._registry).decode().splitlines(keepends=True)
        return "".join(line for line in lines if "_created" not in line)
