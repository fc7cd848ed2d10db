"""Pools of threads that decode audio and detect voices, and that replace a thread which does not come back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ..errors import UnreadableAudio

_P = ParamSpec("_P")
_T = TypeVar("_T")


class GivenUp(UnreadableAudio):
    """Reading takes too long, and another thread has replaced its own, which may still use the file and the decoder.

    It is no fault of the server (500): clients would send the same file again, and it would cost another thread.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"reading the recording takes more than {seconds:g} s: "
            "convert it (ffmpeg -i FILE -map_metadata -1 out.flac) and send the result"
        )


@dataclass(slots=True, eq=False)
class _Work:
    call: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


class ReplaceableThreads(Executor):
    """A pool of `count` daemon threads. A thread whose work takes too long is given up, and another takes its place.

    Python cannot end a thread that hangs in a library; `ThreadPoolExecutor` would have one thread fewer from then on.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._changed = threading.Condition()
        self._queue: deque[_Work] = deque()
        self._began: dict[threading.Thread, tuple[float, _Work] | None] = {}
        self._idle = 0
        self._closing = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Queue a call. Raises RuntimeError after `shutdown`."""
        work = _Work(partial(fn, *args, **kwargs))
        with self._changed:
            if self._closing:
                raise RuntimeError("the threads have been shut down")
            self._queue.append(work)
            if len(self._queue) > self._idle and len(self._began) < self.count:
                self._start_thread()
            self._changed.notify()
        return work.future

    def give_up(self, seconds: float, is_spared: Callable[[threading.Thread], bool] = lambda thread: False) -> int:
        """Give up the work that has run longer than `seconds`: its future raises GivenUp. Returns how much that is.

        `is_spared`: whether something else ends the work of a thread in time.
        """
        with self._changed:
            limit = time.monotonic() - seconds
            begun_earlier = {thread: begun[1] for thread, begun in self._began.items() if begun and begun[0] < limit}
            overdue = {thread: work for thread, work in begun_earlier.items() if not is_spared(thread)}
            for thread in overdue:
                del self._began[thread]  # it ends when its work does
                if self._queue:
                    self._start_thread()
        for work in overdue.values():
            work.future.set_exception(GivenUp(seconds))
        return len(overdue)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work. With `wait`, return when all threads have ended but those that were given up."""
        with self._changed:
            self._closing = True
            cancelled = list(self._queue) if cancel_futures else []
            if cancel_futures:
                self._queue.clear()
            self._changed.notify_all()
            threads = list(self._began)
        for work in cancelled:
            work.future.cancel()
        while wait and any(thread.is_alive() and thread in self._began for thread in threads):
            for thread in threads:
                thread.join(0.05)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._began)}", daemon=True)
        self._began[thread] = None
        thread.start()

    def _work(self) -> None:
        while work := self._next():
            outcome: Any = None
            error: BaseException | None = None
            try:
                outcome = work.call()
            except BaseException as raised:  # the future raises it where its result is asked for
                error = raised
            if not self._finish():
                return
            if error is None:
                work.future.set_result(outcome)
            else:
                work.future.set_exception(error)
            del work, outcome, error  # results must not stay in memory until the next call

    def _next(self) -> _Work | None:
        """Wait for work; None when the pool is closing and nothing is queued."""
        thread = threading.current_thread()
        with self._changed:
            self._idle += 1
            while True:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    self._idle -= 1
                    return None
                work = self._queue.popleft()
                if work.future.set_running_or_notify_cancel():
                    self._idle -= 1
                    self._began[thread] = time.monotonic(), work
                    return work

    def _finish(self) -> bool:
        """Note that this thread's work is done; False when the thread has been given up meanwhile."""
        thread = threading.current_thread()
        with self._changed:
            if thread not in self._began:
                return False
            self._began[thread] = None
            return True


class AudioThreads:
    """Two pools of threads; the owner closes them. FFmpeg and onnxruntime release the GIL while they work.

    `decoding` has one thread per logical core, `detection` half as many, because decoding needs cores at the same time.
    """

    def __init__(self, cores: int) -> None:
        """`cores`: the logical cores that this process may run on."""
        self.decoding = ReplaceableThreads(cores, "decoder")
        self.detection = ReplaceableThreads(max(1, cores // 2), "vad")

    def give_up(self, seconds: float) -> None:
        """Give up work that has run longer than `seconds`."""
        for threads in (self.decoding, self.detection):
            threads.give_up(seconds)

    def close(self) -> None:
        """Drop queued work and wait for running work. Recordings that still use these threads fail."""
        self.decoding.shutdown(cancel_futures=True)
        self.detection.shutdown(cancel_futures=True)
