"""TorchServe's handler: its rows go into the mailbox, the mailbox's responses become its replies.

Needs `continuousBatching: true` and one worker: TorchServe then calls `handle` with every open request, and the core
batches their windows on threads of its own. It is no BaseHandler, because importing that class changes the precision of
float32 matrix multiplication.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ts.protocol.otf_message_handler as otf_message_handler
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes
from ts.service import Service

from whispercore import __version__
from whispercore.errors import ConfigurationError
from whispercore.serving.response import Response
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.torchserve import protocol
from whispercore.torchserve.handshake import (
    CANNOT_START,
    CLOSING_FILE,
    HEALTH_FILE,
    NOT_READY_FILE,
    OPEN_REQUESTS_FILE,
    SPOOL_DIR,
    WATCHDOG_TOKEN,
    OpenRequests,
    WorkerHealth,
    serves_line,
)
from whispercore.torchserve.log_lines import LineFormatter
from whispercore.torchserve.mailbox import Mailbox, PolledRow

logger = logging.getLogger(__name__)

SUCCESS_SECONDS, HEALTH_SECONDS = 5.0, 1.0
"""How often, at most, the time of the last success is published, and written for the launcher."""
_COUNTERS: dict[str, Callable[[Mailbox], int]] = {
    "whisper_windows_total": lambda mailbox: mailbox.intake.transcriber.scheduler.counters.windows,
    "whisper_batches_total": lambda mailbox: mailbox.intake.transcriber.scheduler.counters.batches,
    "whisper_fallbacks_total": lambda mailbox: mailbox.intake.transcriber.scheduler.counters.retries_at_higher_temperature,
    "whisper_out_of_memory_total": lambda mailbox: mailbox.intake.transcriber.scheduler.counters.out_of_memory,
    "whisper_failed_batches_total": lambda mailbox: mailbox.intake.transcriber.scheduler.counters.failed_batches,
    "whisper_shared_total": lambda mailbox: mailbox.intake.jobs.shared,
}


class WhisperHandler:
    """Loads the engine once, then answers TorchServe's calls."""

    mailbox: Mailbox
    transcriber: Transcriber

    def __init__(self) -> None:
        self._open_requests: OpenRequests | None = None
        self._ready: bool | None = None
        self._waiting_seconds = -1
        self._success_published = self._health_written = 0.0
        self._loaded: dict[str, bool] = {}
        self._published = dict.fromkeys(_COUNTERS, 0)

    def initialize(self, context: Any) -> None:
        """Load the engine, with the settings of config/model-config.yaml and the environment."""
        logging.getLogger().addFilter(_not_a_poll)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(LineFormatter(handler.formatter))
        _read_in_large_pieces()
        if retrieve := getattr(Service, "retrieve_data_for_inference", None):
            Service.retrieve_data_for_inference = staticmethod(_with_repeated_fields(retrieve))
        section = (context.model_yaml_config or {}).get("whisper")
        spool = os.environ.get(SPOOL_DIR)
        token = os.environ.get(WATCHDOG_TOKEN, "")
        try:
            self.transcriber = Transcriber(Settings.load(section))
            self.mailbox = Mailbox(self.transcriber, Path(spool) if spool else None, watchdog_token=token)
        except ConfigurationError as error:
            logger.error("%s%s", CANNOT_START, error.message)
            raise
        logger.info("%s", serves_line(__version__, self.transcriber.engine.describe()))
        self.transcriber.start_reading()
        self._publish_open_requests(context)

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """One call of TorchServe's continuous batching. Returns a payload for each row, empty when it has no news."""
        ids = dict(context.request_ids)
        polled = [PolledRow(ids[index], row, context.get_all_request_header(index)) for index, row in enumerate(rows)]
        # serve.sh creates the first file when it has been told to stop and requests keep coming, the second while its test fails.
        self.mailbox.intake.jobs.closing = Path(os.environ.get(CLOSING_FILE) or os.devnull).is_file()
        self.mailbox.intake.health.watchdog_failed = Path(os.environ.get(NOT_READY_FILE) or os.devnull).is_file()
        responses = self.mailbox.exchange(polled)
        if self.mailbox.intake.health.is_stalled:
            seconds = self.mailbox.intake.health.stalled_seconds
            logger.critical("the engine has given no result for %.0f s: the worker ends, and TorchServe starts another", seconds)
            logging.shutdown()
            os._exit(1)  # threads that hang would keep an ordinary exit waiting
        criteria: list[Callable[[Any], bool | None]] = [_whole] * len(rows)
        payloads = [b""] * len(rows)
        for index, server_id in ids.items():
            if response := responses.get(server_id):
                self._answer(context, index, server_id, response)
                criteria[index], payloads[index] = _CRITERIA[response.last], response.payload
            else:
                # A request that is missing from the reply stays open, without a status.
                del context.request_ids[index]
        context.stopping_criteria = criteria
        self._publish_open_requests(context)
        self._publish_counters(context)
        self._write_health()
        return payloads

    @staticmethod
    def _answer(context: Any, index: int, server_id: str, response: Response) -> None:
        context.set_response_status(response.status, response.reason, index)
        context.set_response_content_type(index, response.content_type)
        # TorchServe's front end overwrites x-request-id with its own id.
        for name, value in {"x-client-request-id": response.request_id, **response.headers}.items():
            context.set_response_header(index, name, value)
        if response.last is False or response.is_test:
            return
        measure = functools.partial(_measure, context, log_id=server_id)  # the client's own id could break the metric's line
        measure("whisper_requests_total", 1, [str(response.status)])
        for reason, count in Counter(response.dropped).items():
            measure("whisper_dropped_total", count, [reason])
        if response.audio_seconds:
            measure("whisper_audio_seconds_total", response.audio_seconds)
            measure("whisper_processing_seconds_total", response.seconds)

    def _publish_open_requests(self, context: Any) -> None:
        """Publish the number of open requests: to Prometheus, and to serve.sh, which stops the server when it is 0."""
        now = OpenRequests(len(self.mailbox), self.mailbox.intake.jobs.closing)
        if self._open_requests == now:
            return
        if not _write(OPEN_REQUESTS_FILE, str(now)):
            return  # written at the next call
        self._open_requests = now
        _measure(context, "whisper_open_requests", now.number, kind=MetricTypes.GAUGE)

    def _publish_counters(self, context: Any) -> None:
        """Publish to Prometheus what has been counted since the last call, and whether the worker is ready."""
        if self._ready != self.mailbox.intake.is_ready:
            self._ready = self.mailbox.intake.is_ready
            _measure(context, "whisper_ready", int(self._ready), kind=MetricTypes.GAUGE)
        waiting = round(self.transcriber.waiting_audio_seconds)
        if waiting != self._waiting_seconds:
            self._waiting_seconds = waiting
            _measure(context, "whisper_waiting_audio_seconds", waiting, kind=MetricTypes.GAUGE)
        for name, loaded in self.mailbox.intake.models.loaded.items():
            if self._loaded.get(name) != loaded:
                self._loaded[name] = loaded
                _measure(context, "whisper_model_loaded", int(loaded), [name], kind=MetricTypes.GAUGE)
        success = self.mailbox.intake.health.last_success_timestamp
        if success is not None and time.monotonic() - self._success_published >= SUCCESS_SECONDS:
            self._success_published = time.monotonic()
            _measure(context, "whisper_last_success_timestamp_seconds", success, kind=MetricTypes.GAUGE)
        for metric, count_of in _COUNTERS.items():
            count = count_of(self.mailbox)
            if count > self._published[metric]:
                _measure(context, metric, count - self._published[metric])
                self._published[metric] = count

    def _write_health(self) -> None:
        """Tell the launcher's watchdog of the last success."""
        success = self.transcriber.scheduler.last_success
        if success is not None and time.monotonic() - self._health_written >= HEALTH_SECONDS:
            self._health_written = time.monotonic()
            _write(HEALTH_FILE, str(WorkerHealth(success, self.mailbox.intake.health.longest_seconds)))


