"""From a server's requests to jobs: which requests are accepted, and which share a job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..api.fields import Audio
from ..api.request import Request, parse
from ..api.upload import check_audio_bytes
from ..errors import Overloaded
from .backlog import WATCHDOG
from .models import AnyJob, Models

_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """A request attached to a job; several requests of one client may be attached to one job.

    `client`: whose request it is. `likeness`: see `_likeness`. `joined`: the job had begun for an equal request, whose
    audio both requests now hold.
    """

    request: Request
    job: AnyJob
    client: str
    likeness: Hashable
    joined: bool


class SharedJobs:
    """The jobs of a front end's requests. A request with the audio and options of an open one of its client joins its job.

    Clients repeat a request silently when they lose patience, so the same upload often arrives twice. Two clients do not
    share a job: the second would wait behind the other requests of the first, and the time of its reply would tell that
    somebody else has sent the same recording.

    While `closing`, new requests are refused and open ones go on. `shared` counts the requests that have joined a job.
    Not thread-safe: a front end calls it from one thread.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.closing = False
        self.shared = 0
        self._alike: dict[Hashable, list[Attachment]] = {}  # in order of arrival; see `_likeness`
        self._requests = Counter[str]()  # by client

    def __len__(self) -> int:
        """The number of requests that are attached to a job."""
        return sum(self._requests.values())

    def check(self, fields: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
        """The request in a server's fields and headers.

        Raises Overloaded (503) while closing, TooLarge (413) for more than `max_audio_bytes`, and what `parse` raises.
        """
        if self.closing:
            raise Overloaded("the server is stopping: send the request to another, or again in a minute", code="stopping", retry_after=60)
        request = parse(fields, headers)
        check_audio_bytes(request.audio, self.models.default.settings.max_audio_bytes)
        return request

    def begin(
        self,
        request: Request,
        *,
        model: str = "",
        client: str = "",
        alone: bool = False,
        on_news: Callable[[], None] | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Attachment:
        """Begin a job for the request, or join that of an equal one, unless `alone`. The callbacks are those of `Job`.

        `model`: the name of the model; empty: the default one. Requests that share a job count for the limits on open
        requests, too. Raises what `Models.submit` raises.
        """
        model = model or self.models.default_name
        if client != WATCHDOG:
            self.models.default.admission.check_number(client, len(self), self._requests[client])
        likeness = _likeness(request, model, client)
        equal = None if alone else self._equal(request, likeness)
        if equal:
            self.shared += 1
            request = replace(request, audio=equal.request.audio)  # frees the copy
            attachment = Attachment(request, equal.job, client, likeness, joined=True)
        else:
            call = {"client": client, "on_news": on_news, "on_progress": on_progress, "probe": True}
            job = self.models.submit(model, request.audio, request.options, **call)
            attachment = Attachment(request, job, client, likeness, joined=False)
        self._alike.setdefault(likeness, []).append(attachment)
        self._requests[client] += 1
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Detach a request from its job. The job is cancelled, if it has not ended, when no other request shares it."""
        alike = self._alike[attachment.likeness]
        alike.remove(attachment)
        if not alike:
            del self._alike[attachment.likeness]
        self._requests -= Counter([attachment.client])
        if not any(other.job is attachment.job for other in alike):
            attachment.job.cancel()

    def _equal(self, request: Request, likeness: Hashable) -> Attachment | None:
        """The client's first open request for the same audio with the same options."""
        for attachment in self._alike.get(likeness, ()):
            if attachment.job.error is None and _same(attachment.request.audio, request.audio):
                return attachment
        return None


def _likeness(request: Request, model: str, client: str) -> Hashable:
    """What equal requests have in common, cheaper to compare than 100 MB of audio, which takes 20 ms."""
    middle = len(request.audio) // 2
    return client, model, request.options, len(request.audio), bytes(request.audio[middle : middle + 64])


def _same(one: Audio, other: Audio) -> bool:
    """Whether two uploads of equal length have the same bytes. Memoryviews are slow to compare: 1 s for 100 MB."""
    return all(bytes(one[at : at + _PIECE]) == bytes(other[at : at + _PIECE]) for at in range(0, len(one), _PIECE))


def wants_own_job(headers: Mapping[str, Any]) -> bool:
    """Whether the client wants a job of its own: `Cache-Control: no-cache`, which load tests send."""
    return any(name.lower() == "cache-control" and "no-cache" in str(value).lower() for name, value in headers.items())
