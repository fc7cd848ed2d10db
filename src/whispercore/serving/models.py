"""Several models in one process: each loaded when it is first asked for, and unloaded when it is idle."""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..api.models import is_served
from ..audio.source import Source
from ..checkpoints import is_demonstration, locate, prepare, size
from ..devices import choose_device, device_memory
from ..errors import Cancelled, ConfigurationError, EngineError, Overloaded, WhisperError
from ..options import Options
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import Progress, Transcript
from .job import Job
from .scheduler import Scheduler
from .transcriber import Transcriber

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.8
"""Of the memory of the machine or the GPU, for all models."""
FULL_PRECISION_FACTOR, FACTOR = 3.0, 2.0
"""Bytes of memory for each byte of a checkpoint, whose weights have 16 bits as a rule: in float32, and in the other precisions."""
BATCH_BYTES = 100 * 1024 * 1024
"""What a batch takes besides, for any model. On a CPU, after a recording of several windows, tiny.en (72 MiB) had taken 183 to 202 MiB
and base (138 MiB) 298 to 355 with engine ct2 in int8, and 255 and 438 with engine openai in float32. The estimates are 244, 376, 316 and
514 MiB. On a GPU nothing has been measured. A checkpoint in float32 is estimated too large."""
POLL_SECONDS = 1.0
"""How often to look for idle models."""
RETRY_SECONDS = 10.0
"""A model that could not be loaded is tried again when it is asked for after this time."""


class LoadingJob:
    """The job of a request that has come before its model was loaded. Afterwards it stands for the model's own job."""

    def __init__(self, submit: Callable[[Transcriber], Job], on_news: Callable[[], None] | None) -> None:
        """`submit` begins the model's job. `on_news` is called when the request has failed before that."""
        self._submit: Callable[[Transcriber], Job] | None = submit
        self._on_news = on_news or (lambda: None)
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._job: Job | None = None
        self._error: WhisperError | None = None

    @property
    def opened(self) -> bool:
        """Whether the recording has been opened."""
        return self._job is not None and self._job.opened

    @property
    def ended(self) -> bool:
        """Whether there is a transcript or an error."""
        return self._error is not None or (self._job is not None and self._job.ended)

    @property
    def error(self) -> WhisperError | None:
        """Why there is no transcript."""
        return self._job.error if self._job else self._error

    @property
    def progress(self) -> Progress:
        """What is final so far."""
        return self._job.progress if self._job else Progress()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. There is none before the model is loaded, nor anything to read with it."""
        assert self._job
        return self._job.tokenizer

    def begin(self, transcriber: Transcriber) -> None:
        """Begin the job of the model, which has been loaded; nothing when the request has been cancelled."""
        with self._lock:
            submit, self._submit = self._submit, None
            if not submit:
                return
            try:
                self._job = submit(transcriber)
            except WhisperError as error:
                self._error = error
            self._begun.set()
        if self._error:
            self._on_news()

    def fail(self, error: WhisperError) -> None:
        """End the request, whose model cannot be loaded; nothing when it has been cancelled."""
        with self._lock:
            if not self._submit:
                return
            self._submit, self._error = None, error
            self._begun.set()
        self._on_news()

    def cancel(self) -> None:
        """End the job, or do not begin it."""
        self.fail(Cancelled("the request was cancelled"))
        if self._job:
            self._job.cancel()

    def result(self, timeout: float | None = None) -> Transcript:
        """Wait for the model, then for the transcript. Raises the error, or TimeoutError after `timeout` seconds."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if not self._begun.wait(timeout):
            raise TimeoutError(f"the model was not loaded within {timeout} s")
        if self._error:
            raise self._error
        assert self._job
        return self._job.result(None if timeout is None else max(0.0, deadline - time.monotonic()))


AnyJob = Job | LoadingJob


