"""The life of one recording: read in steps, decoded by the scheduler, ended by a transcript or an error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from ..audio import reading
from ..audio.packing import PackedWindow
from ..audio.parts import Part
from ..audio.probing import Prober
from ..audio.source import Source
from ..audio.threads import AudioThreads
from ..errors import Cancelled, EngineError, WhisperError
from ..options import Options
from ..tokenizer import Tokenizer
from ..transcript.chunked import chunked
from ..transcript.sequential import sequential
from ..transcript.tasks import PartTasks, RecordingLanguage
from ..types import Progress, Transcript, Window
from .admission import Admission, Place
from .assembly import Assembly
from .backlog import Outcome, QueuedRequest
from .passes import Passes
from .readers import Binding, Readers, Step
from .scheduler import Scheduler
from .track import PartWindow, Track

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What all jobs of a `Transcriber` share.

    `admission`: the places of open requests. `readers`: the lanes on which jobs read. `audio_threads`: they decode audio and
    detect voices for lanes without a process. `tokenizer`, `n_mels`: the engine's. `aligns`: whether it gives the times of words.
    `max_parts`: the most parts of one track that may be under way. `max_audio_seconds`, `fixed_tokens`: the settings.
    """

    scheduler: Scheduler
    admission: Admission
    readers: Readers
    audio_threads: AudioThreads
    tokenizer: Tokenizer
    n_mels: int
    aligns: bool
    max_parts: int
    max_audio_seconds: float
    fixed_tokens: int = 0


