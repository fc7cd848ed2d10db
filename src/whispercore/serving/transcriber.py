"""The front of the core: a recording and its options in, a `Transcript` out, any number of recordings at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.values import read_options
from ..audio.parts import Part
from ..audio.probing import Prober
from ..audio.source import Source, byte_count
from ..audio.threads import AudioThreads
from ..catalogue import ENGINES
from ..checkpoints import choose_model, is_demonstration, prepare
from ..devices import choose_device, logical_cores, reading_lanes, reads_in_processes
from ..engines import Engine, RefillingEngine, load_engines
from ..errors import ConfigurationError, InvalidRequest
from ..options import OptionKeywords, Options
from ..settings import ENVIRONMENT_PREFIX, SettingKeywords, Settings
from ..types import Transcript
from .admission import BYTES_PER_SECOND, Admission
from .job import Job, Runtime
from .processes import Processes
from .readers import Readers
from .scheduler import Scheduler
from .turns import Turn

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on


class Transcriber:
    """Whisper in process. `Transcriber("nano", engine="ct2", dtype="int8", batch_size=8)("speech.flac").text`

    Owns the engines, the scheduler with its threads, the reader threads and the audio threads; `close` ends them all.
    Thread-safe: the windows of all recordings under way share the engines' batches.
    """

    def __init__(
        self,
        model: Settings | str | Path | None = None,
        *,
        engine: Engine | str | None = None,
        beside: Transcriber | None = None,
        **settings: Unpack[SettingKeywords],
    ) -> None:
        """`model`: a checkpoint's name or path. `engine`: an engine's name. `settings`: other settings by name.

        Settings that are not given come from `Settings.load`. `model` may also be `Settings` whose checkpoint has been
        prepared for its engine, and `engine` an engine that is loaded. `beside`: a transcriber of another model, whose
        threads, places and turns at the devices this one shares; it must be closed after this one.
        Raises ConfigurationError.
        """
        loaded = None if isinstance(engine, str) else engine
        asked = _settings(model, engine if isinstance(engine, str) else None, dict(settings))
        self.settings = choose_model(asked, look=loaded is None)
        if not isinstance(model, Settings) and loaded is None:
            prepare(self.settings)
        # First, because a process starts while the engine is loaded.
        self._readers: Readers = beside._readers if beside else _readers(self.settings)
        try:
            self.engines = [loaded] if loaded else load_engines(self.settings)
        except BaseException:
            if not beside:
                self._readers.close()
            raise
        self._readers.begin()
        self.engine = self.engines[0]
        self.is_demonstration = self.engine.name != "fake" and is_demonstration(self.settings)
        # The attention of the bundled nano follows the sound in some windows only. Without alignment its windows are
        # decoded once, with timestamp tokens, instead of twice.
        self.aligns = ENGINES[self.engine.name].aligns and not self.is_demonstration
        self._turns: list[Turn] | None = beside._turns if beside else _turns(self.settings, self.engines)
        counters = beside.scheduler.counters if beside else None
        self.scheduler: Scheduler = Scheduler(*self.engines, turns=self._turns, counters=counters)
        self._audio_threads: AudioThreads = beside._audio_threads if beside else AudioThreads(logical_cores())
        self.prober: Prober = beside.prober if beside else Prober()
        self.admission: Admission = (
            beside.admission if beside else Admission(self.settings, len(self.engines), lambda: self.scheduler.speed)
        )
        self._runtime = Runtime(
            scheduler=self.scheduler,
            admission=self.admission,
            readers=self._readers,
            audio_threads=self._audio_threads,
            tokenizer=self.engine.tokenizer,
            n_mels=self.engine.n_mels,
            aligns=self.aligns,
            max_parts=2 * sum(engine.max_batch for engine in self.engines),
            max_audio_seconds=self.settings.max_audio_seconds,
            fixed_tokens=self.settings.fixed_tokens,
        )
        self._jobs: set[Job] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._limits = None if beside else threading.Thread(target=self._limit_reading, name="limits", daemon=True)
        if self._limits:
            self._limits.start()

    def __call__(self, source: Source, *, timestamps: bool = True, **options: Unpack[OptionKeywords]) -> Transcript:
        """Transcribe one recording and wait for it.

        `options`: those of a request; `timestamps` False is their `without_timestamps`.

        Raises WhisperError.
        """
        return self.submit(source, read_options(options if timestamps else {**options, "without_timestamps": True})).result()

    def submit(
        self,
        source: Source | Part,
        options: Options,
        *,
        client: str = "",
        probe: bool = False,
        on_news: Callable[[], None] | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Job:
        """Begin a transcription; the callbacks are those of `Job`. `probe`: the upload is a stranger's, see `Prober`.

        `client`: whose request it is. Clients get equal shares of reading and decoding, and each at most its share of the
        places; all requests without a name are one client's, which may take every place.

        Raises InvalidRequest for an option that the model or the engine does not support, Overloaded when too many
        requests are open or too much audio waits (see `Admission`).
        """
        _check_engine(self.engine, options)
        _check_model(self.engine, options)
        _check_cost(self.settings, options)
        prober = self.prober if probe else None
        seconds = source.duration if isinstance(source, Part) else byte_count(source) / BYTES_PER_SECOND
        place = self.admission.enter(client, min(seconds, self.settings.max_audio_seconds))
        job = Job(source, options, self._runtime, place, prober=prober, on_end=self._forget, on_news=on_news, on_progress=on_progress)
        with self._lock:
            self._jobs.add(job)
        job.start()
        return job

    @property
    def open_requests(self) -> int:
        """Jobs that have not ended, without the watchdog's; those of all models that share the places."""
        return self.admission.open_requests

    @property
    def is_idle(self) -> bool:
        """Whether no job of this model is under way."""
        return not self._jobs

    @property
    def waiting_audio_seconds(self) -> float:
        """The seconds of audio that are accepted and not transcribed yet; those of unopened recordings are estimated."""
        return self.admission.waiting_seconds

    def start_reading(self) -> None:
        """Wait until a recording, also a stranger's, can be read at once. Without this call the first one waits."""
        self.prober.start()
        self._readers.wait_until_ready()

    def close(self) -> None:
        """Cancel the open jobs, stop all threads but those that are another transcriber's, and free the engines."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        if self._limits:  # the threads are its own
            self._readers.close()
            self._audio_threads.close()
            self.prober.close()
            self._closed.set()
            self._limits.join()
        self.scheduler.close()
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _limit_reading(self) -> None:
        """Until `close`: give up reading that takes longer than the setting `reading_stall_seconds`."""
        seconds = self.settings.reading_stall_seconds
        while seconds and not self._closed.wait(min(1.0, seconds / 10)):
            self._readers.give_up(seconds)
            self._audio_threads.give_up(seconds)

    def _forget(self, job: Job) -> None:
        with self._lock:
            self._jobs.discard(job)


def _readers(settings: Settings) -> Readers:
    processes = Processes(settings.reading_stall_seconds) if reads_in_processes() else None
    return Readers(reading_lanes(settings), processes)


def _settings(model: Settings | str | Path | None, engine: str | None, others: dict[str, Any]) -> Settings:
    """The caller's settings, over those of the environment, over the defaults. Raises ConfigurationError."""
    if isinstance(model, Settings):
        if engine is not None or others:
            raise ConfigurationError("give Settings or single settings, not both: dataclasses.replace changes Settings", param="model")
        return model
    named = {"model": model and str(model), "engine": engine}
    settings = others | {name: value for name, value in named.items() if value is not None}
    overridden = {ENVIRONMENT_PREFIX + name.upper() for name in settings}
    return Settings.load(settings, {name: value for name, value in os.environ.items() if name not in overridden})