@dataclass(slots=True, eq=False)
class _Model:
    """One model. `size`: the estimated bytes of memory that it takes. `waiting`: the requests that wait for it to be loaded.

    `last_used`: time.monotonic of the last request. `retry_at`: when it may be loaded again after a failure.
    """

    settings: Settings
    is_demonstration: bool
    size: int = 0
    transcriber: Transcriber | None = None
    is_loading: bool = False
    waiting: list[LoadingJob] = field(default_factory=list)
    last_used: float = 0.0
    retry_at: float = 0.0

    @property
    def takes(self) -> int:
        """The bytes that it takes now, or will take when it is loaded."""
        return self.size if self.transcriber or self.is_loading else 0

    @property
    def idle_since(self) -> float:
        """time.monotonic of the last request or the last window; infinite when it is not loaded, or has open requests."""
        if not (self.transcriber and self.transcriber.is_idle):
            return math.inf
        return max(self.last_used, self.transcriber.scheduler.last_success or 0.0)


Load = Callable[[Settings, Transcriber], Transcriber]


def load(settings: Settings, default: Transcriber) -> Transcriber:
    """Load a model beside the default one. Its checkpoint is converted when that has not been done. Raises ConfigurationError."""
    prepare(settings)
    return Transcriber(settings, beside=default)


def estimate(settings: Settings, precision: str) -> int:
    """The bytes of memory that a model takes. Raises ConfigurationError when there is no checkpoint."""
    if settings.engine == "fake":
        return 0
    return round(size(locate(settings)) * (FULL_PRECISION_FACTOR if precision == "float32" else FACTOR)) + BATCH_BYTES