class Job:
    """One recording on its way to a transcript.

    Reading goes in steps: a reader thread reads the audio of one window and then turns to the next job, so a long file
    never keeps a clip from being read. Reading pauses while `max_parts` parts are under way, so a long file is never in
    memory as a whole.

    `place`: the request's, given back when the job ends. `on_end` is called once, when the job ends. `on_news` is called
    when the recording has been opened and when the job has ended, `on_progress` when more of the transcript is final.
    They are called on threads of the core, most of them under the job's lock, and must return at once.
    """

    def __init__(
        self,
        source: Source | Part,
        options: Options,
        runtime: Runtime,
        place: Place,
        *,
        prober: Prober | None = None,
        on_end: Callable[[Job], None] = lambda job: None,
        on_news: Callable[[], None] | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> None:
        self.options = options
        self.error: WhisperError | None = None
        self.transcript: Transcript | None = None
        self.opened = False
        self._runtime = runtime
        self._place = place
        self._on_end = on_end
        self._on_news = on_news or (lambda: None)
        self._on_progress = on_progress or (lambda: None)
        self._ended = threading.Event()
        self._lock = threading.RLock()
        # Windows of a file that is being read wait for each other to share a batch. A client that watches the progress
        # gets its first segments sooner when they do not wait.
        self._batches_windows = options.strategy == "chunked" and on_progress is None
        self._queue_entry = QueuedRequest(place.client, more_coming=self._batches_windows)
        self._language = RecordingLanguage(options.language if runtime.tokenizer.multilingual else "en")
        self._binding = Binding()
        self._passes = Passes(
            source,
            options,
            runtime.max_audio_seconds,
            runtime.audio_threads,
            self._binding,
            prober=prober,
            is_cancelled=self._ended.is_set,
        )
        self._tracks: list[Track] = []
        self._assembly = Assembly()
        self._expected = place.seconds
        self._reading = False
        self._in_step = False

    @property
    def ended(self) -> bool:
        """Whether there is a transcript or an error."""
        return self._ended.is_set()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model that transcribes the recording."""
        return self._runtime.tokenizer

    @property
    def progress(self) -> Progress:
        """What is final so far."""
        with self._lock:
            if self.transcript is not None:
                return Progress(self.transcript.segments, self.transcript.duration, self.transcript.duration)
            seconds = min((track.until for track in self._tracks), default=0.0)
            return Progress(tuple(self._assembly.segments), round(seconds, 3), self._passes.duration)

    def start(self) -> None:
        """Queue the first step of reading."""
        self._reading = True
        self._runtime.scheduler.expect(self._queue_entry)
        self._runtime.readers.submit(Step(self._place.client, self._read_step, self._fail, self._binding))

    def result(self, timeout: float | None = None) -> Transcript:
        """Wait for the transcript. Raises the job's error, or TimeoutError after `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no transcript after {timeout} s")
        if self.error is not None:
            raise self.error
        assert self.transcript is not None
        return self.transcript

    def cancel(self) -> None:
        """End the job: its queued windows are dropped, and those being decoded are ignored."""
        self._fail(Cancelled("the request was cancelled"))

    def _read_step(self) -> None:
        """Read the next window's audio, on a reader thread, and submit the window. Costs nothing when the job has ended."""
        with self._lock:
            if self.ended:
                return self._release()
            self._in_step = True
        track, task = None, None
        with self._fail_on_error("the recording could not be read"):
            self._tracks = self._tracks or self._open_tracks()
            track = self._next_track()
            task = track.read() if track else None
        with self._lock:
            self._reading = self._in_step = False
            if self.ended:
                return self._release()
            with self._fail_on_error("a window could not be submitted"):
                if track:
                    self._submit(track, track.begin(task))
                self._continue()
        self._announce_opened()

    def _open_tracks(self) -> list[Track]:
        options = self.options
        max_running = self._runtime.max_parts if options.strategy == "chunked" else 1
        channels = self._passes.open_first()
        self._expected = self._place.seconds if self._passes.expected_duration is None else self._passes.expected_duration
        self._runtime.admission.open(self._place, self._expected * len(channels))
        return [
            Track(
                self._part_tasks(channel),
                self._language,
                channel=channel,
                multilingual=options.multilingual,
                max_running=max_running,
            )
            for channel in channels
        ]

    def _part_tasks(self, channel: int | None) -> PartTasks:
        options, runtime = self.options, self._runtime
        if options.strategy == "sequential":
            return sequential(partial(self._passes.open, channel), options, self._language, runtime.tokenizer, runtime.n_mels)
        if part := self._passes.part:
            windows: Iterable[PackedWindow | None] = part.windows
        else:
            windows = self._passes.open(channel).read(reading.windows(options))
        fill_gaps = not runtime.fixed_tokens
        return chunked(windows, options, self._language, runtime.tokenizer, aligns=runtime.aligns, fill_gaps=fill_gaps)

    def _next_track(self) -> Track | None:
        """The track that has begun fewest parts, of those with room for another one."""
        return min((track for track in self._tracks if track.has_room), key=lambda track: track.begun, default=None)

    def _submit(self, track: Track, part_windows: Sequence[PartWindow]) -> None:
        for part_window in part_windows:
            window, on_outcome = self._with_fixed_tokens(part_window.window), partial(self._receive, track, part_window)
            self._runtime.scheduler.submit(self._queue_entry, window, on_outcome)

    def _with_fixed_tokens(self, window: Window) -> Window:
        """The window, decoded as the setting `fixed_tokens` demands."""
        if not (tokens := self._runtime.fixed_tokens):
            return window
        return replace(window, decoding=replace(window.decoding, max_tokens=tokens, ignore_eot=True))

    def _receive(self, track: Track, part_window: PartWindow, outcome: Outcome) -> None:
        """Take the outcome of a window, on the scheduler's outcome thread."""
        with self._lock:
            if self.ended:
                return
            with self._fail_on_error("a window's text could not be used"):
                if isinstance(outcome, WhisperError):
                    raise outcome
                self._submit(track, track.receive(part_window, outcome))
                self._continue()

    def _continue(self) -> None:
        """Publish what is final, then read on when there is room, or end the job when all is done."""
        if self._assembly.update(self._tracks):
            self._note_progress()
            self._on_progress()
        if self.ended:  # `on_progress` may cancel the job
            return
        if not self._reading and self._next_track():
            self.start()
        self._runtime.scheduler.set_more_coming(self._queue_entry, self._reading and self._batches_windows)
        if all(track.is_over for track in self._tracks):
            self.transcript = self._assembly.transcript(self.options, self._language, self._passes.recordings)
            self._end()

    def _note_progress(self) -> None:
        """Count what is transcribed as waiting no more."""
        self._place.seconds = sum(max(0.0, self._expected - track.until) for track in self._tracks)

    @contextmanager
    def _fail_on_error(self, failure: str) -> Iterator[None]:
        """End the job with the error that the block raises.

        A WhisperError is kept. Any other error becomes an EngineError whose message begins with `failure`.
        """
        try:
            yield
        except WhisperError as error:
            self._fail(error)
        except Exception as error:  # an error that ends no job would leave its client waiting for ever
            logger.exception(failure)
            self._fail(EngineError(f"{failure}: {error}"))

    def _fail(self, error: WhisperError) -> None:
        with self._lock:
            if not self.ended:
                self.error = error
                self._end()

    def _end(self) -> None:
        self._runtime.scheduler.cancel(self._queue_entry)
        self._runtime.admission.leave(self._place)
        self._on_end(self)
        self._ended.set()
        if not self._in_step:
            self._release()
        self._on_news()

    def _release(self) -> None:
        """Free the upload and the samples. During a step of reading the reader calls this when the step ends."""
        self._passes.close()
        self._runtime.readers.leave(self._binding)
        self._tracks = []

    def _announce_opened(self) -> None:
        if not self.opened and not self.ended:
            self.opened = True
            self._on_news()
