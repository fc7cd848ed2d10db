"""Jobs as clients see them."""

from __future__ import annotations

from typing import Any

from .job import Job

Fields = dict[str, Any]


def job_view(job: Job, *, place: int = 0, wait_seconds: float | None = None, progress: tuple[float, float] = (0.0, 0.0)) -> Fields:
    """A job as JSON. `place`: the queued jobs before it. `progress`: seconds done, and the duration or 0.0."""
    seconds, duration = progress
    return {
        "id": job.id,
        "object": "job",
        "status": job.state,
        **({"batch": job.batch} if job.batch else {}),
        "filename": job.filename,
        **({"url": job.url} if job.url else {}),
        "created_at": int(job.created),
        "started_at": int(job.started) or None,
        "ended_at": int(job.ended) or None,
        "attempts": job.attempts,
        "place_in_queue": place if job.state == "queued" else None,
        "estimated_seconds": None if wait_seconds is None else round(wait_seconds, 1),
        "progress": {"seconds": round(seconds, 3), "duration": round(duration, 3) or None},
        "result_url": f"/v1/jobs/{job.id}/result" if job.state == "completed" else None,
        "webhook": job.webhook or None,
        "error": job.error,
    }


def batch_view(batch: str, jobs: list[Job]) -> Fields:
    """A batch: how many of its jobs are in each state, and the jobs."""
    counts = {state: sum(job.state == state for job in jobs) for state in sorted({job.state for job in jobs})}
    return {
        "id": batch,
        "object": "batch",
        "status": "completed" if all(job.is_over for job in jobs) else "running",
        "counts": counts,
        "result_url": f"/v1/batches/{batch}/result",
        "jobs": [job_view(job, progress=(job.seconds, job.duration)) for job in jobs],
    }


def event_view(job: Job) -> tuple[str, Fields]:
    """The id and the body of a webhook's call. All tries for one job have the same id, so that a repetition can be told."""
    event = {
        "id": f"evt_{job.id.removeprefix('job_')}",
        "object": "event",
        "type": f"transcription.{job.state}",
        "created_at": int(job.ended),
        "data": job_view(job, progress=(job.seconds, job.duration)),
    }
    return str(event["id"]), event
