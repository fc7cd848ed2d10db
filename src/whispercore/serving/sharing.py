"""From a server's requests to jobs: which requests are accepted, and which share a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..api.fields import Audio
from ..api.request import Request, parse
from ..api.upload import check_audio_bytes
from ..errors import Overloaded
from .job import Job
from .transcriber import Transcriber

_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """A request attached to a job; several requests may be attached to one job.

    `joined`: the job had begun for an equal request, whose audio both requests now hold.
    """

    request: Request
    job: Job
    joined: bool


class SharedJobs:
    """The jobs of a front end's requests. A request with the audio and options of an open one joins its job.

    Clients repeat a request silently when they lose patience, so the same upload often arrives twice.
    While `closing`, new requests are refused and open ones go on. `shared` counts the requests that have joined a job.
    Not thread-safe: a front end calls it from one thread.
    """

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self.closing = False
        self.shared = 0
        self._attachments: dict[Attachment, None] = {}  # in order of arrival

    def __len__(self) -> int:
        """The number of requests that are attached to a job."""
        return len(self._attachments)

    def check(self, fields: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
        """The request in a server's fields and headers.

        Raises Overloaded (503) while closing, TooLarge (413) for more than `max_audio_bytes`, and what `parse` raises.
        """
        if self.closing:
            raise Overloaded("the server is stopping: send the request to another, or again in a minute", code="stopping", retry_after=60)
        request = parse(fields, headers)
        check_audio_bytes(request.audio, self.transcriber.settings.max_audio_bytes)
        return request

    def begin(
        self,
        request: Request,
        *,
        alone: bool = False,
        on_news: Callable[[], None] | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Attachment:
        """Begin a job for the request, or join that of an equal one, unless `alone`. The callbacks are those of `Job`.

        Raises what `Transcriber.submit` raises.
        """
        equal = None if alone else self._equal(request)
        if equal:
            self.shared += 1
            request = replace(request, audio=equal.request.audio)  # frees the copy
            attachment = Attachment(request, equal.job, joined=True)
        else:
            job = self.transcriber.submit(request.audio, request.options, on_news=on_news, on_progress=on_progress, probe=True)
            attachment = Attachment(request, job, joined=False)
        self._attachments[attachment] = None
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Detach a request from its job. The job is cancelled, if it has not ended, when no other request shares it."""
        del self._attachments[attachment]
        if not any(other.job is attachment.job for other in self._attachments):
            attachment.job.cancel()

    def _equal(self, request: Request) -> Attachment | None:
        """The first open request for the same audio with the same options.

        The audio is compared last, because that takes 20 ms for 100 MB.
        """
        for attachment in self._attachments:
            is_similar = len(attachment.request.audio) == len(request.audio) and attachment.request.options == request.options
            if is_similar and attachment.job.error is None and _same(attachment.request.audio, request.audio):
                return attachment
        return None


def _same(one: Audio, other: Audio) -> bool:
    """Whether two uploads of equal length have the same bytes. Memoryviews are slow to compare: 1 s for 100 MB."""
    return all(bytes(one[at : at + _PIECE]) == bytes(other[at : at + _PIECE]) for at in range(0, len(one), _PIECE))


def wants_own_job(headers: Mapping[str, Any]) -> bool:
    """Whether the client wants a job of its own: `Cache-Control: no-cache`, which load tests send."""
    return any(name.lower() == "cache-control" and "no-cache" in str(value).lower() for name, value in headers.items())
