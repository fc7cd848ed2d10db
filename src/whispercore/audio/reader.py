"""The reader process: it holds recordings open and reads them, one request at a time, for the process that started it.

It imports neither PyTorch nor an engine. What ends it, as a crash of FFmpeg does, ends only the request whose recording
it was working on.
"""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..devices import logical_cores
from ..errors import WhisperError
from . import recording, silero
from .source import DescriptorFile
from .threads import AudioThreads
from .transport import Close, Facts, Next, Open, Reply, Request, SharedMemory

READY = b"ready"
NO_MEMORY = 2
"""The exit status of a process whose recording needs too much memory."""
MEMORY_BYTES = 4 << 30
"""Of address space, more than the process has when it begins."""
_GRACE_SECONDS = 10.0
"""The other side ends this process at a deadline. When the other side has ended itself, the kernel does, so much later."""
_THREADS = 4
"""At most, for decoding ahead: one recording is read at a time."""


def serve(connection: Connection, memory: SharedMemory) -> None:
    """Answer requests until the other side closes the connection."""
    threads = AudioThreads(min(_THREADS, logical_cores()))
    reader = Reader(memory, threads)
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):  # the other side has ended
            return
        if isinstance(request, Close):
            reader.close(request.recordings)
            continue
        signal.setitimer(signal.ITIMER_REAL, request.seconds and request.seconds + _GRACE_SECONDS)
        memory.working_on = request.recording
        descriptor = recv_handle(connection) if isinstance(request, Open) else -1
        connection.send_bytes(memory.packed(reader.reply(request, descriptor)))
        reader.settle(request.recording)
        memory.working_on = 0
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(connection: int, memory: int) -> None:
    """The process. Both arguments are file descriptors: of a socket, and of a file in memory."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they go to all processes of a terminal or a service, which then ends this one
        signal.signal(number, signal.SIG_IGN)
    silero.network()
    _limit(resource.RLIMIT_AS, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with Connection(connection) as opened:
        opened.send_bytes(READY)
        serve(opened, SharedMemory(memory))
    os._exit(0)  # threads that still decode would be waited for


@dataclass(slots=True, eq=False)
class _Opened:
    file: DescriptorFile
    recording: recording.Recording
    items: Iterator[Any] = field(default_factory=lambda: iter(()))


class Reader:
    """The open recordings of a reader process, by number."""

    def __init__(self, memory: SharedMemory, threads: AudioThreads) -> None:
        self._memory, self._threads = memory, threads
        self._opened: dict[int, _Opened] = {}

    def reply(self, request: Request, descriptor: int) -> Reply:
        """Do what is asked for. `descriptor`: of the file to open."""
        try:
            if isinstance(request, Open):
                return Reply(self._open(request, descriptor))
            assert isinstance(request, Next)
            return self._next(request)
        except WhisperError as error:
            if isinstance(error.__cause__, MemoryError):
                os._exit(NO_MEMORY)
            return Reply(error=error)
        except MemoryError:
            os._exit(NO_MEMORY)  # what else lies in this memory cannot be trusted to go on
        except Exception as error:
            traceback.print_exc()
            return Reply(error=RuntimeError(str(error)))

    def settle(self, number: int) -> None:
        """Wait for what a recording decodes ahead, so that a crash of FFmpeg is not taken for another recording's."""
        if number in self._opened:
            self._opened[number].recording.settle()

    def close(self, numbers: tuple[int, ...]) -> None:
        """Close recordings; those that are not open are ignored."""
        for number in numbers:
            if opened := self._opened.pop(number, None):
                opened.recording.close()
                opened.file.close()

    def _open(self, request: Open, descriptor: int) -> Facts:
        file = DescriptorFile(descriptor)
        try:
            opened = recording.open_recording(
                cast(BinaryIO, file),
                max_seconds=request.max_seconds,
                channel=request.channel,
                track=request.track,
                threads=self._threads,
                processes=request.processes,
                is_cancelled=lambda: self._memory.cancelled == request.recording,
            )
        except BaseException:
            file.close()
            raise
        self._opened[request.recording] = _Opened(file, opened)
        return Facts(opened.tracks, opened.channels, opened.declared_duration, opened.expected_duration)

    def _next(self, request: Next) -> Reply:
        opened = self._opened[request.recording]
        if request.reading is not None:
            opened.items = opened.recording.read(request.reading)
        try:
            item, is_last = next(opened.items), False
        except StopIteration:
            item, is_last = None, True
        return Reply(None if request.skip else item, None, is_last, opened.recording.duration, tuple(opened.recording.warnings))


def _limit(kind: int, soft: int) -> None:
    """Set a limit of this process, at most to what it may have."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
