"""Between a server that polls and a core that works on its own: requests are posted, letters collected when there is news.

TorchServe's continuous batching calls the handler again and again with every open request; `Mailbox.exchange` is one such call.
It registers what is new, waits a moment for news, and returns a letter for each request that has something to say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import formats, wire
from .errors import EngineError, Overloaded, WhisperError
from .transcriber import Job, Transcriber

logger = logging.getLogger(__name__)

# The server sends a request's body again at each call until its first letter. A body from this size on gets an empty first
# chunk as soon as its audio has proved readable; the smaller ones wait without a status, and so keep a true one to the end.
EARLY_FIRST_CHUNK_BYTES = 1024 * 1024
RESENT_BYTES_PER_SECOND = 100e6
SHORTEST_WAIT, LONGEST_WAIT = 0.02, 0.1
# TorchServe looks whether a client is still there only when there is something for it: a begun reply gets an empty chunk so often.
KNOCK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Post:
    """One open request as the server shows it: its row of fields and its headers (facts: both as TorchServe hands them over)."""

    id: str
    fields: Mapping[str, Any]
    headers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Letter:
    """What a request is told now. `last`: None a whole reply, False a chunk with more to come, True a stream's last chunk."""

    status: int
    reason: str
    content_type: str
    payload: bytes
    request_id: str
    last: bool | None = None
    audio_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Open:
    """A request between its arrival and its last letter."""

    request: wire.Request
    request_id: str
    job: Job
    arrived: float
    resent_bytes: int
    begun: bool = False
    knocked: float = 0.0


class Mailbox:
    """Open requests by the server's id. Used by one thread, the server's; the core's threads only ring the bell.

    While `closing`, what is open goes on and new requests are refused with 503.
    """

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self.closing = False
        self._open: dict[str, Open] = {}
        self._news = threading.Event()

    def __len__(self) -> int:
        """Requests that have not had their last letter."""
        return len(self._open)

    def exchange(self, posts: Iterable[Post]) -> dict[str, Letter]:
        """Letters by request id. A request that is in none of the posts any more has gone away and is cancelled."""
        by_id = {post.id: post for post in posts}
        for gone in self._open.keys() - by_id.keys():
            self._open.pop(gone).job.cancel()
        letters = {post.id: letter for post in by_id.values() if post.id not in self._open and (letter := self._receive(post))}
        if not letters:
            self._news.wait(self._patience())
        self._news.clear()
        for id in list(self._open):
            if letter := self._letter(id):
                letters[id] = letter
        return letters

    def _receive(self, post: Post) -> Letter | None:
        """Begin a request; a letter at once when it is refused, or needs no transcription."""
        arrived = time.monotonic()
        request_id = wire.request_id(post.headers)
        try:
            if self.closing:
                raise Overloaded("the server is stopping: send the request to another, or again in a minute", code="stopping")
            request = wire.parse(post.fields, post.headers)
            if request.route == "models":
                return _letter(formats.render_models([self.transcriber.settings.model]), request_id, 200)
            wire.check_audio_bytes(request.audio, self.transcriber.settings.max_audio_bytes)
            job = self.transcriber.submit(request.audio, request.options, on_news=self._news.set)
        except WhisperError as error:
            return _refusal(error, request_id)
        except Exception as error:  # one request's surprise must not fail the others of the same call
            logger.exception("request %s could not be read", request_id)
            return _refusal(EngineError(f"the request could not be read: {error}"), request_id)
        self._open[post.id] = Open(request, request_id, job, arrived, resent_bytes=len(request.audio))
        return None

    def _patience(self) -> float:
        """Seconds to wait for news: the longer, the more bytes the next call costs."""
        resent = sum(open.resent_bytes for open in self._open.values() if not open.begun)
        return min(max(SHORTEST_WAIT, resent / RESENT_BYTES_PER_SECOND), LONGEST_WAIT)

    def _letter(self, id: str) -> Letter | None:
        open = self._open[id]
        if open.job.ended:
            del self._open[id]
            return self._final(id, open)
        if not open.begun:
            open.begun = open.job.opened and open.resent_bytes >= EARLY_FIRST_CHUNK_BYTES
        if open.begun and time.monotonic() - open.knocked >= KNOCK_SECONDS:
            open.knocked = time.monotonic()
            return Letter(200, "OK", formats.content_type(open.request.reply.response_format), b"", open.request_id, last=False)
        return None

    def _final(self, id: str, open: Open) -> Letter:
        seconds = time.monotonic() - open.arrived
        last = True if open.begun else None
        try:
            transcript = open.job.result(timeout=0)
            body = formats.render(transcript, open.request.reply, open.request.route)
        except WhisperError as error:
            logger.warning("request %s (%s) failed after %.3f s: %s", id, open.request_id, seconds, error.message)
            return _refusal(error, open.request_id, last=last, seconds=seconds)
        except Exception as error:
            logger.exception("request %s (%s) could not be answered", id, open.request_id)
            return _refusal(EngineError(f"the reply could not be made: {error}"), open.request_id, last=last, seconds=seconds)
        logger.info("request %s (%s): %.1f s of audio in %.3f s", id, open.request_id, transcript.duration, seconds)
        return _letter(body, open.request_id, 200, last=last, audio_seconds=transcript.duration, seconds=seconds)


def _refusal(error: WhisperError, request_id: str, *, last: bool | None = None, seconds: float = 0.0) -> Letter:
    status, body = formats.render_error(error)
    return _letter(body, request_id, status, last=last, seconds=seconds)


def _letter(
    body: formats.Body, request_id: str, status: int, *, last: bool | None = None, audio_seconds: float = 0.0, seconds: float = 0.0
) -> Letter:
    return Letter(status, formats.status_phrase(status), body.content_type, body.payload, request_id, last, audio_seconds, seconds)
