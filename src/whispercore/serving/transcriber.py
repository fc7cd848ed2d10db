"""The core's front door: a recording and its options in, a `Transcript` out, any number of them at once."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from ..api.values import read_options
from ..audio.cutting import cut_incrementally
from ..audio.packing import pack_chunks
from ..audio.recording import Recording, open_recording
from ..audio.threads import AudioThreads
from ..catalogue import ENGINES
from ..checkpoints import choose_model, is_demonstration, prepare
from ..devices import logical_cores, reading_threads
from ..engines import Engine, load_engines
from ..errors import Cancelled, ConfigurationError, EngineError, InvalidRequest, Overloaded, WhisperError
from ..options import OptionKeywords, Options
from ..settings import ENVIRONMENT_PREFIX, SettingKeywords, Settings
from ..transcript.chunked import chunked
from ..transcript.sequential import sequential
from ..transcript.tasks import DetectedLanguage, PartialTranscript, PartTask, PartTasks
from ..types import Decoded, Dropped, Progress, Segment, Transcript, Window
from .backlog import Ticket
from .scheduler import Scheduler

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

logger = logging.getLogger(__name__)

Source = bytes | bytearray | memoryview | str | Path | BinaryIO
MAX_CHANNELS = 8


class _NoMore:
    """A track has no more tasks."""


_NO_MORE: Final = _NoMore()


@dataclass(slots=True, eq=False)
class Track:
    """One channel of a recording: the tasks it asks for, the windows under way, and what has been heard, in order."""

    channel: int | None
    tasks: PartTasks
    concurrent: bool
    running: int = 0
    begun: int = 0
    exhausted: bool = False
    answers: dict[int, tuple[PartTask, Window, Decoded]] = field(default_factory=dict)
    parts: dict[int, PartialTranscript] = field(default_factory=dict)
    done: int = 0
    until: float = 0.0

    def has_room(self, read_ahead: int) -> bool:
        """Whether its next task may be asked for."""
        return not self.exhausted and self.running < (read_ahead if self.concurrent else 1)

    def next_answer(self, *, in_turn: bool) -> tuple[int, PartTask, Window, Decoded] | None:
        """A window that has been decoded and not been told to its task; `in_turn`: to the one whose part comes next, nobody else."""
        index = self.done if in_turn else min(self.answers, default=None)
        return (index, *self.answers.pop(index)) if index in self.answers else None

    def next_passage(self) -> PartialTranscript | None:
        """The part after those already taken, once it is there."""
        part = self.parts.pop(self.done, None)
        if part is not None:
            self.done += 1
            self.until = part.until
        return part


class Job:
    """One recording on its way through the core.

    Reading goes in steps of one window on the shared reader threads, so that a long file never keeps a clip from being read, and
    pauses while `read_ahead` of its windows wait for the engine, so that a long file is never decoded into memory as a whole.
    `on_news` is called, from some thread, when the recording has been opened and when the job has ended; `on_progress` when more of the
    transcript is final.
    """

    def __init__(
        self,
        source: Source,
        options: Options,
        transcriber: Transcriber,
        *,
        read_ahead: int,
        on_news: Callable[[], None] | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> None:
        self.options = options
        self.error: WhisperError | None = None
        self.transcript: Transcript | None = None
        self.opened = False
        self._source: Source | None = source
        self._transcriber = transcriber
        self._read_ahead = read_ahead
        self._on_news = on_news or (lambda: None)
        self._on_progress = on_progress or (lambda: None)
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._ticket = Ticket()
        self._heard = DetectedLanguage(options.language if transcriber.engine.tokenizer.multilingual else "en")
        self._recordings: list[Recording] = []
        self._first: Recording | None = None
        self._tracks: list[Track] = []
        self._reading = True
        # Who watches the transcript grow is told of the first window sooner when it goes alone.
        self._in_company = self._ticket.being_read = options.strategy == "chunked" and on_progress is None
        self._segments: list[Segment] = []
        self._pending: list[Segment] = []
        self._dropped: list[Dropped] = []
        self._duration: float | None = None

    @property
    def ended(self) -> bool:
        """Whether there is a transcript or an error."""
        return self._ended.is_set()

    @property
    def progress(self) -> Progress:
        """What is final so far."""
        with self._lock:
            if self.transcript is not None:
                return Progress(self.transcript.segments, self.transcript.duration, self.transcript.duration)
            seconds = min((track.until for track in self._tracks), default=0.0)
            return Progress(tuple(self._segments), round(seconds, 3), self._duration)

    def result(self, timeout: float | None = None) -> Transcript:
        """The transcript, waited for; raises the job's error, or TimeoutError."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no transcript after {timeout} s")
        if self.error is not None:
            raise self.error
        assert self.transcript is not None
        return self.transcript

    def cancel(self) -> None:
        """Give up: windows in the queue are dropped, the one being decoded is ignored."""
        self._fail(Cancelled("the request was cancelled"))

    def step(self) -> None:
        """Read the next window of the recording, on a reader thread; called again while there is room ahead."""
        track, task = None, None
        try:
            if not self.ended:
                self._open()
                track = self._next_track()
                task = next(track.tasks, _NO_MORE) if track else None
        except WhisperError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("reading a recording failed")
            self._fail(EngineError(f"the recording could not be read: {error}"))
        with self._lock:
            if track is not None and not self.ended:
                self._begin_task(track, task)
            if self.ended:
                return self._release()
            self._reading = False
            self._continue_reading()
            self._end_if_complete()
        self._announce_opened()

    def _open(self) -> None:
        """Open the recording: once for each track's pass."""
        if self._tracks:
            return
        read_once = self.options.strategy == "chunked" and self.options.channels == "mono"
        if not read_once and not isinstance(self._source, bytes | bytearray | memoryview | str | Path | None):
            self._source = self._source.read()  # a file has one position only
        self._first = self._open_recording()
        self._duration, count = self._first.declared_duration, self._first.channels
        apart = self.options.channels == "separate" and count > 1
        if apart and count > MAX_CHANNELS:
            raise InvalidRequest(f"{count} channels cannot be transcribed apart, at most {MAX_CHANNELS}", param="channels")
        channels: Sequence[int | None] = range(count) if apart else (None,)
        self._tracks = [Track(channel, self._strands(channel), self.options.strategy == "chunked") for channel in channels]

    def _open_recording(self, channel: int | None = None) -> Recording:
        if channel is None and self._first is not None:
            opened, self._first = self._first, None
            return opened
        assert self._source is not None
        recording = open_recording(
            self._source,
            max_seconds=self._transcriber.settings.max_audio_seconds,
            channel=channel,
            track=self.options.audio_track,
            threads=self._transcriber.audio_threads,
        )
        self._recordings.append(recording)
        return recording

    def _strands(self, channel: int | None) -> PartTasks:
        options, engine, threads = self.options, self._transcriber.engine, self._transcriber.audio_threads
        if options.strategy == "sequential":
            return sequential(partial(self._open_recording, channel), options, self._heard, engine.tokenizer, engine.n_mels, threads)
        chunks = cut_incrementally(self._open_recording(channel).blocks(), options, threads)
        packs = pack_chunks(chunks, alone=options.multilingual)
        single_pass = bool(self._transcriber.settings.fixed_tokens)
        return chunked(packs, options, self._heard, engine.tokenizer, aligns=self._transcriber.aligns, single_pass=single_pass)

    def _next_track(self) -> Track | None:
        """Of the tracks with room the one that has read least."""
        return min((track for track in self._tracks if track.has_room(self._read_ahead)), key=lambda track: track.begun, default=None)

    def _begin_task(self, track: Track, task: PartTask | _NoMore | None) -> None:
        try:
            self._take_task(track, task)
        except Exception as error:  # nobody else would tell the client that waits
            logger.exception("a window could not be asked for")
            self._fail(error if isinstance(error, WhisperError) else EngineError(f"a window could not be asked for: {error}"))

    def _take_task(self, track: Track, task: PartTask | _NoMore | None) -> None:
        if isinstance(task, _NoMore):
            track.exhausted = True
        elif task is not None:
            track.running += 1
            track.begun += 1
            self._advance(track, track.begun - 1, task, None)

    def _continue_reading(self) -> None:
        if not self._reading and self._next_track():
            self._reading = True
            self._transcriber.read(self)
        self._transcriber.scheduler.being_read(self._ticket, self._reading and self._in_company)

    def _advance(self, track: Track, index: int, task: PartTask, decoded: Decoded | None) -> None:
        """Give a task its decoded window (None to begin) and queue the window it asks for next, or take its result."""
        try:
            window = next(task) if decoded is None else task.send(decoded)
        except StopIteration as stop:
            return self._take(track, index, stop.value)
        self._submit(track, index, task, window)

    def _submit(self, track: Track, index: int, task: PartTask, window: Window) -> None:
        if fixed := self._transcriber.settings.fixed_tokens:
            window = replace(window, decoding=replace(window.decoding, max_tokens=fixed, ignore_eot=True))
        on_outcome = partial(self._on_outcome, track, index, task, window)
        self._transcriber.scheduler.submit(self._ticket, window, on_outcome)

    def _on_outcome(self, track: Track, index: int, task: PartTask, window: Window, outcome: Decoded | WhisperError) -> None:
        with self._lock:
            if self.ended:
                return
            if isinstance(outcome, WhisperError):
                return self._fail(outcome)
            try:
                track.answers[index] = task, window, outcome
                while answer := track.next_answer(in_turn=not self._language_is_settled):
                    self._answer(track, *answer)
                self._continue_reading()
                self._end_if_complete()
            except Exception as error:  # nobody else would tell the client that waits
                logger.exception("a window's text could not be used")
                self._fail(EngineError(f"a window's text could not be used: {error}"))

    @property
    def _language_is_settled(self) -> bool:
        return self._heard.language is not None or self.options.multilingual

    def _answer(self, track: Track, index: int, task: PartTask, window: Window, decoded: Decoded) -> None:
        """Tell a task what its window says; in a language that is not the recording's, the window is decoded again instead.

        The first window with words has the say. The others do not wait for it: nearly always they are heard in its language, as though
        they had been told.
        """
        told, language = window.decoding.language, self._heard.language
        if self.options.multilingual or told is not None or language in (None, decoded.language):
            return self._advance(track, index, task, decoded)
        self._submit(track, index, task, replace(window, decoding=replace(window.decoding, language=language)))

    def _take(self, track: Track, index: int, part: PartialTranscript) -> None:
        track.running -= 1
        track.parts[index] = part
        if index != track.done:
            return
        while (passage_in_order := track.next_passage()) is not None:
            self._pending += [replace(segment, channel=track.channel) for segment in passage_in_order.segments]
            self._dropped += passage_in_order.dropped
        self._settle()
        self._on_progress()

    def _settle(self) -> None:
        """Segments are final when no channel can say anything before them any more."""
        until = min((track.until for track in self._tracks if not self._is_over(track)), default=math.inf)
        alone = len(self._tracks) == 1
        final = [segment for segment in self._pending if alone or segment.start < until]
        self._pending = [segment for segment in self._pending if not (alone or segment.start < until)]
        self._segments += final if alone else sorted(final, key=lambda segment: (segment.start, segment.channel or 0))

    @staticmethod
    def _is_over(track: Track) -> bool:
        return track.exhausted and not track.running

    def _end_if_complete(self) -> None:
        if self.ended or not all(map(self._is_over, self._tracks)) or not self._tracks:
            return
        self._settle()
        self.transcript = Transcript(
            text="".join(segment.text for segment in self._segments).strip(),
            language=self._heard.language or "en",
            duration=round(max(recording.duration for recording in self._recordings), 3),
            task=self.options.task,
            segments=tuple(self._segments),
            warnings=tuple(dict.fromkeys(warning for recording in self._recordings for warning in recording.warnings)),
            dropped=tuple(sorted(self._dropped, key=lambda dropped: dropped.start)),
            language_probability=self._heard.probability,
            audio_tracks=self._recordings[0].tracks if len(self._recordings[0].tracks) > 1 else (),
        )
        self._end()

    def _fail(self, error: WhisperError) -> None:
        with self._lock:
            if not self.ended:
                self.error = error
                self._end()

    def _end(self) -> None:
        self._ticket.cancelled = True
        for track in self._tracks:
            track.answers.clear()
        self._transcriber.forget(self)
        self._ended.set()
        if not self._reading:
            self._release()
        self._on_news()

    def _release(self) -> None:
        """Let go of the upload. While a step is under way the reader does it, when it comes back."""
        for recording in self._recordings:
            recording.close()
        self._source = None
        self._tracks = []

    def _announce_opened(self) -> None:
        if not self.opened and not self.ended:
            self.opened = True
            self._on_news()


