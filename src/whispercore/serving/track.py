"""One channel of a recording, from its part tasks to finished parts in order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..transcript.tasks import PartialTranscript, PartTask, PartTasks, RecordingLanguage
from ..types import Decoded, Window


@dataclass(frozen=True, slots=True, eq=False)
class PartWindow:
    """A window that the part with this number, from 0, needs decoded."""

    part: int
    window: Window


class Track:
    """The parts of one channel: they begin in order, are decoded side by side, and are finished in order.

    No threads and no locks: the job's lock guards it. Only `read` may run beside the other methods.
    `tasks`: one task for each part. `max_running`: the most parts under way at once; 1 when a part depends on the one
    before. `language`: shared by all tracks of the recording; the first part with words sets it. When `multilingual`,
    each window has its own language instead. `begun` counts parts. `until`: the track is finished up to this second.
    """

    def __init__(
        self,
        tasks: PartTasks,
        language: RecordingLanguage,
        *,
        channel: int | None = None,
        multilingual: bool = False,
        max_running: int = 1,
    ) -> None:
        self.channel = channel
        self.begun = 0
        self.until = 0.0
        self._tasks = tasks
        self._language = language
        self._multilingual = multilingual
        self._max_running = max_running
        self._all_read = False
        self._exhausted = False
        self._running: dict[int, PartTask] = {}
        self._decoded: dict[int, tuple[Window, Decoded]] = {}
        self._out_of_order: dict[int, PartialTranscript] = {}
        self._finished: list[PartialTranscript] = []
        self._next_part = 0

    @property
    def has_room(self) -> bool:
        """Whether the next task may be read."""
        return not self._exhausted and len(self._running) < self._max_running

    @property
    def is_over(self) -> bool:
        """Whether all parts are finished."""
        return self._exhausted and not self._running

    def read(self) -> PartTask | None:
        """Read audio up to the next part. Returns its task; None when there is none yet, or none is left."""
        try:
            return next(self._tasks)
        except StopIteration:
            self._all_read = True
            return None

    def begin(self, task: PartTask | None) -> list[PartWindow]:
        """Begin the part whose task `read` has returned. Returns its first window; nothing when it has none."""
        self._exhausted = self._all_read
        if task is None:
            return []
        part = self.begun
        self.begun += 1
        self._running[part] = task
        return self._advance(part, None)

    def receive(self, request: PartWindow, decoded: Decoded) -> list[PartWindow]:
        """Give a decoded window to its part. Returns the windows to decode next, also those of parts that waited."""
        self._decoded[request.part] = request.window, decoded
        windows: list[PartWindow] = []
        while (part := self._next_decoded()) is not None:
            windows += self._use(part, *self._decoded.pop(part))
        return windows

    def take_finished(self) -> list[PartialTranscript]:
        """The parts that have been finished in order since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _next_decoded(self) -> int | None:
        """The part whose decoded window is used next.

        While the language of the recording is unknown, only the first unfinished part goes on, because it may set the
        language.
        """
        if self._language.language is None and not self._multilingual:
            return self._next_part if self._next_part in self._decoded else None
        return min(self._decoded, default=None)

    def _use(self, part: int, window: Window, decoded: Decoded) -> list[PartWindow]:
        """Advance a part by its decoded window, or decode the window again in the language of the recording.

        Windows are decoded before that language is known. Nearly always their own detected language is the same one.
        """
        language = self._language.language
        if self._multilingual or window.decoding.language is not None or language in (None, decoded.language):
            return self._advance(part, decoded)
        return [PartWindow(part, replace(window, decoding=replace(window.decoding, language=language)))]

    def _advance(self, part: int, decoded: Decoded | None) -> list[PartWindow]:
        """Run a part's task up to its next window (`decoded` None to begin it), or to its end."""
        task = self._running[part]
        try:
            return [PartWindow(part, next(task) if decoded is None else task.send(decoded))]
        except StopIteration as stop:
            del self._running[part]
            self._out_of_order[part] = stop.value
        while (finished := self._out_of_order.pop(self._next_part, None)) is not None:
            self._next_part += 1
            self.until = finished.until
            self._finished.append(finished)
        return []
