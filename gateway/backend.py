"""The seam between the HTTP side of the gateway and what transcribes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .spool import Spooled


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request for a back end.

    `path`: the part of the URL that names the route, such as "v1/audio/transcriptions"; empty for the native
    route. `fields`: the fields of the form or the query; a repeated one has a list. `uploads`: the files by the
    name of their field; "body" is a raw body. `headers`: the client's, names in lower case but for options,
    `X-Whisper-Language`. `request_id`: the client's own, or the gateway's. `client`: the name by which the queue
    is fair.
    """

    path: str
    fields: Mapping[str, Any]
    uploads: Mapping[str, tuple[Spooled, ...]]
    headers: Mapping[str, str]
    request_id: str
    client: str = ""

    def row(self) -> dict[str, Any]:
        """The fields, and the uploads as views of their files, as `whispercore.api.request.parse` takes them."""
        views = {name: [file.view() for file in files] for name, files in self.uploads.items()}
        return {**self.fields, **{name: items[0] if len(items) == 1 else items for name, items in views.items()}}


@dataclass(slots=True, kw_only=True)
class Reply:
    """What a back end answers. `body`: the whole body, or the chunks of a stream.

    `audio_seconds`: the duration of the recording; of a stream it is known at the end.
    """

    status: int
    content_type: str
    body: bytes | AsyncGenerator[bytes, None]
    headers: Mapping[str, str] = field(default_factory=dict)
    audio_seconds: float = 0.0


class Backend(Protocol):
    """What transcribes. All methods run on the gateway's event loop and block it for no longer than a millisecond."""

    name: str

    async def start(self) -> None:
        """Begin; called once, before the first request."""
        ...

    async def send(self, call: Call) -> Reply:
        """Answer a request; errors are replies with an error object.

        The request is cancelled when the awaiting task, or the iteration over a stream, is cancelled.
        """
        ...

    async def readiness(self) -> Reply:
        """The report of the route `health/ready`, with status 200 or 503."""
        ...

    async def metrics(self) -> str:
        """The metrics of the core in Prometheus' text format."""
        ...

    async def close(self) -> None:
        """End; called once, after the last request."""
        ...