class Models:
    """The models of the settings, by name. With one model every call goes straight to its transcriber.

    The default model, `Settings.model`, is always loaded. The thread `models` loads and unloads the others, one at a
    time, so neither an event loop nor TorchServe's thread waits for it. To make room, those are unloaded that have been
    idle longest. A model with open requests is never unloaded. Thread-safe.
    """

    def __init__(
        self, default: Transcriber, *, load: Load = load, estimate: Callable[[Settings, str], int] = estimate, budget: int | None = None
    ) -> None:
        """`budget`: the bytes that all models may take; None: by the settings.

        Raises ConfigurationError for a model that is missing, or that does not fit beside the default one.
        """
        settings = default.settings
        self.default = default
        self.default_name = settings.model_id
        self._load = load
        self._budget = budget if budget is not None else settings.models_memory
        self._idle_seconds = settings.models_idle_seconds
        self._models = {self.default_name: _Model(settings, default.is_demonstration, transcriber=default)}
        self._changed = threading.Condition()
        self._asked: deque[_Model] = deque()
        self._leaving: list[Transcriber] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        if not settings.other_models:
            return
        for item in settings.other_models:
            other = replace(settings, model=item)
            self._models[other.model_id] = _Model(other, other.engine != "fake" and is_demonstration(other))
        self._budget = self._budget or round(MEMORY_SHARE * device_memory(choose_device(settings)))
        precision = str(default.engine.describe()["precision"])
        self._measure(lambda settings: estimate(settings, precision))
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all models, first the default one's."""
        return tuple(self._models)

    @property
    def loaded(self) -> dict[str, bool]:
        """Whether each model is loaded."""
        return {name: model.transcriber is not None for name, model in self._models.items()}

    def others(self) -> list[Scheduler]:
        """The schedulers of the models that are loaded besides the default one."""
        loaded = [model.transcriber for model in self._models.values()]
        return [transcriber.scheduler for transcriber in loaded if transcriber and transcriber is not self.default]

    def choose(self, asked: str) -> str:
        """The model that the name `asked` means; the default one for a name of any model, and for an unknown name."""
        return next((name for name in self._models if is_served(asked, name)), self.default_name)

    def is_demonstration(self, name: str) -> bool:
        """Whether a model is the bundled nano."""
        return self._models[name].is_demonstration

    def submit(self, name: str, source: Source, options: Options, **call: Any) -> AnyJob:
        """`Transcriber.submit` of a model. A job whose model is not loaded begins when it is.

        Raises Overloaded when there is no room beside models with open requests, EngineError when the model could not be
        loaded a moment ago, and what `Transcriber.submit` raises.
        """
        model = self._models[name]
        if model.transcriber is self.default:
            return self.default.submit(source, options, **call)
        with self._changed:  # so that the model is not unloaded before its job has begun
            model.last_used = time.monotonic()
            if model.transcriber:
                return model.transcriber.submit(source, options, **call)
            if self._closing:
                raise Overloaded("the server is shutting down")
            if not model.is_loading:
                self._ask_for(name, model)
            job = LoadingJob(lambda transcriber: transcriber.submit(source, options, **call), call.get("on_news"))
            model.waiting.append(job)
            return job

    def close(self) -> None:
        """Fail the requests that wait for a model, and close all models, the default one last. Waits for the end of a load."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
        for model in self._models.values():
            self._end_waiting(model, Overloaded("the server is shutting down"))
            if model.transcriber and model.transcriber is not self.default:
                model.transcriber.close()
        self.default.close()

    def _measure(self, estimate: Callable[[Settings], int]) -> None:
        default, *others = self._models.items()
        for _, model in (default, *others):
            model.size = estimate(model.settings)
        for name, model in others:
            if default[1].size + model.size > self._budget:
                message = f"{name} takes about {_megabytes(model.size)} beside the {_megabytes(default[1].size)} of {default[0]}"
                budget = f"all models may take {_megabytes(self._budget)}: take it off the list, or raise models_memory"
                raise ConfigurationError(f"{message}, and {budget}", param="models")

    def _ask_for(self, name: str, model: _Model) -> None:
        """Have a model loaded, and others unloaded to make room for it. Raises Overloaded or EngineError."""
        if (seconds := model.retry_at - time.monotonic()) > 0:
            raise _not_loaded(name, seconds)
        excess = sum(other.takes for other in self._models.values()) + model.size - self._budget
        idle = sorted(self._idle(), key=lambda other: other.idle_since)
        if excess > sum(other.size for other in idle):
            message = f"there is no room for the model {name} while requests of other models are open; try again later"
            raise Overloaded(message, code="no_room_for_model", retry_after=RETRY_SECONDS)
        while excess > 0:
            excess -= idle[0].size
            self._unload(idle.pop(0))
        model.is_loading = True
        self._asked.append(model)
        self._changed.notify_all()

    def _idle(self, longer_than: float = 0.0) -> list[_Model]:
        """The models that may be unloaded."""
        latest = time.monotonic() - longer_than
        return [model for model in self._models.values() if model.transcriber is not self.default and model.idle_since <= latest]

    def _unload(self, model: _Model) -> None:
        if model.transcriber:
            self._leaving.append(model.transcriber)
        model.transcriber = None

    def _run(self) -> None:
        """The thread: unload, then load, until `close`."""
        poll = min(POLL_SECONDS, self._idle_seconds / 10) if self._idle_seconds else None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._asked, poll)
                if self._idle_seconds:
                    for model in self._idle(self._idle_seconds):
                        self._unload(model)
                leaving, self._leaving = self._leaving, []
                asked = self._asked.popleft() if self._asked and not self._closing else None
            while leaving:
                self._close(leaving.pop())
            if asked:
                self._load_now(asked)
            elif self._closing:
                return

    @staticmethod
    def _close(transcriber: Transcriber) -> None:
        logger.info("the model %s is unloaded", transcriber.settings.model_id)
        transcriber.close()
        # glibc keeps freed memory for later: 130 of 180 MB of tiny.en with engine ct2.
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)

    def _load_now(self, model: _Model) -> None:
        """Load a model and begin the jobs that wait for it."""
        began, name = time.monotonic(), model.settings.model_id
        try:
            transcriber = self._load(model.settings, self.default)
        except Exception:  # whatever a loader raises must not end the thread
            logger.exception("the model %s could not be loaded", name)
            with self._changed:
                model.is_loading = False
                model.retry_at = time.monotonic() + RETRY_SECONDS
                self._end_waiting(model, _not_loaded(name, RETRY_SECONDS))
            return
        logger.info("the model %s is loaded after %.1f s", name, time.monotonic() - began)
        with self._changed:
            model.transcriber, model.is_loading, model.last_used = transcriber, False, time.monotonic()
            waiting, model.waiting = model.waiting, []
            for job in waiting:
                job.begin(transcriber)

    @staticmethod
    def _end_waiting(model: _Model, error: WhisperError) -> None:
        waiting, model.waiting = model.waiting, []
        for job in waiting:
            job.fail(error)


def _not_loaded(name: str, seconds: float) -> EngineError:
    message = f"the model {name} could not be loaded, the server's log says why; it is tried again after {math.ceil(seconds)} s"
    return EngineError(message, code="model_not_loaded")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
