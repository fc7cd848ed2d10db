"""The reader processes, as this process sees them, and the recordings that are open in them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

from ..audio import child, reader
from ..audio.probing import CONVERT
from ..audio.threads import GivenUp
from ..audio.transport import Close, Reply, Request, SharedMemory
from ..errors import Cancelled, UnreadableAudio, WhisperError

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""For the start of a process, on a busy machine."""
_POLL_SECONDS = 0.25
"""How often a thread that waits for a reply looks whether it is still wanted."""
CRASH = f"reading the recording makes FFmpeg crash: it is damaged; {CONVERT}"
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)}
"""Other signals come from outside, such as the kernel's SIGKILL when the machine has no memory left."""
_TOO_LARGE = f"reading the recording takes more memory than is allowed: it is damaged, or has too many streams; {CONVERT}"


class ProcessEnded(Exception):
    """The process has ended. Whose recording ended it, `ReaderProcess.error_of` tells."""


class ReaderProcess:
    """One such process. One thread at a time may `ask`; any may `close_recording` and `kill`.

    `asked_by`: the thread that waits for a reply.
    """

    def __init__(self) -> None:
        """Begin to start it: the first `ask` waits until it is ready. Raises OSError when it cannot be started."""
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("reader")
        descriptors = [theirs.fileno(), memory]
        try:
            with theirs:  # the C library keeps memory for each of its arenas
                self._process = child.start(reader.__name__, "main({}, {})".format(*descriptors), descriptors, MALLOC_ARENA_MAX="2")
        except BaseException:
            ours.close()
            os.close(memory)
            raise
        self._connection = Connection(ours.detach())
        self._memory = SharedMemory(memory)
        self._lock = threading.Lock()
        self._closed = deque[int]()
        self._end_is_noted = False
        self._error: tuple[int, WhisperError] | None = None
        self.is_ready = False
        self.asked_by: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Raises OSError when the process does not become ready."""
        if self.is_ready:
            return
        try:
            self.is_ready = self._connection.poll(START_SECONDS) and self._connection.recv_bytes() == reader.READY
        except (EOFError, OSError):
            self.is_ready = False
        if not self.is_ready:
            self.kill()
            raise OSError(f"it ended with status {self._process.wait()} as it started")

    def ask(self, request: Request, is_cancelled: Callable[[], bool], descriptor: int | None = None) -> Reply:
        """The reply to a request. `descriptor`: of the file to open. Raises the reply's error, or ProcessEnded."""
        with self._lock:
            self.asked_by = threading.current_thread()
            try:
                reply = self._answer(request, is_cancelled, descriptor)
            finally:
                self.asked_by = None
        self._close_recordings()
        if reply.error is not None:
            raise reply.error
        return reply

    def close_recording(self, number: int) -> None:
        """Have a recording closed, at the latest after the request that is under way."""
        self._closed.append(number)
        self._close_recordings()

    def error_of(self, number: int) -> WhisperError | None:
        """The error of the recording that ended this process; None for another recording, and when it runs."""
        if not self.alive:
            self._note_end(None)
        return self._error[1] if self._error and self._error[0] == number else None

    def kill(self) -> None:
        """End the process now. Waiting threads get ProcessEnded."""
        self._process.kill()
        self._process.wait()

    def free(self) -> None:
        """Free what belongs to a process that has ended."""
        with self._lock:
            self._note_end(None)
            self._connection.close()
            self._memory.close()

    def _answer(self, request: Request, is_cancelled: Callable[[], bool], descriptor: int | None) -> Reply:
        deadline = time.monotonic() + request.seconds if request.seconds else float("inf")
        try:
            self._connection.send(request)
            if descriptor is not None:
                send_handle(self._connection, descriptor, self.pid)
            while not self._connection.poll(_POLL_SECONDS):
                if is_cancelled():
                    self._memory.cancelled = request.recording
                if time.monotonic() > deadline:
                    self.kill()
                    logger.error("a step of reading took more than %g s: its process was ended", request.seconds)
                    self._note_end(GivenUp(request.seconds))
                    raise ProcessEnded
            reply: Reply = self._memory.unpacked(self._connection.recv_bytes())
        except (EOFError, OSError):
            self.kill()
            self._note_end(None)
            raise ProcessEnded from None
        return reply

    def _note_end(self, error: WhisperError | None) -> None:
        """Note which recording ended the process, and its error. When the process was killed from outside, that is no recording."""
        if self._end_is_noted:
            return
        self._end_is_noted = True
        status = self._process.wait()
        if error is None and (status > 0 or status in _CRASHES):
            logger.error("a reader process ended with status %d", status)
            error = UnreadableAudio(_TOO_LARGE if status == reader.NO_MEMORY else CRASH)
        number = self._memory.working_on
        self._error = (number, error) if error and number else None

    def _close_recordings(self) -> None:
        while self._closed and self._lock.acquire(blocking=False):
            try:
                numbers = tuple(self._closed.popleft() for _ in range(len(self._closed)))
                self._connection.send(Close(numbers))
            except OSError:  # the process has ended, and its recordings with it
                pass
            finally:
                self._lock.release()


class Processes:
    """Starts reader processes, as long as they can be started. `seconds`: the most that one request may take; 0: any."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._closed, self._disabled, self._has_started = False, False, False
        self._lock = threading.Lock()
        self._processes = set[ReaderProcess]()

    def start(self) -> ReaderProcess | None:
        """A process that begins to start; None when none can be started, and after `close`."""
        with self._lock:
            if self._closed or self._disabled:
                return None
            try:
                process = ReaderProcess()
            except OSError as error:
                self._note_failure(error)
                return None
            self._processes.add(process)
            return process

    def ready(self, process: ReaderProcess | None) -> ReaderProcess | None:
        """The process when it is ready, else another one; None when none can be started. Raises Cancelled after `close`."""
        if process is None or not process.alive:
            self.forget(process)
            process = self.start()
        if self._closed:
            raise Cancelled("the request was cancelled")
        if process is None:
            return None
        try:
            process.wait_until_ready()
        except OSError as error:
            self._note_failure(error)
            self.forget(process)
            return None
        self._has_started = True
        return process

    def is_asked_by(self, thread: threading.Thread) -> bool:
        """Whether a thread waits for the reply of a process."""
        with self._lock:
            return any(process.asked_by is thread for process in self._processes)

    def forget(self, process: ReaderProcess | None) -> None:
        """Free a process that has ended."""
        with self._lock:
            if process in self._processes:
                self._processes.discard(process)
                process.free()

    def close(self) -> None:
        """End all processes and start none any more. Threads that wait for one get Cancelled."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()

    def free(self) -> None:
        """After `close`: free what belongs to the processes."""
        for process in list(self._processes):
            self.forget(process)

    def _note_failure(self, error: OSError) -> None:
        if self._closed:
            return
        if not self._has_started:
            self._disabled = True
        logger.warning("recordings are read in this process, because no other can be started: %s", error)