def _turns(settings: Settings, engines: Sequence[Engine]) -> list[Turn] | None:
    """The turns at the devices of the engines, one for each. None on a GPU for engines that refill their slots.

    Kernels of several such engines share a GPU well, and an engine would wait until all slots of another are empty.
    """
    if all(isinstance(engine, RefillingEngine) for engine in engines) and choose_device(settings) == "cuda":
        return None
    return [Turn() for _ in engines]


def _check_engine(engine: Engine, options: Options) -> None:
    """Raise InvalidRequest for an option that the engine cannot honour."""
    unsupported = ENGINES[engine.name].unsupported
    for option in fields(options):
        if option.name in unsupported and getattr(options, option.name) != option.default:
            raise InvalidRequest(f"the engine served, {engine.name}, has no {option.name}: leave it out", param=option.name)


def _check_cost(settings: Settings, options: Options) -> None:
    """Raise InvalidRequest for a search that is wider than the settings allow."""
    for name, limit in (("beam_size", settings.max_beams), ("best_of", settings.max_beams), ("patience", settings.max_patience)):
        if (getattr(options, name) or 0) > limit:
            raise InvalidRequest(f"{name} must be at most {limit:g} on this server (setting max_beams, max_patience)", param=name)


def _check_model(engine: Engine, options: Options) -> None:
    """Raise InvalidRequest for a language, task or token that the model does not have."""
    tokenizer = engine.tokenizer
    for name, languages in (("language", (options.language,)), ("languages", options.languages)):
        for language in languages:
            if language is not None and language not in tokenizer.languages:
                known = ", ".join(tokenizer.languages)
                raise InvalidRequest(f"the model served does not know the language '{language}'; it knows: {known}", param=name)
    if options.task == "translate" and not tokenizer.multilingual:
        raise InvalidRequest("the model served knows English only: it cannot translate", param="task")
    if any(token >= tokenizer.vocabulary for token in options.suppress_tokens):
        raise InvalidRequest(f"suppress_tokens must be below {tokenizer.vocabulary}, the model's vocabulary", param="suppress_tokens")
