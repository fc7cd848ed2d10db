"""`/v1/jobs` and `/v1/batches`."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import sqlite3
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response

from whispercore.api.fields import OPTION_TYPES, RAW_FIELD, REPLY_TYPES, read_fields
from whispercore.api.replay import StreamReader
from whispercore.api.reply import Body as Rendered
from whispercore.api.reply import render
from whispercore.api.request import Request as Parsed
from whispercore.api.request import parse
from whispercore.api.upload import read_upload
from whispercore.api.values import for_message
from whispercore.errors import InvalidRequest, NotFound, Overloaded

from ..body import Body, read_body
from ..context import Admission, admitted, gateway_of
from ..refusals import Conflict, RateLimited
from ..spool import Spool, Spooled
from ..urls import check_url
from .job import Job
from .runner import JobRunner
from .store import make_durable
from .view import batch_view, job_view

router = APIRouter()
logger = logging.getLogger(__name__)

MAX_JOBS_OF_A_CLIENT = 10_000
"""Jobs of one client that are not over."""
SUFFIXES = {"json": ".json", "verbose_json": ".json", "text": ".txt", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
MAX_STEM = 60
"""Characters of a file's name in a zip: file systems take 255 bytes, and a character has up to four."""
OWN_FIELDS = ("url", "webhook")
PAGE = 100


@dataclass(frozen=True, slots=True)
class Order:
    """What a POST asks for: the recordings, the fields by the server's own names, the webhook."""

    recordings: tuple[Spooled, ...]
    urls: tuple[str, ...]
    options: Mapping[str, Any]
    reply: Mapping[str, Any]
    webhook: str


@router.post("/v1/jobs", status_code=202)
async def create(request: Request) -> Response:
    """Accept one recording, or a batch of several. The reply comes when they are safely on the disk."""
    gateway, runner = gateway_of(request), _runner(request)
    async with admitted(request) as admission:
        body = await read_body(request, gateway.spool, gateway.configuration.max_body_bytes)
        made: list[Spooled] = []
        try:
            order = await _order(body, request, gateway.spool, made)
            await _check_room(runner, admission, order)
            jobs = _jobs(order, owner_of(admission))
            await run_sync(_move_in, runner, jobs, order.recordings)
        finally:
            body.remove()
            for spooled in made:
                spooled.remove()
    runner.wake()
    if len(jobs) > 1:
        return JSONResponse(batch_view(jobs[0].batch, jobs), 202)
    return JSONResponse(await _view(runner, jobs[0]), 202, {"location": f"/v1/jobs/{jobs[0].id}"})


@router.get("/v1/jobs")
async def list_jobs(request: Request, limit: int = PAGE, after: str = "") -> Response:
    """The client's jobs, the newest first. `after`: the id of the last job of the page before."""
    runner = _runner(request)
    async with admitted(request) as admission:
        if after:
            await _owned(runner, admission, after)
        most = max(1, min(limit, PAGE))
        jobs = await run_sync(lambda: runner.store.owned(owner_of(admission), limit=most + 1, after=after))
        views = [await _view(runner, job) for job in jobs[:most]]
    return JSONResponse({"object": "list", "data": views, "has_more": len(jobs) > most})


@router.get("/v1/jobs/{job_id}")
async def get_job(request: Request, job_id: str) -> Response:
    """One job with its progress."""
    runner = _runner(request)
    async with admitted(request) as admission:
        return JSONResponse(await _view(runner, await _owned(runner, admission, job_id)))


@router.get("/v1/jobs/{job_id}/result")
async def get_result(request: Request, job_id: str) -> Response:
    """The transcript; the query takes the options of the reply, such as response_format."""
    runner = _runner(request)
    async with admitted(request) as admission:
        job = await _owned(runner, admission, job_id)
        rendered = await _rendered(runner, job, request)
    return Response(rendered.payload, media_type=None, headers={"content-type": rendered.content_type})


@router.delete("/v1/jobs/{job_id}")
async def delete_job(request: Request, job_id: str) -> Response:
    """Cancel a job that is not over; remove one that is, with its transcript."""
    runner = _runner(request)
    async with admitted(request) as admission:
        job = await _owned(runner, admission, job_id)
        if cancelled := await runner.cancel(job):
            return JSONResponse(await _view(runner, cancelled))
        await run_sync(runner.store.delete, job)
    return JSONResponse({"id": job.id, "object": "job.deleted", "deleted": True})


@router.get("/v1/batches/{batch_id}")
async def get_batch(request: Request, batch_id: str) -> Response:
    """The jobs of a batch."""
    runner = _runner(request)
    async with admitted(request) as admission:
        return JSONResponse(batch_view(batch_id, await _batch(runner, admission, batch_id)))


