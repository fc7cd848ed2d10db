"""The core's front door: a recording and its options in, a `Transcript` out, any number of them at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from . import audio, stitch, windows
from .engines import Engine, load_engine
from .errors import Cancelled, EngineError, InvalidRequest, Overloaded, WhisperError
from .longform import Strand, with_fallback
from .options import Options
from .scheduler import Scheduler, Ticket
from .settings import Settings
from .types import SAMPLE_RATE, Decoded, Segment, Transcript

logger = logging.getLogger(__name__)

Source = bytes | bytearray | memoryview | str | Path | BinaryIO


class Job:
    """One recording on its way through the core.

    Reading goes in steps of one window on the shared reader threads, so that a long file never keeps a clip from being read, and
    pauses while `read_ahead` of its windows wait for the engine, so that a long file is never decoded into memory as a whole.
    `on_news` is called, from some thread, when the recording has been opened and when the job has ended.
    """

    def __init__(
        self, source: Source, options: Options, transcriber: Transcriber, *, read_ahead: int, on_news: Callable[[], None] | None = None
    ) -> None:
        self.options = options
        self.error: WhisperError | None = None
        self.transcript: Transcript | None = None
        self.opened = False
        self._source: Source | None = source
        self._transcriber = transcriber
        self._read_ahead = read_ahead
        self._on_news = on_news or (lambda: None)
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._ticket = Ticket()
        self._language = options.language if transcriber.engine.tokenizer.multilingual else "en"
        self._prompt = transcriber.engine.tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else ()
        self._recording: audio.Recording | None = None
        self._stretches: Iterator[windows.Stretch] | None = None
        self._waiting: list[tuple[int, windows.Stretch]] = []
        self._running = 0
        self._read = 0
        self._reading = True
        self._exhausted = False
        self._segments: dict[int, list[Segment]] = {}

    @property
    def ended(self) -> bool:
        """Whether there is a transcript or an error."""
        return self._ended.is_set()

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
        stretch = None
        try:
            stretch = None if self.ended else self._next_stretch()
        except WhisperError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("reading a recording failed")
            self._fail(EngineError(f"the recording could not be read: {error}"))
        with self._lock:
            if self.ended:
                return self._release()
            self._exhausted = stretch is None
            if stretch is not None:
                self._waiting.append((self._read, stretch))
                self._read += 1
            self._launch()
            self._reading = False
            self._continue_reading()
            self._end_if_complete()
        self._announce_opened()

    def _continue_reading(self) -> None:
        if not self._reading and not self._exhausted and self._outstanding < self._read_ahead:
            self._reading = True
            self._transcriber.read(self)

    def _next_stretch(self) -> windows.Stretch | None:
        if self._stretches is None:
            assert self._source is not None
            self._recording = audio.open_recording(self._source, max_seconds=self._transcriber.settings.max_audio_seconds)
            self._stretches = windows.cut(
                self._recording.blocks(), vad_filter=self.options.vad, vad_threshold=self.options.vad_threshold
            )
        return next(self._stretches, None)

    @property
    def _outstanding(self) -> int:
        return len(self._waiting) + self._running

    def _launch(self) -> None:
        """Start a strand for each stretch read; while the language is unknown, one at a time, the first with words decides."""
        while self._waiting and (self._language is not None or self._running == 0):
            index, stretch = self._waiting.pop(0)
            strand = with_fallback(stretch.samples, stretch.start, self.options, prompt=self._prompt, language=self._language)
            self._running += 1
            self._advance(index, stretch, strand, None)

    def _advance(self, index: int, stretch: windows.Stretch, strand: Strand[Decoded | None], decoded: Decoded | None) -> None:
        """Give a strand its decoded window (None to begin) and queue the window it asks for next, or take its result."""
        try:
            window = next(strand) if decoded is None else strand.send(decoded)
        except StopIteration as stop:
            return self._take(index, stretch, stop.value)
        if fixed := self._transcriber.settings.fixed_tokens:
            window = replace(window, decoding=replace(window.decoding, max_tokens=fixed, ignore_eot=True))
        self._transcriber.scheduler.submit(self._ticket, window, lambda outcome: self._on_outcome(index, stretch, strand, outcome))

    def _on_outcome(self, index: int, stretch: windows.Stretch, strand: Strand[Decoded | None], outcome: Decoded | WhisperError) -> None:
        with self._lock:
            if self.ended:
                return
            if isinstance(outcome, WhisperError):
                return self._fail(outcome)
            self._advance(index, stretch, strand, outcome)
            self._launch()
            self._continue_reading()
            self._end_if_complete()

    def _take(self, index: int, stretch: windows.Stretch, decoded: Decoded | None) -> None:
        self._running -= 1
        tokenizer = self._transcriber.engine.tokenizer
        found = stitch.segments(decoded, stretch.start, len(stretch.samples) / SAMPLE_RATE, tokenizer) if decoded else []
        self._segments[index] = found
        if decoded and found and self._language is None:
            self._language = decoded.language

    def _end_if_complete(self) -> None:
        if not self._exhausted or self._outstanding or self.ended:
            return
        assert self._recording is not None
        found = tuple(segment for index in sorted(self._segments) for segment in self._segments[index])
        self.transcript = Transcript(
            text="".join(segment.text for segment in found).strip(),
            language=self._language or "en",
            duration=round(self._recording.duration, 3),
            task=self.options.task,
            segments=found,
            warnings=tuple(self._recording.warnings),
        )
        self._end()

    def _fail(self, error: WhisperError) -> None:
        with self._lock:
            if not self.ended:
                self.error = error
                self._end()

    def _end(self) -> None:
        self._ticket.cancelled = True
        self._waiting.clear()
        self._transcriber.forget(self)
        self._ended.set()
        if not self._reading:
            self._release()
        self._on_news()

    def _release(self) -> None:
        """Let go of the upload. While a step is under way the reader does it, when it comes back."""
        if self._recording is not None:
            self._recording.close()
        self._source, self._stretches = None, None

    def _announce_opened(self) -> None:
        if not self.opened and not self.ended:
            self.opened = True
            self._on_news()


class Transcriber:
    """Whisper in process. `Transcriber(Settings(model="nano"))("speech.flac").text`

    Thread-safe: any number of recordings may be under way, and their windows share the engine's batches.
    """

    def __init__(self, settings: Settings | None = None, *, engine: Engine | None = None) -> None:
        self.settings = settings or Settings.load()
        self.engine = engine or load_engine(self.settings)
        self.scheduler = Scheduler(self.engine)
        self._readers = ThreadPoolExecutor(self.settings.readers, thread_name_prefix="reader")
        self._open: set[Job] = set()
        self._lock = threading.Lock()

    def __call__(self, source: Source, **options: Any) -> Transcript:
        """Transcribe one recording and wait for it. `options`: those of `Options`. Raises WhisperError."""
        return self.submit(source, Options(**options)).result()

    def submit(self, source: Source, options: Options, *, on_news: Callable[[], None] | None = None) -> Job:
        """Begin a transcription. Raises InvalidRequest for what the model cannot do, Overloaded when too many are open."""
        _check_model(self.engine, options)
        job = Job(source, options, self, read_ahead=2 * self.engine.max_batch, on_news=on_news)
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
        self.scheduler.close()
        self.engine.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_model(engine: Engine, options: Options) -> None:
    """Raise InvalidRequest for a language the model has no token for, or a translation by a model that knows English only."""
    tokenizer = engine.tokenizer
    if options.language is not None and options.language not in tokenizer.languages:
        known = ", ".join(tokenizer.languages)
        raise InvalidRequest(f"the model served does not know the language '{options.language}'; it knows: {known}", param="language")
    if options.task == "translate" and not tokenizer.multilingual:
        raise InvalidRequest("the model served knows English only: it cannot translate", param="task")
