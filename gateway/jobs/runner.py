"""Runs queued jobs through the back end, calls their webhooks, and removes what is old."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from whispercore.api.error_reply import error_fields
from whispercore.api.replay import StreamReader
from whispercore.errors import EngineError, WhisperError

from ..backend import Call, Reply
from ..configuration import Configuration
from ..context import Gateway
from ..keys import Key
from ..spool import Spooled
from ..urls import fetch
from .job import Job
from .store import JobStore
from .view import event_view
from .webhook import call, next_delivery

logger = logging.getLogger(__name__)

IDLE_SECONDS = 5.0
"""How often to look for jobs and deliveries when nothing wakes the runner."""
MAX_ATTEMPTS = 5
"""How often a job is begun that ends because the server, not the recording, fails."""
RETRY_SECONDS = 3.0
LONGEST_RETRY_SECONDS = 60.0
SMOOTHING = 0.2
SERVER_FAULTS = (429, 500, 502, 503, 504)
NOT_BEGUN = (429, 503)
"""The back end, or the disk, had no room: that is no attempt. A worker that is started again loses no job by it."""


@dataclass(slots=True)
class Running:
    """A job under way: how to cancel it, and its progress."""

    scope: anyio.CancelScope
    reader: StreamReader


class JobRunner:
    """A few workers that take jobs from the store; the back end batches the windows of all of them."""

    def __init__(self, gateway: Gateway, store: JobStore) -> None:
        self.store = store
        self.seconds_per_byte = 0.0
        """Time that a byte of a recording takes, as a moving mean; 0.0 before the first job."""
        self._gateway = gateway
        self._running: dict[str, Running] = {}
        self._wakes: set[anyio.Event] = set()

    @property
    def running(self) -> int:
        """How many jobs are under way."""
        return len(self._running)

    @property
    def configuration(self) -> Configuration:
        """The gateway's."""
        return self._gateway.configuration

    def start(self, group: TaskGroup) -> None:
        """Begin to work. Cancelling the group leaves what runs to the next start."""
        for _ in range(max(1, self.configuration.max_running_jobs)):
            group.start_soon(self._repeat, self._run_next)
        group.start_soon(self._repeat, self._deliver_due)
        group.start_soon(self._repeat, self._expire)

    def wake(self) -> None:
        """Look for jobs now."""
        for event in self._wakes:
            event.set()

    def progress(self, job: Job) -> tuple[float, float]:
        """Seconds done and the duration, of a job that runs or has ended; the duration is 0.0 while it is unknown."""
        running = self._running.get(job.id)
        return (running.reader.seconds, running.reader.duration or 0.0) if running else (job.seconds, job.duration)

    async def cancel(self, job: Job) -> Job | None:
        """End a job that is not over, and return it; None when it is over."""
        changed = await run_sync(lambda: self._close(job, "cancelled"))
        if changed and (running := self._running.get(job.id)):
            running.scope.cancel()
        return changed

    def wait_seconds(self, job: Job, bytes_before: int) -> float | None:
        """An estimate of the seconds until the job is done; None before the first job has been done."""
        if not self.seconds_per_byte or job.is_over:
            return None
        return self.seconds_per_byte * (bytes_before / max(1, self.configuration.max_running_jobs) + job.bytes)

    async def _repeat(self, step: Callable[[], Awaitable[bool]]) -> None:
        """Call a step for ever; it returns whether there may be more to do at once."""
        while True:
            wake = anyio.Event()
            self._wakes.add(wake)
            try:
                if not await step():
                    with anyio.move_on_after(IDLE_SECONDS):
                        await wake.wait()
            except Exception:  # a full disk, for example, must not end the runner
                logger.exception("a step of the jobs failed")
                await anyio.sleep(IDLE_SECONDS)
            finally:
                self._wakes.discard(wake)

    async def _run_next(self) -> bool:
        job = await run_sync(self.store.take)
        if job is None:
            return False
        reader, began = StreamReader(), time.monotonic()
        with anyio.CancelScope() as scope:
            self._running[job.id] = Running(scope, reader)
            try:
                await self._run(job, reader)
                if reader.transcript and job.bytes:
                    spent = (time.monotonic() - began) / job.bytes
                    self.seconds_per_byte += (SMOOTHING if self.seconds_per_byte else 1.0) * (spent - self.seconds_per_byte)
            except WhisperError as error:
                await self._fail(job, error.status, error_fields(error)["error"], error.retry_after or 0.0)
            except Exception as error:  # an unforeseen error must not leave the job running for ever
                logger.exception("job %s failed", job.id)
                await self._fail(job, 500, error_fields(EngineError(f"the job failed: {error}"))["error"])
            finally:
                del self._running[job.id]
        return True

    async def _run(self, job: Job, reader: StreamReader) -> None:
        """Transcribe one job and record how it ended."""
        spooled = await self._spooled(job)
        payload = bytearray()
        try:
            reply = await self._gateway.backend.send(_call(job, spooled))
            if reply.status != 200:
                return await self._fail(job, reply.status, _error_of(reply), float(reply.headers.get("retry-after", 0.0)))
            async for chunk in _chunks(reply):
                reader.feed(chunk)
                payload += chunk
        finally:
            spooled.remove()
        if not reader.transcript:
            return await self._fail(job, 500, dict(reader.error or error_fields(EngineError("the stream ended early"))["error"]))
        transcript = reader.transcript
        await run_sync(self.store.write_result, job, _without_progress(payload))
        ended = await run_sync(lambda: self._close(job, "completed", seconds=transcript.duration, duration=transcript.duration))
        if ended and job.owner.startswith("key:"):
            key = Key(name=job.owner.removeprefix("key:"))
            self._gateway.usage.add_audio(key, transcript.duration)
            self._gateway.telemetry.audio_seconds.labels(key.name).inc(transcript.duration)
        logger.info("job %s: %.1f s of audio", job.id, transcript.duration)

    async def _spooled(self, job: Job) -> Spooled:
        """The recording in the spool, where the back end expects it: the job's own file under a second name."""
        if not job.upload:
            fetched = await fetch(job.url, self.configuration, self._gateway.spool, self.configuration.max_body_bytes)
            await run_sync(lambda: self.store.update(job, bytes=fetched.size))
            return fetched
        path = self._gateway.spool.new_path()
        await run_sync(_link, self.store.folder_of(job) / job.upload, path)
        return Spooled(path, path.stat().st_size, job.filename)

    async def _fail(self, job: Job, status: int, error: dict[str, Any], retry_after: float = 0.0) -> None:
        """Queue the job again when the server is at fault, else end it. `retry_after`: the seconds that the back end asks for."""
        attempts = job.attempts - (status in NOT_BEGUN)
        if status in SERVER_FAULTS and attempts < MAX_ATTEMPTS:
            logger.warning("job %s is tried again: %s", job.id, error.get("message"))
            await anyio.sleep(min(max(retry_after, RETRY_SECONDS * job.attempts), LONGEST_RETRY_SECONDS))
            await run_sync(lambda: self.store.update(job, state="queued", attempts=attempts))
        else:
            await run_sync(lambda: self._close(job, "failed", error=error))

    def _close(self, job: Job, state: str, **changes: Any) -> Job | None:
        """Record the end of a job, remove its recording, and have its webhook called. None when it is over already."""
        now = time.time()
        changed = self.store.update(job, state=state, ended=now, next_delivery=now if job.webhook else 0.0, **changes)
        if changed:
            self.store.remove_recording(job)
            anyio.from_thread.run_sync(self.wake)
        return changed

    async def _deliver_due(self) -> bool:
        due = await run_sync(self.store.due, time.time())
        async with anyio.create_task_group() as group:
            for job in due:
                group.start_soon(self._deliver, job)
        return bool(due)

    async def _deliver(self, job: Job) -> None:
        event_id, event = event_view(job)
        fault = await call(job.webhook, event_id, event, self.configuration)
        again = next_delivery(job.deliveries + 1, time.time()) if fault else 0.0
        if fault:
            logger.warning("job %s: the webhook failed (%s)%s", job.id, fault, "" if again else ", for the last time")
        await run_sync(self.store.note_delivery, job, again)

    async def _expire(self) -> bool:
        await run_sync(self.store.expire, time.time() - self.configuration.job_days * 86400)
        for state, count in (await run_sync(self.store.counts)).items():
            self._gateway.telemetry.jobs.labels(state).set(count)
        return False


def _call(job: Job, spooled: Spooled) -> Call:
    fields = {**job.options, "stream": "true", "response_format": "verbose_json"}
    return Call(path="", fields=fields, uploads={"file": (spooled,)}, headers={}, request_id=job.id, client=f"jobs:{job.owner}")


async def _chunks(reply: Reply) -> AsyncIterator[bytes]:
    """The chunks of a stream; a short one may have come as a whole."""
    if isinstance(reply.body, bytes):
        yield reply.body
        return
    async for chunk in reply.body:
        yield chunk


def _without_progress(stream: bytes | bytearray) -> bytes:
    """The lines of a native stream that make the transcript. A chunk may hold several lines, or a part of one."""
    return b"".join(line for line in bytes(stream).splitlines(keepends=True) if not line.startswith(b'{"type":"progress"'))


def _error_of(reply: Reply) -> dict[str, Any]:
    try:
        error: dict[str, Any] = json.loads(reply.body if isinstance(reply.body, bytes) else b"")["error"]
    except (ValueError, KeyError, TypeError):
        error = error_fields(EngineError(f"the back end answered with status {reply.status}"))["error"]
    return error


def _link(source: os.PathLike[str], target: os.PathLike[str]) -> None:
    """A second name for a file; a copy where the folders are on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
