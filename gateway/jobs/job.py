"""A job and its states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["queued", "running", "completed", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One recording to be transcribed.

    `owner`: the client that sent it. `batch`: the batch it belongs to, or "". `options`, `reply`: the fields of the
    request by the server's own names, those of the transcription and those of the reply. `upload`: the recording's file
    in the job's folder, or "" when `url` names it. `created`, `started`, `ended`: Unix times, 0.0 before. `attempts`:
    how often it has been begun. `seconds`, `duration`: its progress, in seconds of audio. `error`: OpenAI's error object.
    `webhook`: the URL that is called when the job has ended; `deliveries`: how often that was tried; `next_delivery`: a
    Unix time, 0.0 when there is nothing to deliver.
    """

    id: str
    owner: str
    state: State = "queued"
    batch: str = ""
    filename: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    reply: Mapping[str, Any] = field(default_factory=dict)
    upload: str = ""
    bytes: int = 0
    url: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    attempts: int = 0
    seconds: float = 0.0
    duration: float = 0.0
    error: Mapping[str, Any] | None = None
    webhook: str = ""
    deliveries: int = 0
    next_delivery: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state in ("completed", "failed", "cancelled")