@router.get("/v1/batches/{batch_id}/result")
async def get_batch_result(request: Request, batch_id: str) -> Response:
    """A zip file with a transcript for each completed job, and errors.json for those that failed."""
    runner, gateway = _runner(request), gateway_of(request)
    async with admitted(request) as admission:
        jobs = await _batch(runner, admission, batch_id)
        if not all(job.is_over for job in jobs):
            raise Conflict(f"{sum(not job.is_over for job in jobs)} of {len(jobs)} jobs are not over yet", code="not_completed")
        path = gateway.spool.new_path()
        errors: list[dict[str, Any]] = []
        with _removed_after_an_error(path), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, job in enumerate(jobs, start=1):
                if job.state == "completed":
                    rendered = await _rendered(runner, job, request)
                    name = f"{number:04d}-{_stem(job)}{_suffix(request, job)}"
                    await run_sync(archive.writestr, name, rendered.payload)
                else:
                    errors.append({"number": number, "filename": job.filename, "status": job.state, "error": job.error})
            if errors:
                archive.writestr("errors.json", json.dumps(errors, ensure_ascii=False, indent=1))
    background = BackgroundTask(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename=f"{batch_id}.zip", background=background)


def owner_of(admission: Admission) -> str:
    """Who may see a job: the key that sent it. Without keys everybody who can connect."""
    return admission.name if admission.key else "anyone"


def _runner(connection: HTTPConnection) -> JobRunner:
    runner: JobRunner = connection.app.state.jobs
    return runner


async def _order(body: Body, request: Request, spool: Spool, made: list[Spooled]) -> Order:
    """Read and check the request. Files that are made on the way are added to `made`. Raises InvalidRequest."""
    content = await run_sync(_json_content, body, request.headers.get("content-type", ""))
    own = {**body.fields, **(content or {})}
    named = own.get("url") or ()
    urls = tuple(str(url) for url in (named if isinstance(named, list) else [named]) if url) if named else ()
    webhook = str(own.get("webhook") or "")
    for url in (*urls, *((webhook,) if webhook else ())):
        check_url(url)
    recordings = [file for name, files in body.uploads.items() if content is None or name != RAW_FIELD for file in files]
    row = {name: value for name, value in body.fields.items() if name not in OWN_FIELDS}
    content = {name: value for name, value in content.items() if name not in OWN_FIELDS} if content is not None else None
    if content and any(content.get(name) is not None for name in ("file", "audio", "data")):
        recordings.append(await _spooled(read_upload({}, content), spool))
        made.append(recordings[-1])
    if bool(recordings) == bool(urls):
        raise InvalidRequest(
            "send recordings as files of a form, or name them by url, not both", param="file", code="missing_required_parameter"
        )
    if empty := next((file for file in recordings if not file.size), None):
        raise InvalidRequest(f"the file {for_message(empty.filename)} is empty: 0 bytes arrived", param="file", code="empty_file")
    fields = read_fields(row, content, dict(request.headers))
    if "include" in fields or "token_logprobs" in fields:
        raise InvalidRequest("include: jobs keep no log-probabilities of tokens", param="include", code="unsupported_parameter")
    values = {name: field.value for name, field in fields.items()}
    parsed = parse({**values, RAW_FIELD: b"-"}, {})
    options = {name: value for name, value in values.items() if name in (*OPTION_TYPES, "model", "chunking_strategy", "translate")}
    if parsed.options.word_timestamps:
        options["word_timestamps"] = "true"
    reply = {name: value for name, value in values.items() if name in REPLY_TYPES and name != "stream"}
    return Order(tuple(recordings), urls, options, reply, webhook)


