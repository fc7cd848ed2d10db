"""What a reader process and the process that started it send each other: requests, replies, and memory that both see."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import AudioTrack
from .reading import Reading

_HEADER = mmap.PAGESIZE
_WORD = struct.Struct("Q")
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Request:
    """`recording`: its number. `seconds`: the time that the request may take; 0: any. The reply is a `Reply`."""

    recording: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Open(Request):
    """Open a recording, whose file descriptor follows. The reply has `Facts`. `processes`: as of `open_recording`."""

    max_seconds: float
    channel: int | None
    track: str | None
    processes: int


@dataclass(frozen=True, slots=True)
class Next(Request):
    """Read the next item. `reading`: begin with it. `skip`: the item is known, and not sent."""

    reading: Reading[Any] | None = None
    skip: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Close recordings. There is no reply."""

    recordings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a recording when it is open."""

    tracks: tuple[AudioTrack, ...]
    channels: int
    declared_duration: float | None
    expected_duration: float | None


@dataclass(frozen=True, slots=True)
class Reply:
    """`item`: what was asked for. `error`: what was raised instead. `is_last`: there is no further item.

    `duration`, `warnings`: those of the recording so far.
    """

    item: Any = None
    error: Exception | None = None
    is_last: bool = False
    duration: float = 0.0
    warnings: Sequence[str] = ()


class SharedMemory:
    """Memory that two processes see: two numbers, and room for the arrays of one message at a time.

    `working_on`: the recording that the reader process works on, 0 for none. It outlives that process and tells which
    recording ended it. `cancelled`: the recording that is not wanted any more.
    """

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: a file in memory, which this object then owns."""
        self.descriptor = descriptor
        if os.fstat(descriptor).st_size < _HEADER:
            os.ftruncate(descriptor, _HEADER)
        self._header = mmap.mmap(descriptor, _HEADER)
        self._room: np.ndarray[Any, np.dtype[np.uint8]] = np.zeros(0, np.uint8)

    @property
    def working_on(self) -> int:
        """A recording's number, or 0."""
        return int(_WORD.unpack_from(self._header, 0)[0])

    @working_on.setter
    def working_on(self, recording: int) -> None:
        _WORD.pack_into(self._header, 0, recording)

    @property
    def cancelled(self) -> int:
        """A recording's number, or 0."""
        return int(_WORD.unpack_from(self._header, _WORD.size)[0])

    @cancelled.setter
    def cancelled(self, recording: int) -> None:
        _WORD.pack_into(self._header, _WORD.size, recording)

    def packed(self, value: Any) -> bytes:
        """A message with the value, whose arrays lie in the memory until the next message."""
        buffers: list[pickle.PickleBuffer] = []
        message = pickle.dumps(value, 5, buffer_callback=buffers.append)
        views = [np.asarray(buffer.raw()) for buffer in buffers]
        sizes = [len(view) for view in views]
        begins, end = _places(sizes)
        self._enlarge(end)
        for begin, view in zip(begins, views, strict=True):
            self._room[begin : begin + len(view)] = view
        return pickle.dumps((sizes, message))

    def unpacked(self, message: bytes) -> Any:
        """The value of a message, with copies of its arrays. NumPy releases the GIL while it copies."""
        sizes, pickled = pickle.loads(message)
        begins, end = _places(sizes)
        self._enlarge(end)
        copies = [self._room[begin : begin + size].copy() for begin, size in zip(begins, sizes, strict=True)]
        return pickle.loads(pickled, buffers=copies)

    def close(self) -> None:
        """Free the memory on this side."""
        self._room = np.zeros(0, np.uint8)
        self._header.close()
        os.close(self.descriptor)

    def _enlarge(self, size: int) -> None:
        """See at least `size` bytes of room."""
        if size <= len(self._room):
            return
        if os.fstat(self.descriptor).st_size < _HEADER + size:
            os.ftruncate(self.descriptor, _HEADER + size)
        self._room = np.frombuffer(mmap.mmap(self.descriptor, size, offset=_HEADER), np.uint8)


def _places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each of the buffers begins, and where the last one ends."""
    begins, end = [], 0
    for size in sizes:
        begins.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return begins, end
