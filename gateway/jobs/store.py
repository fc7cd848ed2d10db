"""Jobs on the disk: a table in SQLite, and for each job a folder with its recording and its transcript.

A job is in the table before its client is told that it was accepted, and its transcript is in its folder before the table
says that it is completed. So a crash at any moment loses no job and no result.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import IO, Any

from whispercore.errors import ConfigurationError

from .job import STATES, Job, State

_JSON = ("options", "reply", "error")
_COLUMNS = [item.name for item in fields(Job)]
RESULT = "transcript.ndjson"


class JobStore:
    """All jobs. Thread-safe; the methods that write wait for the disk."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError when another gateway uses the folder, OSError or sqlite3.Error when it cannot be used."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owned = _own(folder)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(folder / "jobs.sqlite", isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        columns = ", ".join(f"{name} PRIMARY KEY" if name == "id" else name for name in _COLUMNS)
        self._database.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
        self._database.execute("CREATE INDEX IF NOT EXISTS by_state ON jobs (state, created)")
        self._database.execute("CREATE INDEX IF NOT EXISTS by_batch ON jobs (batch)")
        self._recover()

    def folder_of(self, job: Job) -> Path:
        """The job's own folder."""
        return self.folder / job.id

    def add(self, jobs: Iterable[Job]) -> None:
        """Accept jobs, all or none. Their recordings must be in their folders."""
        placeholders = ", ".join("?" * len(_COLUMNS))
        rows = [_row(job) for job in jobs]
        with self._lock, self._database:  # which commits, or rolls back when the disk is full
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(f"INSERT INTO jobs VALUES ({placeholders})", rows)

    def get(self, job_id: str) -> Job | None:
        """A job by its id."""
        found = self._select("WHERE id = ?", job_id)
        return found[0] if found else None

    def owned(self, owner: str, *, batch: str = "", limit: int = 100, after: str = "") -> list[Job]:
        """The jobs of a client, the newest first, from the one after the job `after` on; those of one batch in the order of its files."""
        if batch:
            return self._select("WHERE owner = ? AND batch = ? ORDER BY rowid", owner, batch)
        page = "(created, rowid) < (SELECT created, rowid FROM jobs WHERE id = ?)"  # the jobs of a batch were created at one time
        return self._select(f"WHERE owner = ? AND (? = '' OR {page}) ORDER BY created DESC, rowid DESC LIMIT ?", owner, after, after, limit)

    def take(self) -> Job | None:
        """The oldest queued job of the client that has the fewest running, which is running from now on."""
        with self._lock:
            row = self._database.execute(
                "SELECT * FROM jobs WHERE state = 'queued' ORDER BY"
                " (SELECT COUNT(*) FROM jobs AS other WHERE other.owner = jobs.owner AND other.state = 'running'), created, rowid LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            job = replace(_job(row), state="running", started=time.time(), attempts=row["attempts"] + 1)
            self._write(job)
            return job

    def update(self, job: Job, **changes: Any) -> Job | None:
        """Change a job that is there and not over, and return it; None when it has ended or is gone."""
        with self._lock:
            row = self._database.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone()
            if row is None or (current := _job(row)).is_over:
                return None
            changed = replace(current, **changes)
            self._write(changed)
            return changed

    def note_delivery(self, job: Job, next_delivery: float) -> None:
        """Count a call of the webhook, and when to call again; 0.0: never."""
        with self._lock:
            self._database.execute("UPDATE jobs SET deliveries = deliveries + 1, next_delivery = ? WHERE id = ?", (next_delivery, job.id))

    def due(self, now: float) -> list[Job]:
        """The jobs whose webhook is to be called now."""
        return self._select("WHERE next_delivery > 0 AND next_delivery <= ? ORDER BY next_delivery LIMIT 20", now)

    def place(self, job: Job) -> int:
        """How many queued jobs are before this one."""
        before = "(created, rowid) < (SELECT created, rowid FROM jobs WHERE id = ?)"
        return int(self._one(f"SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND {before}", job.id)) if job.state == "queued" else 0

    def counts(self) -> dict[State, int]:
        """The number of jobs in each state."""
        with self._lock:
            found = dict(self._database.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())
        return {state: int(found.get(state, 0)) for state in STATES}

    def unfinished(self, owner: str = "") -> tuple[int, int]:
        """The number and the bytes of the jobs that are not over, of one client or of all."""
        with self._lock:
            row = self._database.execute(
                "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM jobs WHERE state IN ('queued', 'running') AND ? IN ('', owner)", (owner,)
            ).fetchone()
        return int(row[0]), int(row[1])

    def write_result(self, job: Job, payload: bytes) -> None:
        """Store the transcript, durably."""
        path = self.folder_of(job) / RESULT
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        make_durable(path.parent)

    def result(self, job: Job) -> bytes:
        """The stored transcript. Raises OSError when it is gone."""
        return (self.folder_of(job) / RESULT).read_bytes()

    def remove_recording(self, job: Job) -> None:
        """Remove the recording of a job that is over."""
        if job.upload:
            (self.folder_of(job) / job.upload).unlink(missing_ok=True)

    def delete(self, job: Job) -> None:
        """Remove a job with everything of it."""
        with self._lock:
            self._database.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        shutil.rmtree(self.folder_of(job), ignore_errors=True)

    def expire(self, before: float) -> None:
        """Remove the jobs that ended before a Unix time and have no webhook to deliver."""
        for job in self._select("WHERE ended > 0 AND ended < ? AND next_delivery = 0", before):
            self.delete(job)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()
        self._owned.close()

    def _recover(self) -> None:
        """After a crash: jobs that ran are queued again, folders without a job are removed."""
        self._database.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
        known = {row["id"] for row in self._database.execute("SELECT id FROM jobs")}
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def _write(self, job: Job) -> None:
        assignments = ", ".join(f"{name} = ?" for name in _COLUMNS)
        self._database.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*_row(job), job.id))

    def _select(self, condition: str, *values: Any) -> list[Job]:
        with self._lock:
            return [_job(row) for row in self._database.execute(f"SELECT * FROM jobs {condition}", values)]

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._database.execute(query, values).fetchone()[0]


def _own(folder: Path) -> IO[str]:
    """A lock on the folder until the file is closed or this process ends: two gateways would run each job twice."""
    file = (folder / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigurationError(f"another gateway uses {folder}: give each its own WHISPER_DATA_DIR", param="WHISPER_DATA_DIR") from None
    return file


def make_durable(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _row(job: Job) -> tuple[Any, ...]:
    values = asdict(job)
    return tuple(json.dumps(values[name]) if name in _JSON else values[name] for name in _COLUMNS)


def _job(row: sqlite3.Row) -> Job:
    return Job(**{name: json.loads(row[name]) if name in _JSON else row[name] for name in _COLUMNS})
