"""TorchServe's side of the mailbox: rows in, letters out. No logic of its own.

Needs `continuousBatching: true` and one worker: TorchServe then calls `handle` with every open request, and the core batches
their windows on threads of its own. Not a BaseHandler: importing that one changes float32 matmul precision.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from whispercore import __version__
from whispercore.errors import ConfigurationError
from whispercore.mailbox import Letter, Mailbox, Post
from whispercore.settings import Settings
from whispercore.transcriber import Transcriber

logger = logging.getLogger(__name__)

OPEN_REQUESTS_FILE = "WHISPER_OPEN_REQUESTS_FILE"
CLOSING_FILE = "WHISPER_CLOSING_FILE"
_COUNTERS = {
    "whisper_windows_total": "windows",
    "whisper_batches_total": "batches",
    "whisper_fallbacks_total": "retries_at_higher_temperature",
    "whisper_out_of_memory_total": "out_of_memory",
}


class WhisperHandler:
    """Loads the engine once, then exchanges rows for letters."""

    mailbox: Mailbox
    transcriber: Transcriber

    def __init__(self) -> None:
        self._open_requests = -1
        self._published = dict.fromkeys(_COUNTERS, 0)

    def initialize(self, context: Any) -> None:
        """Load the engine as config/model-config.yaml and the environment say."""
        logging.getLogger().addFilter(_not_a_poll)
        section = (context.model_yaml_config or {}).get("whisper")
        try:
            self.transcriber = Transcriber(Settings.load(section))
        except ConfigurationError as error:
            logger.error("whisper cannot start: %s", error.message)
            raise
        logger.info("whispercore %s serves %s", __version__, self.transcriber.engine.describe())
        self.mailbox = Mailbox(self.transcriber)
        self._publish_open_requests(context)

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """One call of TorchServe's continuous batching: a letter, or nothing yet, for each row."""
        ids = dict(context.request_ids)
        posts = [Post(ids[index], row, context.get_all_request_header(index)) for index, row in enumerate(rows)]
        # serve.sh makes the file when it has been told to stop and requests do not cease to come.
        self.mailbox.closing = Path(os.environ.get(CLOSING_FILE) or os.devnull).is_file()
        letters = self.mailbox.exchange(posts)
        criteria: list[Callable[[Any], bool | None]] = [_whole] * len(rows)
        payloads = [b""] * len(rows)
        for index, id in ids.items():
            if letter := letters.get(id):
                self._answer(context, index, letter)
                criteria[index], payloads[index] = _CRITERIA[letter.last], letter.payload
            else:
                # Left out of the reply, the request stays open without a status.
                del context.request_ids[index]
        context.stopping_criteria = criteria
        self._publish_open_requests(context)
        self._publish_counters(context)
        return payloads

    @staticmethod
    def _answer(context: Any, index: int, letter: Letter) -> None:
        context.set_response_status(letter.status, letter.reason, index)
        context.set_response_content_type(index, letter.content_type)
        context.set_response_header(index, "x-request-id", letter.request_id)
        if letter.last is False:
            return
        _measure(context, "whisper_requests_total", 1, [str(letter.status)])
        if letter.audio_seconds:
            _measure(context, "whisper_audio_seconds_total", letter.audio_seconds)
            _measure(context, "whisper_processing_seconds_total", letter.seconds)

    def _publish_open_requests(self, context: Any) -> None:
        """Tell how many requests are open: to Prometheus, and to serve.sh, which waits for none before it stops the server."""
        if self._open_requests == len(self.mailbox):
            return
        self._open_requests = len(self.mailbox)
        if path := os.environ.get(OPEN_REQUESTS_FILE):
            Path(path).write_text(f"{self._open_requests}\n")
        _measure(context, "whisper_open_requests", self._open_requests, kind=MetricTypes.GAUGE)

    def _publish_counters(self, context: Any) -> None:
        """Tell Prometheus what the scheduler has counted since the last call."""
        for metric, counter in _COUNTERS.items():
            counted = getattr(self.transcriber.scheduler.counters, counter)
            if counted > self._published[metric]:
                _measure(context, metric, counted - self._published[metric])
                self._published[metric] = counted


def _measure(context: Any, name: str, value: float, dimensions: Sequence[str] = (), *, kind: Any = MetricTypes.COUNTER) -> None:
    """Add to a metric; where the server's metrics.yaml does not declare ours, as on SageMaker, go without."""
    try:
        context.metrics.get_metric(name, kind).add_or_update(value, list(dimensions))
    except (AttributeError, MetricsCacheKeyError):
        logger.debug("metric %s is not declared", name)


def _whole(_: Any) -> None:
    return None


_CRITERIA: dict[bool | None, Callable[[Any], bool | None]] = {None: _whole, False: lambda _: False, True: lambda _: True}


def _not_a_poll(record: logging.LogRecord) -> bool:
    """Drop the line that TorchServe logs at each of the pump's many calls a second."""
    return not record.getMessage().startswith("Backend received inference")