def _json_content(body: Body, content_type: str) -> dict[str, Any] | None:
    """The JSON object of the body; None when the body is not JSON. Raises InvalidRequest."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" or RAW_FIELD not in body.uploads:
        return None
    try:
        content = json.loads(bytes(body.uploads[RAW_FIELD][0].view()))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InvalidRequest("the body is not a JSON object", code="invalid_json")
    return content


async def _spooled(audio: bytes | bytearray | memoryview, spool: Spool) -> Spooled:
    with spool.writer() as writer:
        writer.add(bytes(audio))
        return await writer.finish()


async def _check_room(runner: JobRunner, admission: Admission, order: Order) -> None:
    """Raise RateLimited or Overloaded when there are too many jobs, or too many bytes of them."""
    count, _ = await run_sync(runner.store.unfinished, owner_of(admission))
    if count + len(order.recordings) + len(order.urls) > MAX_JOBS_OF_A_CLIENT:
        raise RateLimited(f"{count} jobs are not over yet: wait for some of them", retry_after=60)
    _, stored = await run_sync(runner.store.unfinished, "")
    if stored + sum(file.size for file in order.recordings) > runner.configuration.max_job_bytes:
        raise Overloaded("the recordings of other jobs take all the room there is: try again later", code="storage_full", retry_after=300)


def _jobs(order: Order, owner: str) -> list[Job]:
    count = len(order.recordings) + len(order.urls)
    batch = f"batch_{secrets.token_hex(16)}" if count > 1 else ""
    now = time.time()
    common: dict[str, Any] = {
        "owner": owner,
        "batch": batch,
        "options": order.options,
        "reply": order.reply,
        "created": now,
        "webhook": order.webhook,
    }
    files = [
        Job(id=f"job_{secrets.token_hex(16)}", filename=file.filename[:255], upload="recording", bytes=file.size, **common)
        for file in order.recordings
    ]
    urls = [Job(id=f"job_{secrets.token_hex(16)}", filename=url.rpartition("/")[2][:255], url=url, **common) for url in order.urls]
    return [*files, *urls]


def _move_in(runner: JobRunner, jobs: list[Job], recordings: tuple[Spooled, ...]) -> None:
    """Put the recordings into the jobs' folders, durably, then the jobs into the table: all or none. Raises Overloaded."""
    try:
        for job in jobs:
            runner.store.folder_of(job).mkdir(mode=0o700)
        for job, spooled in zip(jobs, recordings, strict=False):
            target = runner.store.folder_of(job) / job.upload
            shutil.move(spooled.path, target)
            make_durable(target)
            make_durable(target.parent)
        make_durable(runner.store.folder)
        runner.store.add(jobs)
    except (OSError, sqlite3.Error) as error:
        for job in jobs:
            shutil.rmtree(runner.store.folder_of(job), ignore_errors=True)
        logger.error("jobs cannot be stored: %s", error)
        raise Overloaded("the recordings cannot be stored: try again later", code="storage_full", retry_after=300) from None


async def _owned(runner: JobRunner, admission: Admission, job_id: str) -> Job:
    """The client's job. Raises NotFound, also for a job of somebody else."""
    job = await run_sync(runner.store.get, job_id)
    if job is None or job.owner != owner_of(admission):
        raise NotFound(f"no such job: {for_message(job_id)}")
    return job


async def _batch(runner: JobRunner, admission: Admission, batch_id: str) -> list[Job]:
    jobs = await run_sync(lambda: runner.store.owned(owner_of(admission), batch=batch_id))
    if not jobs:
        raise NotFound(f"no such batch: {for_message(batch_id)}")
    return jobs


async def _view(runner: JobRunner, job: Job) -> dict[str, Any]:
    place = await run_sync(runner.store.place, job)
    _, waiting = await run_sync(runner.store.unfinished, "")
    return job_view(job, place=place, wait_seconds=runner.wait_seconds(job, waiting if place else 0), progress=runner.progress(job))


async def _rendered(runner: JobRunner, job: Job, request: Request) -> Rendered:
    """A completed job's transcript in the format that the query, the Accept header or else the job asks for."""
    if job.state != "completed":
        detail = f": {job.error['message']}" if job.error else ""
        raise Conflict(f"the job is {job.state}{detail}", code="not_completed")
    parsed = _reply_of(request, job)

    def read() -> Rendered:
        reader = StreamReader()
        reader.feed(runner.store.result(job))
        assert reader.transcript
        if parsed.options.word_timestamps and "word_timestamps" not in job.options:
            raise InvalidRequest("the job has no times of words: create it with word_timestamps=true", param="word_timestamps")
        return render(reader.transcript, parsed.reply, "native", model=reader.model)

    return await run_sync(read)


def _reply_of(request: Request, job: Job) -> Parsed:
    """The form of the reply. Raises InvalidRequest for an option of the transcription, which comes too late."""
    values = {name: request.query_params.getlist(name) for name in request.query_params}
    row = {name: items[0] if len(items) == 1 and not name.endswith("[]") else items for name, items in values.items()}
    given = {name: field.value for name, field in read_fields(row, None, {}).items()}
    if late := next((name for name in given if name not in REPLY_TYPES or name in ("stream", "include")), None):
        raise InvalidRequest(f"{late} must be given when the job is created; here only the form of the reply", param=late)
    fields = given or dict(job.reply)
    return parse({**fields, RAW_FIELD: b"-"}, {} if fields else {"accept": request.headers.get("accept", "")})


def _stem(job: Job) -> str:
    """The name of a job's file without its folders and its ending, as every system can unpack it."""
    stem = PureWindowsPath(job.filename).stem  # knows both kinds of slashes
    return "".join(character if character.isprintable() and character not in '<>:"|?*' else "_" for character in stem)[:MAX_STEM] or job.id


@contextmanager
def _removed_after_an_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _suffix(request: Request, job: Job) -> str:
    return SUFFIXES[_reply_of(request, job).reply.response_format]
