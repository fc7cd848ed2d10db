"""The record of a batch, manifest.jsonl: a line for each recording, by which the next run knows what is done."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from failures import RequestFailed
from storage import NOT_SAVED, Folder, Place, Recording

FILE = "manifest.jsonl"
PUT_SECONDS = 30.0
"""Time between two puts of a manifest in S3, which cannot be appended to."""
DONE, FAILED = "done", "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line: what became of a recording.

    `recording`, `audio`, `size`, `version`: its name, address, bytes, and ETag or time of change. `request`: a digest of
    the model, the options and the formats. `duration`: of the sound; `seconds`: of the work. `error`: the kind of failure,
    empty when it is done. `outputs`: the names of the results.
    """

    recording: str
    status: str
    audio: str
    size: int
    version: str
    request: str
    duration: float = 0.0
    seconds: float = 0.0
    error: str = ""
    message: str = ""
    outputs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    model: str = ""
    finished: str = ""

    def covers(self, recording: Recording, request: str, names: Collection[str]) -> bool:
        """Whether the recording need not be done again: it is done, unchanged, asked for alike, and its results are there."""
        same = (self.size, self.version, self.request) == (recording.size, recording.version, request)
        return self.status == DONE and same and all(output in names for output in self.outputs)


class Manifest:
    """The manifest of a place. Thread-safe.

    In a folder each line is appended as soon as it is known. A manifest in S3 is put every 30 s and at the end: after a
    kill the recordings of the last seconds are done again, with the same results.
    """

    def __init__(self, place: Place) -> None:
        """Raises RequestFailed."""
        self._place = place
        self._lock = threading.Lock()
        self.entries = _read(place.read(FILE))
        self.compact()
        self._put_at = time.monotonic()
        self._file = (place.path / FILE).open("ab") if isinstance(place, Folder) else None

    def add(self, entry: Entry) -> None:
        """Add a line. Raises RequestFailed."""
        with self._lock:
            self.entries[entry.recording] = entry
            if self._file:
                try:
                    self._file.write(_line(entry))
                    self._file.flush()
                except OSError as error:
                    raise RequestFailed(NOT_SAVED, f"cannot write {FILE}: {error.strerror}") from None
            elif time.monotonic() > self._put_at + PUT_SECONDS:
                self._put_at = time.monotonic()
                self.compact()

    def compact(self) -> None:
        """Write the manifest anew, with one line for each recording. Raises RequestFailed."""
        self._place.write(FILE, b"".join(map(_line, self.entries.values())))

    def close(self) -> None:
        """Write it a last time."""
        if self._file:
            self._file.close()
        self.compact()


def _line(entry: Entry) -> bytes:
    fields = {name: value for name, value in asdict(entry).items() if value not in ("", ())}
    return json.dumps(fields).encode() + b"\n"


def _read(content: bytes) -> dict[str, Entry]:
    """The last entry of each recording. Lines that cannot be read are left out: a kill may have cut the last one."""
    entries = {}
    for line in content.splitlines():
        try:
            fields: Any = json.loads(line, object_hook=_tuples)
            entry = Entry(**fields)
        except (ValueError, TypeError):
            continue
        entries[entry.recording] = entry
    return entries


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def digest(*parts: object) -> str:
    """A short hash of what was asked for."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