def _write(variable: str, text: str) -> bool:
    """Write into the file that an environment variable names; nothing without that variable. Returns False when that fails."""
    if path := os.environ.get(variable):
        try:
            Path(path).write_text(text)
        except OSError as error:  # a full disk must not fail the requests of this call
            logger.warning("%s cannot be written: %s", path, error)
            return False
    return True


def _measure(
    context: Any, name: str, value: float, dimensions: Sequence[str] = (), *, kind: Any = MetricTypes.COUNTER, log_id: str = ""
) -> None:
    """Add to a metric.

    Does nothing when the server's metrics.yaml does not declare it, as on SageMaker. `log_id`: for its log line.
    """
    try:
        context.metrics.get_metric(name, kind).add_or_update(value, list(dimensions), log_id)
    except (AttributeError, MetricsCacheKeyError):
        logger.debug("metric %s is not declared", name)


def _read_in_large_pieces() -> None:
    """Replace TorchServe's reading of messages, which is slow for forms of many fields, where it is as we know it."""
    if hasattr(otf_message_handler, "_retrieve_buffer") and hasattr(otf_message_handler, "_retrieve_request"):
        otf_message_handler._retrieve_buffer = protocol.retrieve_buffer
        otf_message_handler._retrieve_request = protocol.retrieve_request


def _with_repeated_fields(retrieve: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`retrieve`, which parses a call, but with all values of a repeated form field.

    TorchServe keeps only the last one (ts/service.py).
    """

    @functools.wraps(retrieve)
    def read(batch: Any) -> Any:
        parsed = retrieve(batch)
        # In another version of TorchServe the result may have another form: then a repeated field keeps its last value.
        with contextlib.suppress(IndexError, KeyError, TypeError, ValueError, AttributeError):
            for row, request in zip(parsed[1], batch, strict=True):
                row.update(_repeated(request["parameters"]))
        return parsed

    return read


def _repeated(parameters: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """All values, in order, of each name that comes more than once or ends with "[]".

    The core decides what they mean.
    """
    values: dict[str, list[Any]] = {}
    for parameter in parameters:
        values.setdefault(parameter["name"], []).append(parameter["value"])
    return {name: repeated for name, repeated in values.items() if len(repeated) > 1 or name.endswith("[]")}


def _whole(_: Any) -> None:
    return None


_CRITERIA: dict[bool | None, Callable[[Any], bool | None]] = {None: _whole, False: lambda _: False, True: lambda _: True}


def _not_a_poll(record: logging.LogRecord) -> bool:
    """A log filter that drops the line TorchServe logs at each call, many times a second."""
    return not record.getMessage().startswith("Backend received inference")
