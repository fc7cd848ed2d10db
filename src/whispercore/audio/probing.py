"""Opens a recording in another process first, which the kernel ends when it takes too much processor time or memory.

Some demuxers parse all tags of a file in a single call of FFmpeg that Python cannot interrupt. A file that the other
process has opened in time is opened again here, at the same cost. Small files cannot be slow and are not tried.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, LifoQueue

from ..errors import UnreadableAudio
from .source import Source

logger = logging.getLogger(__name__)

SMALLEST = 64 * 1024
"""Bytes. A smaller file opens within 0.1 s of processor time, whatever it holds."""
PROCESSOR_SECONDS = 5
MEMORY_BYTES = 4 << 30
"""Of address space, more than the process has when it begins to serve."""
WAIT_SECONDS = 60.0
"""For an answer, on a machine so busy that a process gets no processor time."""
_READY, _DONE = b"r", b"d"
_NO_MEMORY, _TIMEOUT = 2, 3
"""Exit statuses: of a process whose file needs too much memory, and, given here, of one that does not answer."""
_TOO_SLOW = "opening the file takes more than {seconds} s of processor time: it has too many tags or streams"
_TOO_LARGE = "opening the file takes more memory than is allowed: it is damaged, or has too many streams"
_FAULTS = {-signal.SIGXCPU: _TOO_SLOW, _TIMEOUT: _TOO_SLOW, _NO_MEMORY: _TOO_LARGE}
_CRASH = "opening the file makes FFmpeg crash: it is damaged"
_ATTEMPTS = 2
"""With processes that are killed from outside."""


class Prober:
    """Processes that open recordings, started as they are needed. Any number of threads may use it.

    Where no such process can be started, as in some sandboxes, files are not tried, and a warning is logged once.
    """

    def __init__(self, processes: int = 2, seconds: int = PROCESSOR_SECONDS) -> None:
        """`seconds`: of processor time for each file."""
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._processes, self._seconds = processes, seconds
        self._disabled = threading.Event()

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
        with contextlib.ExitStack() as files:
            descriptor = _descriptor(source, files)
            if descriptor is not None and (fault := self._fault(descriptor)):
                raise UnreadableAudio(f"{fault}; convert it (ffmpeg -i FILE -map 0:a -map_metadata -1 out.flac) and send the result")

    def _fault(self, descriptor: int) -> str | None:
        """What is wrong with the file; None when a process has opened it, or when none can be started."""
        process, ended = self._idle.get(), -signal.SIGKILL
        try:
            for _ in range(_ATTEMPTS):
                process = process if process and process.alive else self._new_process()
                if process is None or process.opens(descriptor):
                    return None
                ended, process = process.end(), None
                if ended != -signal.SIGKILL:  # that comes from outside, such as the kernel's when the machine has no memory left
                    break
        finally:
            self._idle.put(process)
        return _FAULTS.get(ended, _CRASH).format(seconds=self._seconds)

    def _new_process(self) -> _Process | None:
        """A process that is ready; None when none can be started, after which files are not tried any more."""
        if self._disabled.is_set():
            return None
        try:
            return _Process(self._seconds)
        except OSError as error:
            self._disabled.set()
            logger.warning("uploads are not opened in another process first, because none can be started: %s", error)
            return None

    def close(self) -> None:
        """End the processes, each when it has answered."""
        self._disabled.set()
        for process in [self._idle.get() for _ in range(self._processes)]:
            if process:
                process.kill()
            self._idle.put(None)


def _descriptor(source: Source, files: contextlib.ExitStack) -> int | None:
    """A file descriptor of the source, closed with `files`.

    None for a small file, for an open file, and where none can be had.
    """
    if isinstance(source, str | Path):
        try:
            descriptor = os.open(source, os.O_RDONLY)
        except OSError:
            return None
        files.callback(os.close, descriptor)
        return descriptor if os.fstat(descriptor).st_size >= SMALLEST else None
    if not isinstance(source, bytes | bytearray | memoryview):
        return None
    view = memoryview(source).cast("B")
    if len(view) < SMALLEST:
        return None
    try:
        descriptor = os.memfd_create("recording")
        files.callback(os.close, descriptor)
        while len(view):
            view = view[os.write(descriptor, view) :]
    except OSError as error:  # no memory, or a sandbox without memfd
        logger.warning("an upload is not opened in another process first: %s", error)
        return None
    return descriptor


class _Process:
    """One such process, and the socket to it."""

    def __init__(self, seconds: int) -> None:
        """Raises OSError when the process does not start."""
        self._hangs = False
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(WAIT_SECONDS)
        root = Path(__file__).resolve().parents[2]
        code = f"import sys; sys.path.insert(0, {str(root)!r}); from {__name__} import serve; serve({theirs.fileno()}, {seconds})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # NumPy reserves memory for each thread
            )
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

    def opens(self, descriptor: int) -> bool:
        """Whether trying to open the file ended within the limits."""
        try:
            socket.send_fds(self._socket, [b"f"], [descriptor])
            return self._socket.recv(1) == _DONE
        except TimeoutError:
            self._hangs = True
            return False
        except OSError:  # the process has ended
            return False

    def end(self) -> int:
        """End the process after a file that it has not opened. Returns its exit status; negative: the signal that ended it."""
        if self._hangs:
            self.kill()
            return _TIMEOUT
        status = self._process.wait()
        self._socket.close()
        return status

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()


def serve(descriptor: int, seconds: int) -> None:
    """Open the files that come through the socket `descriptor`, until it is closed, each within `seconds`.

    Runs in the other process.
    """
    from .recording import open_recording  # here: the parent needs it only later

    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_BYTES, own + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=descriptor) as requests:
        requests.sendall(_READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
            if not message:
                return
            used = math.ceil(time.process_time())
            resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.RLIM_INFINITY))
            with os.fdopen(descriptors[0], "rb") as file:
                try:
                    open_recording(file).close()
                except Exception as error:
                    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
                        sys.exit(_NO_MEMORY)  # the worker, which has no such limit, must not try
            requests.sendall(_DONE)
