"""The source of a recording's bytes, and the facts about its length that its first and last bytes hold."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from io import SEEK_CUR, SEEK_END, SEEK_SET, TextIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import InvalidRequest
from .budget import ReadingBudget
from .tags import check_comments, id3_length

Source = bytes | bytearray | memoryview | str | Path | BinaryIO
_OGG_PAGE = 65_307  # bytes at most
_HEAD = 24
_STREAMED_SIZES = ((0x7FFF_0000, 0x8001_0000), (0xF000_0000, 0x1_0000_0000))
"""A writer that cannot seek back to its header leaves a size near the limit of 31 or 32 bits, which means nothing."""


class Reader:
    """A source as a file for FFmpeg. It has no name: only its content decides the format. Bytes are not copied.

    An ID3v2 tag at the beginning is left out. Reading checks `budget`, so that FFmpeg stops when it is used up. `has_own_position`: a
    copy of this process can read the source, too.
    """

    def __init__(self, source: Source, is_cancelled: Callable[[], bool] | None = None) -> None:
        """Raises InvalidRequest when the source has an unsupported type or cannot be opened, UnreadableAudio when it has
        too many tags."""
        file: Any = source
        if isinstance(source, str | Path):
            file = _opened(Path(source))
        elif isinstance(source, bytes | bytearray | memoryview):
            file = _Bytes(source)
        elif isinstance(source, TextIOBase) or not hasattr(source, "read"):
            raise InvalidRequest(f"a recording is bytes, a path or a binary file; got {type(source).__name__}", param="file")
        self._owned = file is not source
        self.has_own_position = isinstance(file, DescriptorFile | _Bytes)
        self._file = cast(BinaryIO, file)
        self._begin = 0
        whole = self._file.seek(0, SEEK_END)
        self.budget = ReadingBudget(whole, is_cancelled)
        with self.budget.measured():
            begin = id3_length(self)
            check_comments(self, begin)
        self._begin = begin if begin < whole else 0
        self.size: int = whole - self._begin
        self.seek(max(0, self.size - _OGG_PAGE))
        self.tail: bytes = self.read(_OGG_PAGE)
        self.seek(0)
        self.head: bytes = self.read(_HEAD)
        self.seek(0)  # where FFmpeg starts to read

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left for a negative size. Raises as `ReadingBudget.check`."""
        self.budget.check()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to a position, counted from the end of an ID3v2 tag at the beginning."""
        place = self._file.seek(offset + self._begin if whence == SEEK_SET else offset, whence)
        return max(0, place - self._begin)

    def tell(self) -> int:
        """The position."""
        return self._file.tell() - self._begin

    def close(self) -> None:
        """Close the file if it was opened here. A caller's own file stays open."""
        if self._owned:
            self._file.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The file descriptors from which the source is read."""
        return (self._file.descriptor,) if isinstance(self._file, DescriptorFile) else ()

    @property
    def declared_share(self) -> float:
        """A RIFF or W64 header's size relative to the file's, at least 1.0. FFmpeg ignores the difference."""
        if self.head[:4] == b"RIFF":
            size = int.from_bytes(self.head[4:8], "little") + 8
            streamed = any(low <= size - 8 < high for low, high in _STREAMED_SIZES)
        elif self.head[:4] == b"riff":
            size = int.from_bytes(self.head[16:24], "little")
            streamed = size >= 1 << 62
        else:
            return 1.0
        return 1.0 if streamed else max(1.0, size / self.size)

    @property
    def is_unfinished_ogg(self) -> bool:
        """Whether an ogg file lacks its last page, which FFmpeg does not report."""
        page = self.tail.rfind(b"OggS")
        return self.head[:4] == b"OggS" and (page < 0 or page + 5 >= len(self.tail) or not self.tail[page + 5] & 4)


class MappedFile(mmap.mmap):
    """A file in memory that remembers its path, so that another process can read the file itself."""

    path: Path

    @classmethod
    def view(cls, path: Path) -> memoryview:
        """The bytes of a file, without reading them into memory. They stay readable when the file is removed."""
        with path.open("rb") as file:
            if not (size := os.fstat(file.fileno()).st_size):
                return memoryview(b"")
            mapped = cls(file.fileno(), size, access=mmap.ACCESS_READ)
        mapped.path = path
        return memoryview(mapped)


def descriptor_of(source: Source) -> int | None:
    """A new file descriptor from which another process can read the source. None for an open file.

    Bytes are copied into a file in memory. Raises OSError when a path cannot be opened, or without memory for the copy.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:  # unlike os.open it refuses folders
            return os.dup(file.fileno())
    if not isinstance(source, bytes | bytearray | memoryview):
        return None
    view = memoryview(source).cast("B")
    if isinstance(mapped := view.obj, MappedFile) and len(view) == len(mapped):
        with contextlib.suppress(OSError):  # removed meanwhile
            return os.open(mapped.path, os.O_RDONLY)
    descriptor = os.memfd_create("recording")
    try:
        while len(view):
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class DescriptorFile:
    """Reads a file descriptor. Each object keeps its own position, so several objects may read the same file."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor belongs to this object from now on."""
        self.descriptor = descriptor
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left for a negative size."""
        size = size if size >= 0 else max(0, os.fstat(self.descriptor).st_size - self._position)
        chunk = os.pread(self.descriptor, size, self._position)
        self._position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to a position."""
        origin = os.fstat(self.descriptor).st_size if whence == SEEK_END else self._position if whence == SEEK_CUR else 0
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """Close the descriptor. Closing twice is harmless."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    __del__ = close


def byte_count(source: Source) -> int:
    """The size of a source in bytes; 0 for an open file and for a path that cannot be read."""
    if isinstance(source, bytes | bytearray | memoryview):
        return memoryview(source).nbytes
    try:
        return Path(source).stat().st_size if isinstance(source, str | Path) else 0
    except OSError:
        return 0


def _opened(path: Path) -> DescriptorFile:
    """The file at `path`. Raises InvalidRequest when it cannot be opened."""
    try:
        with path.open("rb") as file:  # unlike os.open it refuses folders
            return DescriptorFile(os.dup(file.fileno()))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be opened: {error.strerror}", param="file") from error


class _Bytes:
    """Bytes in memory as a file. io.BytesIO would copy a bytearray."""

    def __init__(self, source: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(source).cast("B")
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        chunk = bytes(self._view[self._position : self._position + size if size >= 0 else None])
        self._position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        origin = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: len(self._view)}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._view.release()
