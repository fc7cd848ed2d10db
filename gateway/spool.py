"""Files for the uploads under way."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from whispercore.audio.source import MappedFile
from whispercore.errors import ConfigurationError, Overloaded

PIECE = 256 * 1024
"""Bytes that are collected before they are written: writing runs on a thread, because a disk may block."""


_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Spooled:
    """An upload in a file. Its name is 128 random bits in hexadecimal digits."""

    path: Path
    size: int
    filename: str = ""

    def view(self) -> memoryview:
        """The bytes, without reading them into memory. They stay readable after `remove`."""
        return MappedFile.view(self.path)

    def remove(self) -> None:
        """Remove the file. The worker cancels a request whose file is gone."""
        self.path.unlink(missing_ok=True)


class Spool:
    """The folder of the uploads. What a killed gateway left in it is removed at the start, and nothing else."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError when the folder cannot be written."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            for path in folder.iterdir():
                if _TOKEN.fullmatch(path.name):  # WHISPER_SPOOL_DIR may be a folder with other files, such as /dev/shm
                    path.unlink()
        except OSError as error:
            message = f"the folder of the uploads, {folder}, cannot be used ({error.strerror}): set WHISPER_SPOOL_DIR"
            raise ConfigurationError(message, param="WHISPER_SPOOL_DIR") from None

    def new_path(self) -> Path:
        """The path of a new file."""
        return self.folder / secrets.token_hex(16)

    def writer(self, filename: str = "") -> SpoolWriter:
        """A new file. Raises Overloaded when the disk is full."""
        try:
            return SpoolWriter(self.new_path(), filename)
        except OSError as error:
            raise _storage_full(error) from None


class SpoolWriter:
    """Writes one upload. Used as a context: an upload that is not finished is removed."""

    def __init__(self, path: Path, filename: str) -> None:
        self.size = 0
        self._path, self._filename = path, filename
        self._pieces: list[bytes] = []
        self._collected = 0
        self._finished = False
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if not self._finished:
            self._path.unlink(missing_ok=True)

    def add(self, data: bytes) -> None:
        """Collect bytes; `flush` writes them."""
        self.size += len(data)
        self._collected += len(data)
        self._pieces.append(data)

    async def flush(self, *, least: int = PIECE) -> None:
        """Write what has been collected when it is at least `least` bytes. Raises Overloaded when the disk is full."""
        if not self._pieces or self._collected < least:
            return
        data, self._pieces, self._collected = b"".join(self._pieces), [], 0
        try:
            if len(data) < PIECE:
                self._write(data)
            else:
                await asyncio.to_thread(self._write, data)
        except OSError as error:
            raise _storage_full(error) from None

    async def finish(self) -> Spooled:
        """The whole upload."""
        await self.flush(least=1)
        self._file.close()
        self._finished = True
        return Spooled(self._path, self.size, self._filename)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def _storage_full(error: OSError) -> Overloaded:
    return Overloaded(f"the upload cannot be stored ({error.strerror}): try again later", code="storage_full", retry_after=30)
