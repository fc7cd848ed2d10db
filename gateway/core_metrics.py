"""The metrics of a core in this process, under the names that the worker publishes through TorchServe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from whispercore.serving.intake import Intake
from whispercore.serving.response import Response


class CoreMetrics:
    """Counts responses, and reads the scheduler's counters when it is asked for its text."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._statuses: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._audio_seconds = 0.0
        self._processing_seconds = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count(self, response: Response) -> None:
        """Count a last response."""
        self._statuses[str(response.status)] += 1
        self._dropped.update(response.dropped)
        if response.audio_seconds:
            self._audio_seconds += response.audio_seconds
            self._processing_seconds += response.seconds

    def text(self) -> str:
        """Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """The metrics, for Prometheus' registry."""
        scheduler = self._intake.transcriber.scheduler
        counters = scheduler.counters
        yield _by_label("whisper_requests", "status", self._statuses)
        yield _by_label("whisper_dropped", "reason", self._dropped)
        for name, value in (
            ("whisper_audio_seconds", self._audio_seconds),
            ("whisper_processing_seconds", self._processing_seconds),
            ("whisper_windows", counters.windows),
            ("whisper_batches", counters.batches),
            ("whisper_fallbacks", counters.retries_at_higher_temperature),
            ("whisper_out_of_memory", counters.out_of_memory),
            ("whisper_failed_batches", counters.failed_batches),
            ("whisper_shared", self._intake.jobs.shared),
        ):
            yield CounterMetricFamily(name, _HELP, value=value)
        yield GaugeMetricFamily("whisper_open_requests", _HELP, value=len(self._intake.jobs))
        loaded = GaugeMetricFamily("whisper_model_loaded", _HELP, labels=["model"])
        for name, is_loaded in self._intake.models.loaded.items():
            loaded.add_metric([name], int(is_loaded))
        yield loaded
        yield GaugeMetricFamily("whisper_ready", _HELP, value=int(self._intake.is_ready))
        yield GaugeMetricFamily("whisper_waiting_audio_seconds", _HELP, value=self._intake.transcriber.waiting_audio_seconds)
        if timestamp := self._intake.health.last_success_timestamp:
            yield GaugeMetricFamily("whisper_last_success_timestamp_seconds", _HELP, value=timestamp)


_HELP = "See docs/operation.md."


def _by_label(name: str, label: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, _HELP, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
