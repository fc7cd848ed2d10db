"""The body of a request, read from the disk while it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from failures import RequestFailed

BLOCK_BYTES = 64 * 1024
OnSent = Callable[[int, int], None]
"""Is called with the bytes sent so far and their total."""


class Upload:
    """A request's body: `head`, the file, `tail`. `sent` counts the bytes that the connection has accepted."""

    def __init__(self, path: Path, file: BinaryIO, on_sent: OnSent, head: bytes = b"", tail: bytes = b"") -> None:
        self.sent = 0
        self._path, self._file, self._on_sent = path, file, on_sent
        self._head, self._tail = head, tail
        self._left = path.stat().st_size
        self._total = len(head) + self._left + len(tail)

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks():
            yield block
            self.sent += len(block)
            self._on_sent(self.sent, self._total)

    def _blocks(self) -> Iterator[bytes]:
        if self._head:
            yield self._head
        while self._left:
            block = self._read(min(BLOCK_BYTES, self._left))
            self._left -= len(block)
            yield block
        if self._tail:
            yield self._tail

    def _read(self, size: int) -> bytes:
        try:
            block = self._file.read(size)
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read {self._path}: {error.strerror}") from None
        if not block:
            raise RequestFailed("unreadable file", f"{self._path} became shorter while it was sent: is it still being written?")
        return block


def ignore_progress(sent: int, total: int) -> None:
    """An `OnSent` that does nothing."""


def megabytes(size: int) -> str:
    """A size in bytes as text: 12.3 MB."""
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"