class Transcriber:
    """Whisper in process. `Transcriber("nano", engine="ct2", dtype="int8", batch_size=8)("speech.flac").text`

    Thread-safe: any number of recordings may be under way, and their windows share the engine's batches.
    """

    def __init__(
        self, model: Settings | str | Path | None = None, *, engine: Engine | str | None = None, **settings: Unpack[SettingKeywords]
    ) -> None:
        """A checkpoint by name or path, an engine by name, and other settings by theirs: what is not given is as `Settings.load` says.

        Or `Settings`, whose checkpoint has been made ready for its engine; or an engine that is loaded. Raises ConfigurationError.
        """
        loaded = None if isinstance(engine, str) else engine
        given = _settings(model, engine if isinstance(engine, str) else None, dict(settings))
        self.settings = choose_model(given, look=loaded is None)
        if not isinstance(model, Settings) and loaded is None:
            prepare(self.settings)
        self.engines = [loaded] if loaded else load_engines(self.settings)
        self.engine = self.engines[0]
        self.is_demonstration = self.engine.name != "fake" and is_demonstration(self.settings)
        # The attention of the bundled nano follows the sound in some windows only: by timestamps each is decoded once, not twice.
        self.aligns = ENGINES[self.engine.name].aligns and not self.is_demonstration
        self.scheduler = Scheduler(*self.engines)
        self.audio_threads = AudioThreads(logical_cores())
        self._readers = ThreadPoolExecutor(reading_threads(self.settings), thread_name_prefix="reader")
        self._open: set[Job] = set()
        self._lock = threading.Lock()

    def __call__(self, source: Source, *, timestamps: bool = True, **options: Unpack[OptionKeywords]) -> Transcript:
        """Transcribe one recording and wait for it. `options`: a request's; `timestamps` False is their `without_timestamps`.

        Raises WhisperError.
        """
        return self.submit(source, read_options(options if timestamps else {**options, "without_timestamps": True})).result()

    def submit(
        self,
        source: Source,
        options: Options,
        *,
        on_news: Callable[[], None] | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Job:
        """Begin a transcription. Raises InvalidRequest for what the model or engine cannot do, Overloaded when too many are open."""
        _check_engine(self.engine, options)
        _check_model(self.engine, options)
        job = Job(
            source, options, self, read_ahead=2 * sum(one.max_batch for one in self.engines), on_news=on_news, on_progress=on_progress
        )
        with self._lock:
            if len(self._open) >= self.settings.max_open_requests:
                raise Overloaded(f"{len(self._open)} requests are open already; try again later")
            self._open.add(job)
        self.read(job)
        return job

    @property
    def open_requests(self) -> int:
        """Jobs that have not ended."""
        with self._lock:
            return len(self._open)

    def read(self, job: Job) -> None:
        """Queue one reading step of a job behind the others'."""
        self._readers.submit(job.step)

    def forget(self, job: Job) -> None:
        """A job has ended."""
        with self._lock:
            self._open.discard(job)

    def close(self) -> None:
        """Cancel what is open, stop the threads and free the engine."""
        with self._lock:
            jobs = list(self._open)
        for job in jobs:
            job.cancel()
        self._readers.shutdown(cancel_futures=True)
        self.audio_threads.close()
        self.scheduler.close()
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _settings(model: Settings | str | Path | None, engine: str | None, others: dict[str, Any]) -> Settings:
    """What a caller asks for, over the environment, over the defaults. Raises ConfigurationError."""
    if isinstance(model, Settings):
        if engine is not None or others:
            raise ConfigurationError("give Settings or single settings, not both: dataclasses.replace changes Settings", param="model")
        return model
    given = others | {name: value for name, value in (("model", model and str(model)), ("engine", engine)) if value is not None}
    mine = {ENVIRONMENT_PREFIX + name.upper() for name in given}
    return Settings.load(given, {name: value for name, value in os.environ.items() if name not in mine})


def _check_engine(engine: Engine, options: Options) -> None:
    """Raise InvalidRequest for an option that the engine cannot honour."""
    unsupported = ENGINES[engine.name].unsupported
    for item in fields(options):
        if item.name in unsupported and getattr(options, item.name) != item.default:
            raise InvalidRequest(f"the engine served, {engine.name}, has no {item.name}: leave it out", param=item.name)


def _check_model(engine: Engine, options: Options) -> None:
    """Raise InvalidRequest for a language the model has no token for, or a translation by a model that knows English only."""
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
