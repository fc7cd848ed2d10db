"""One request from its fields and headers to the whole reply, within the time that the invocation has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from function_errors import TimeIsUp

from whispercore.errors import WhisperError
from whispercore.serving.intake import Intake
from whispercore.serving.open_request import OpenRequest
from whispercore.serving.response import Response, error_response

MARGIN = 10.0
"""Seconds before the end of an invocation that are kept for the reply: at most these, and at most a tenth of it."""
CORE_MEGABYTES = 1769
"""Memory for which Lambda gives one core."""


class LambdaContext(Protocol):
    """What the function uses of Lambda's context object."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda kills the invocation."""
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time at which a reply must begin. `ends`: time.monotonic. `advice`: what to change when it is too short."""

    ends: float
    advice: str

    @classmethod
    def of(cls, context: LambdaContext) -> Deadline:
        """The end of the invocation, less the margin."""
        seconds = context.get_remaining_time_in_millis() / 1000
        advice = (
            f"give the function more memory (a core for each {CORE_MEGABYTES:,} MB, 10,240 MB at most), a longer timeout "
            "(900 s at most) or a smaller model, or send a shorter recording"
        )
        return cls(time.monotonic() + seconds - min(MARGIN, seconds / 10), advice)

    def at_most(self, seconds: float, advice: str) -> Deadline:
        """The earlier one of this deadline, and `seconds` from now with other advice."""
        ends = time.monotonic() + seconds
        return Deadline(ends, advice) if ends < self.ends else self

    @property
    def seconds(self) -> float:
        """Seconds that are left; 0.0 when there are none."""
        return max(0.0, self.ends - time.monotonic())

    def check(self) -> None:
        """Raise TimeIsUp when no time is left."""
        if not self.seconds:
            raise TimeIsUp(f"the time of the invocation was over before the transcription began: {self.advice}")


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to a request. `opened`: the request, when it got a transcript."""

    response: Response
    opened: OpenRequest | None = None


def answer(intake: Intake, request_id: str, fields: Mapping[str, Any], headers: Mapping[str, Any], deadline: Deadline) -> Answer:
    """The whole reply; a stream arrives in one piece, because Lambda's Python runtime sends none.

    When the deadline comes first, the transcription is cancelled, and the reply is the error TimeIsUp (504).
    """
    opened = intake.receive(request_id, fields, headers, on_news=lambda: None)  # the job's end is waited for, and nothing else
    if isinstance(opened, Response):
        return Answer(opened)
    try:
        with suppress(WhisperError):  # respond() makes the reply of it
            opened.job.result(deadline.seconds)
    except TimeoutError:
        progress = opened.job.progress
        of = f" of {progress.duration:.0f} s" if progress.duration else ""
        error = TimeIsUp(f"{progress.seconds:.0f} s{of} were transcribed when the invocation's time was nearly over: {deadline.advice}")
        intake.jobs.detach(opened.attachment)
        return Answer(error_response(error, opened.request_id))
    response = opened.respond(allow_empty=True)
    assert response is not None  # the job has ended
    intake.jobs.detach(opened.attachment)
    return Answer(response, None if opened.job.error else opened)
