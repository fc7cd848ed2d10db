"""Opens a recording in another process first, which the kernel ends when it takes too much processor time or memory.

Some demuxers parse all tags of a file in a single call of FFmpeg that Python cannot interrupt. A file that the other
process has opened in time is opened again here, at the same cost. Small files cannot be slow and are not tried.

The other process forks for each file, so that a file on which FFmpeg crashes costs milliseconds, not the start of Python.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, BinaryIO

from ..errors import UnreadableAudio
from . import child
from .source import Source, byte_count, descriptor_of

if TYPE_CHECKING:
    from .recording import Recording

logger = logging.getLogger(__name__)

SMALLEST = 64 * 1024
"""Bytes. A smaller file opens within 0.1 s of processor time, whatever it holds."""
PROCESSOR_SECONDS = 5
MEMORY_BYTES = 4 << 30
"""Of address space, more than the process has when it begins to serve."""
WAIT_SECONDS = 60.0
"""For an answer, on a machine so busy that a process gets no processor time."""
_READY = b"r"
_NO_MEMORY = 2
"""The exit status of a process whose file needs too much memory."""
_TOO_SLOW = "opening the file takes more than {seconds} s of processor time: it has too many tags or streams"
_TOO_LARGE = "opening the file takes more memory than is allowed: it is damaged, or has too many streams"
_CRASH = "opening the file makes FFmpeg crash: it is damaged"
CONVERT = "convert it (ffmpeg -i FILE -map 0:a -map_metadata -1 out.flac) and send the result"
_FAULTS = {-signal.SIGXCPU: _TOO_SLOW, -signal.SIGALRM: _TOO_SLOW, _NO_MEMORY: _TOO_LARGE}
_ATTEMPTS = 2
"""With processes that are killed from outside."""


class Prober:
    """Processes that open recordings, started as they are needed. Any number of threads may use it.

    Where no such process can be started, as in some sandboxes, files are not tried, and a warning is logged once. Where one has been
    started before, the next file has another one started: then memory or processes were short for a while.
    """

    def __init__(self, processes: int = 2, seconds: int = PROCESSOR_SECONDS) -> None:
        """`seconds`: of processor time for each file."""
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._processes, self._seconds = processes, seconds
        self._disabled, self._has_started = threading.Event(), False

    def start(self) -> None:
        """Start the first process now, so that the first recording does not wait for it."""
        with contextlib.suppress(Empty):
            self._idle.put(self._idle.get_nowait() or self._new_process())

    def check(self, source: Source) -> None:
        """Raise UnreadableAudio when opening `source` takes too much time or memory. Its other faults are found later.

        An open file is not tried: only its caller knows whether it can be read twice.
        """
        if self._disabled.is_set():
            return
        if (descriptor := _descriptor(source)) is None:
            return
        try:
            fault = self._fault(descriptor)
        finally:
            os.close(descriptor)
        if fault:
            raise UnreadableAudio(f"{fault}; {CONVERT}")

    def _fault(self, descriptor: int) -> str | None:
        """What is wrong with the file; None when it has been tried, or when no process can be started."""
        process, status = self._idle.get(), -signal.SIGKILL
        try:
            for _ in range(_ATTEMPTS):
                process = process if process and process.alive else self._new_process()
                if process is None:
                    return None
                status = process.open(descriptor)
                if status != -signal.SIGKILL:  # that comes from outside, such as the kernel's when the machine has no memory left
                    break
        finally:
            self._idle.put(process)
        return _FAULTS.get(status, _CRASH).format(seconds=self._seconds) if status else None

    def _new_process(self) -> _Process | None:
        """A process that is ready; None when none can be started. When not even the first one can, files are not tried any more."""
        if self._disabled.is_set():
            return None
        try:
            process = _Process(self._seconds)
        except OSError as error:
            if not self._has_started:
                self._disabled.set()
            logger.warning("uploads are not opened in another process first, because none can be started: %s", error)
            return None
        self._has_started = True
        return process

    def close(self) -> None:
        """End the processes, each when it has answered."""
        self._disabled.set()
        for process in [self._idle.get() for _ in range(self._processes)]:
            if process:
                process.kill()
            self._idle.put(None)


def _descriptor(source: Source) -> int | None:
    """A file descriptor of the source; None for a small file, for an open file, and where none can be had."""
    if not isinstance(source, str | Path) and byte_count(source) < SMALLEST:
        return None
    try:
        descriptor = descriptor_of(source)
    except OSError as error:  # no such file, no memory, or a sandbox without files in memory
        if not isinstance(source, str | Path):
            logger.warning("an upload is not opened in another process first: %s", error)
        return None
    if descriptor is None or os.fstat(descriptor).st_size >= SMALLEST:
        return descriptor
    os.close(descriptor)
    return None


class _Process:
    """One such process, and the socket to it."""

    def __init__(self, seconds: int) -> None:
        """Raises OSError when the process does not start."""
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(WAIT_SECONDS + 10)  # the process itself gives up earlier
        call = f"serve({theirs.fileno()}, {seconds}, {WAIT_SECONDS})"
        with theirs:
            self._process = child.start(__name__, call, [theirs.fileno()])
        try:
            ready = self._socket.recv(1) == _READY
        except OSError:
            ready = False
        if not ready:
            self.kill()
            raise OSError(f"it ended with status {self._process.returncode} as it started")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def open(self, descriptor: int) -> int:
        """Have the file tried. Returns 0 when that ended within the limits, else the exit status of the process that tried.

        Negative: the signal that ended it. -SIGKILL also when there is no answer; then this process has ended.
        """
        try:
            socket.send_fds(self._socket, [b"f"], [descriptor])
            if answer := self._socket.recv(1):
                return int.from_bytes(answer, "big", signed=True)
        except OSError:
            pass
        self.kill()
        return -signal.SIGKILL

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()


def serve(descriptor: int, seconds: int, wait_seconds: float) -> None:
    """Try the files that come through the socket `descriptor`, until it is closed.

    `seconds`: of processor time for each, `wait_seconds` of the clock. Runs in the other process.
    """
    from . import recording  # here: the parent needs it only later

    with socket.socket(fileno=descriptor) as requests:
        requests.sendall(_READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
            if not message:
                return
            child = os.fork()  # safe: no library has started a thread here
            if not child:
                status = 1
                try:
                    status = _try(recording.open_recording, descriptors[0], seconds, wait_seconds)
                finally:
                    os._exit(status)
            os.close(descriptors[0])
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            requests.sendall(status.to_bytes(1, "big", signed=True))


def _try(open_recording: Callable[[BinaryIO], Recording], descriptor: int, seconds: int, wait_seconds: float) -> int:
    """Open a file within the limits. Returns the exit status of the process that was made for it."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in ((resource.RLIMIT_AS, own + MEMORY_BYTES), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, wait_seconds)
    try:
        with os.fdopen(descriptor, "rb") as file:
            open_recording(file).close()
    except Exception as error:  # found again when the file is read
        # Without the limit the worker would take that memory.
        return _NO_MEMORY if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError) else 0
    return 0
