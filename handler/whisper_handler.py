"""TorchServe's side of the mailbox: rows in, letters out. No logic of its own.

Needs `continuousBatching: true` and one worker: TorchServe then calls `handle` with every open request, and the core batches
their windows on threads of its own. Not a BaseHandler: importing that one changes float32 matmul precision.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes
from ts.service import Service

from whispercore import __version__
from whispercore.errors import ConfigurationError
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.torchserve.handshake import CANNOT_START, CLOSING_FILE, OPEN_REQUESTS_FILE, serves_line
from whispercore.torchserve.mailbox import Letter, Mailbox, Post, both_ids

logger = logging.getLogger(__name__)

_COUNTERS: dict[str, Callable[[Mailbox], int]] = {
    "whisper_windows_total": lambda mailbox: mailbox.transcriber.scheduler.counters.windows,
    "whisper_batches_total": lambda mailbox: mailbox.transcriber.scheduler.counters.batches,
    "whisper_fallbacks_total": lambda mailbox: mailbox.transcriber.scheduler.counters.retries_at_higher_temperature,
    "whisper_out_of_memory_total": lambda mailbox: mailbox.transcriber.scheduler.counters.out_of_memory,
    "whisper_shared_total": lambda mailbox: mailbox.shared,
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
        if retrieve := getattr(Service, "retrieve_data_for_inference", None):
            Service.retrieve_data_for_inference = staticmethod(_with_repeated_fields(retrieve))
        section = (context.model_yaml_config or {}).get("whisper")
        try:
            self.transcriber = Transcriber(Settings.load(section))
        except ConfigurationError as error:
            logger.error("%s%s", CANNOT_START, error.message)
            raise
        logger.info("%s", serves_line(__version__, self.transcriber.engine.describe()))
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
                self._answer(context, index, id, letter)
                criteria[index], payloads[index] = _CRITERIA[letter.last], letter.payload
            else:
                # Left out of the reply, the request stays open without a status.
                del context.request_ids[index]
        context.stopping_criteria = criteria
        self._publish_open_requests(context)
        self._publish_counters(context)
        return payloads

    @staticmethod
    def _answer(context: Any, index: int, id: str, letter: Letter) -> None:
        context.set_response_status(letter.status, letter.reason, index)
        context.set_response_content_type(index, letter.content_type)
        # TorchServe's front end puts its own id into x-request-id, whatever is there.
        for name, value in {"x-client-request-id": letter.request_id, **letter.headers}.items():
            context.set_response_header(index, name, value)
        if letter.last is False:
            return
        measure = functools.partial(_measure, context, id=both_ids(id, letter.request_id))
        measure("whisper_requests_total", 1, [str(letter.status)])
        for reason, count in Counter(letter.dropped).items():
            measure("whisper_dropped_total", count, [reason])
        if letter.audio_seconds:
            measure("whisper_audio_seconds_total", letter.audio_seconds)
            measure("whisper_processing_seconds_total", letter.seconds)

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
            counted = counter(self.mailbox)
            if counted > self._published[metric]:
                _measure(context, metric, counted - self._published[metric])
                self._published[metric] = counted


def _measure(
    context: Any, name: str, value: float, dimensions: Sequence[str] = (), *, kind: Any = MetricTypes.COUNTER, id: str = ""
) -> None:
    """Add to a metric; where the server's metrics.yaml does not declare ours, as on SageMaker, go without. `id`: for its log line."""
    try:
        context.metrics.get_metric(name, kind).add_or_update(value, list(dimensions), id)
    except (AttributeError, MetricsCacheKeyError):
        logger.debug("metric %s is not declared", name)


def _with_repeated_fields(retrieve: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """TorchServe's reading of a call, and every value of a form field sent more than once: it keeps only the last (ts/service.py)."""

    @functools.wraps(retrieve)
    def read(batch: Any) -> Any:
        found = retrieve(batch)
        # Another version's may look different: then a repeated field is its last value.
        with contextlib.suppress(IndexError, KeyError, TypeError, ValueError, AttributeError):
            for row, request in zip(found[1], batch, strict=True):
                row.update(_repeated(request["parameters"]))
        return found

    return read


def _repeated(parameters: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """All values, in order, of each name that says it is a list, or comes more than once; what to make of them is the core's business."""
    values: dict[str, list[Any]] = {}
    for parameter in parameters:
        values.setdefault(parameter["name"], []).append(parameter["value"])
    return {name: several for name, several in values.items() if len(several) > 1 or name.endswith("[]")}


def _whole(_: Any) -> None:
    return None


_CRITERIA: dict[bool | None, Callable[[Any], bool | None]] = {None: _whole, False: lambda _: False, True: lambda _: True}


def _not_a_poll(record: logging.LogRecord) -> bool:
    """Drop the line that TorchServe logs at each of the pump's many calls a second."""
    return not record.getMessage().startswith("Backend received inference")
