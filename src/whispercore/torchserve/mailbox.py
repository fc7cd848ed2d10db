"""Between a server that polls and a core that works on its own: requests are posted, letters collected when there is news.

TorchServe's continuous batching calls the handler again and again with every open request; `Mailbox.exchange` is one such call.
It registers what is new, waits a moment for news, and returns a letter for each request that has something to say. Clients repeat a
request silently when they lose patience: equal audio with equal options shares the job of the copy that is open.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..api.models import remarks
from ..api.reply import (
    Body,
    content_type,
    render,
    render_error,
    render_models,
    status_phrase,
    stream_chunk,
    stream_content_type,
    stream_end,
    stream_error,
    stream_progress,
    warnings_of,
)
from ..api.request import Request, check_audio_bytes, client_request_id, parse
from ..errors import EngineError, Overloaded, WhisperError
from ..serving.job import Job
from ..serving.transcriber import Transcriber
from ..tokenizer import Tokenizer
from ..types import Progress, Transcript

logger = logging.getLogger(__name__)

# The server sends a request's body again at each call until its first letter. A body from this size on gets an empty first
# chunk as soon as its audio has proved readable; the smaller ones wait without a status, and so keep a true one to the end.
EARLY_FIRST_CHUNK_BYTES = 1024 * 1024
# So do smaller ones, the largest first, while all that are sent again come to more than this: else 32 clips of 320 kB cost a tenth of
# a second of processor time each.
CROWD_BYTES = 4 * 1024 * 1024
# A call costs some tenths of a millisecond of processor time for each open request, and the bodies it hands over again. A wait in which
# nothing happens delays nobody but who comes meanwhile, so it grows with what the next call will cost, to a few percent of a core; where
# there are few cores it starts higher: fifty calls a second take 8 % of one, Java's part included, while a single file is decoded.
SHORTEST_WAIT, LONGEST_WAIT = min(0.05, max(0.02, 0.1 / len(os.sched_getaffinity(0)))), 0.25
WAIT_PER_REQUEST, WAIT_PER_BYTE = 0.004, 1 / 50e6
# TorchServe looks whether a client is still there only when there is something for it: a begun reply gets an empty chunk so often; a
# stream of events a comment, which clients pass over, and proxies take for a sign of life.
KNOCK_SECONDS = 1.0
COMMENT = b":\n\n"
# A stream begins when its recording has been opened, because until then the status may still be an error's. Where many recordings are
# read at once that can take long; after so many seconds the stream begins all the same, so that its client does not lose patience.
UNOPENED_SECONDS = 5.0
MAX_HEADER = 2000
"""Characters of a header of ours."""


@dataclass(frozen=True, slots=True)
class Post:
    """One open request as the server shows it: its row of fields and its headers (facts: both as TorchServe hands them over)."""

    id: str
    fields: Mapping[str, Any]
    headers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Letter:
    """What a request is told now. `last`: None a whole reply, False a chunk with more to come, True a stream's last chunk.

    `request_id`: the client's own x-request-id, the server's id for a client that sent none. `dropped`: why each text that a guard
    took for no speech was left out of the transcript. `headers`: further ones of the reply; a begun reply's are those of its first chunk.
    """

    status: int
    content_type: str
    payload: bytes
    request_id: str
    last: bool | None = None
    audio_seconds: float = 0.0
    seconds: float = 0.0
    dropped: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The words after the number in the status line."""
        return status_phrase(self.status)


@dataclass(slots=True, eq=False)
class Open:
    """A request between its arrival and its last letter.

    `remarks`: what its reply has to say about the model served, whose name is `model`. `told`: the progress that its stream has had.
    """

    id: str
    request_id: str
    request: Request
    job: Job
    arrived: float
    resent_bytes: int
    model: str
    remarks: tuple[str, ...]
    begun: bool = False
    told: Progress = field(default_factory=Progress)

    def __str__(self) -> str:
        return both_ids(self.id, self.request_id)

    @property
    def content_type(self) -> str:
        """Of the reply, should it be a transcript."""
        reply, route = self.request.reply, self.request.route
        return stream_content_type(route) if reply.stream else content_type(reply.response_format)

    @property
    def knock(self) -> bytes:
        """A chunk without news: a stream's sign of life, else nothing."""
        if not self.request.reply.stream:
            return b""
        return stream_progress(self.told) if self.request.route == "native" else COMMENT

    def headers(self, warnings: Sequence[str]) -> dict[str, str]:
        """The model's name, and the warnings where the body has no place for them."""
        reply = self.request.reply
        told = {} if reply.stream or reply.response_format in ("json", "verbose_json") else {"x-whisper-warnings": "; ".join(warnings)}
        return {name: _header(value) for name, value in {"x-whisper-model": self.model, **told}.items() if value}

    def news(self, tokenizer: Tokenizer) -> bytes:
        """What the stream has not had yet: segments, seconds done. Empty when there is none, and where nothing is streamed."""
        if not self.request.reply.stream or (progress := self.job.progress) == self.told:
            return b""
        fresh, self.told = progress.segments[len(self.told.segments) :], progress
        return stream_chunk(fresh, progress, self.request.reply, self.request.route, tokenizer=tokenizer)

    def last_words(self, transcript: Transcript, tokenizer: Tokenizer) -> Body:
        """The reply, or what is left of it when it is a stream."""
        reply, route = self.request.reply, self.request.route
        if not reply.stream:
            return render(transcript, reply, route, tokenizer=tokenizer, model=self.model)
        end = stream_end(transcript, reply, route, tokenizer=tokenizer, model=self.model)
        return Body(self.content_type, self.news(tokenizer) + end)


class Mailbox:
    """Open requests by the server's id. Used by one thread, the server's; the core's threads only ring the bell.

    While `closing`, what is open goes on and new requests are refused with 503. `shared` counts requests that joined another's job.
    """

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self.closing = False
        self.shared = 0
        self._tokenizer = transcriber.engine.tokenizer
        self._model = transcriber.settings.model_id
        self._max_audio_bytes = transcriber.settings.max_audio_bytes
        self._open: dict[str, Open] = {}
        self._news = threading.Event()
        self._knocked = 0.0

    def __len__(self) -> int:
        """Requests that have not had their last letter."""
        return len(self._open)

    def exchange(self, posts: Iterable[Post]) -> dict[str, Letter]:
        """Letters by request id. A request that is in none of the posts any more has gone away and is cancelled."""
        by_id = {post.id: post for post in posts}
        for gone in self._open.keys() - by_id.keys():
            self._give_up(self._open.pop(gone))
        letters = {post.id: letter for post in by_id.values() if post.id not in self._open and (letter := self._receive(post))}
        until = time.monotonic() + (0.0 if letters else self._patience())
        while not (letters := letters | self._letters()) and (left := until - time.monotonic()) > 0:
            self._news.wait(left)
            self._news.clear()
        return letters

    def _letters(self) -> dict[str, Letter]:
        """What there is to tell the open requests now."""
        costly, now = self._costly(), time.monotonic()
        knocking = now - self._knocked >= KNOCK_SECONDS  # all at once: each for itself would be a call each
        self._knocked = now if knocking else self._knocked
        due = {open: knocking if open.begun else open in costly or _begins_stream(open) for open in self._open.values()}
        return {open.id: letter for open in due if (letter := self._letter(open, due[open]))}

    def _give_up(self, gone: Open) -> None:
        """Cancel the job of a client that has left, unless somebody else waits for it too."""
        if not any(open.job is gone.job for open in self._open.values()):
            gone.job.cancel()

    def _receive(self, post: Post) -> Letter | None:
        """Begin a request; a letter at once when it is refused, or needs no transcription."""
        arrived = time.monotonic()
        request_id = client_request_id(post.headers) or post.id
        try:
            if self.closing:
                raise Overloaded("the server is stopping: send the request to another, or again in a minute", code="stopping")
            request = parse(post.fields, post.headers)
            if request.route == "models":
                listed = render_models(self._model, request.model, self._remarks(""), max_audio_bytes=self._max_audio_bytes)
                return _letter(listed, request_id, 200)
            check_audio_bytes(request.audio, self._max_audio_bytes)
            first = None if _wants_its_own(post.headers) else self._twin(request)
            self._open[post.id] = self._begin(post.id, request_id, request, arrived, first)
        except WhisperError as error:
            logger.info("request %s refused with %d: %s", both_ids(post.id, request_id), error.status, error.message)
            return _refusal(error, request_id)
        except Exception as error:  # one request's surprise must not fail the others of the same call
            logger.exception("request %s could not be read", both_ids(post.id, request_id))
            return _refusal(EngineError(f"the request could not be read: {error}"), request_id)
        return None

    def _begin(self, id: str, request_id: str, request: Request, arrived: float, first: Open | None) -> Open:
        """An open request, with a job of its own or with that of an equal one that came `first`."""
        size, remarks = len(request.audio), self._remarks(request.model)
        if first:
            self.shared += 1
            request = replace(request, audio=first.request.audio)  # the copy's bytes are free to go
            opened = Open(id, request_id, request, first.job, arrived, size, self._model, remarks)
            logger.info("request %s shares the work of %s: the same audio and options", opened, first)
            return opened
        on_progress = self._news.set if request.reply.stream else None
        job = self.transcriber.submit(request.audio, request.options, on_news=self._news.set, on_progress=on_progress)
        return Open(id, request_id, request, job, arrived, size, self._model, remarks)

    def _remarks(self, asked: str) -> tuple[str, ...]:
        """What a reply has to say about the model, when `asked` was asked for."""
        return remarks(asked, self._model, demonstration=self.transcriber.is_demonstration)

    def _twin(self, request: Request) -> Open | None:
        """The open request for the same audio with the same options. Bytes are compared last: that takes 10 ms for 100 MB."""
        for open in self._open.values():
            alike = len(open.request.audio) == len(request.audio) and open.request.options == request.options
            if alike and open.job.error is None and open.request.audio == request.audio:
                return open
        return None

    def _patience(self) -> float:
        """Seconds to wait for news."""
        resent = sum(open.resent_bytes for open in self._resent())
        return min(max(SHORTEST_WAIT, WAIT_PER_REQUEST * len(self._open) + WAIT_PER_BYTE * resent), LONGEST_WAIT)

    def _resent(self) -> list[Open]:
        """The requests whose bodies the server hands over at each call."""
        return [open for open in self._open.values() if not open.begun]

    def _costly(self) -> set[Open]:
        """The requests whose bodies the server is to stop sending again and again: large ones, and the largest of a crowd."""
        waiting = sorted(self._resent(), key=lambda open: open.resent_bytes, reverse=True)
        resent, costly = sum(open.resent_bytes for open in waiting), set[Open]()
        for open in waiting:
            if open.resent_bytes < EARLY_FIRST_CHUNK_BYTES and resent <= CROWD_BYTES:
                break
            if open.job.opened:
                costly.add(open)
                resent -= open.resent_bytes
        return costly

    def _letter(self, open: Open, due: bool) -> Letter | None:
        """The last letter when the job has ended or the reply cannot be made, a chunk when there is something for one."""
        try:
            if not open.job.ended:
                return self._chunk(open, due)
            letter = self._final(open)
        except WhisperError as error:
            letter = self._failure(open, error)
            logger.warning("request %s failed after %.3f s: %s", open, letter.seconds, error.message)
        except Exception as error:  # one request's surprise must not fail the others of the same call
            letter = self._failure(open, EngineError(f"the reply could not be made: {error}"))
            logger.exception("request %s could not be answered", open)
        del self._open[open.id]
        self._give_up(open)
        return letter

    def _chunk(self, open: Open, due: bool) -> Letter | None:
        """News of a stream; or an empty chunk that begins a large upload's reply, or finds out whether its client is still there."""
        payload = open.news(self._tokenizer)
        if not (payload or due):
            return None
        open.begun = True
        return Letter(200, open.content_type, payload or open.knock, open.request_id, last=False, headers=open.headers(open.remarks))

    def _final(self, open: Open) -> Letter:
        transcript = open.job.result(timeout=0)
        transcript = replace(transcript, warnings=(*open.remarks, *transcript.warnings))
        body = open.last_words(transcript, self._tokenizer)
        seconds = time.monotonic() - open.arrived
        logger.info("request %s: %.1f s of audio in %.3f s", open, transcript.duration, seconds)
        dropped = tuple(one.reason for one in transcript.dropped)
        headers = open.headers(warnings_of(transcript))
        return Letter(200, body.content_type, body.payload, open.request_id, _last(open), transcript.duration, seconds, dropped, headers)

    def _failure(self, open: Open, error: WhisperError) -> Letter:
        """An error with its true status, or told within a reply that has begun."""
        seconds = time.monotonic() - open.arrived
        if open.begun and open.request.reply.stream:
            payload = stream_error(error, open.request.route)
            return Letter(error.status, open.content_type, payload, open.request_id, last=True, seconds=seconds)
        return replace(_refusal(error, open.request_id), last=_last(open), seconds=seconds)


def both_ids(id: str, request_id: str) -> str:
    """What logs call a request: the server's id, and the client's own, when it sent one, in brackets."""
    return id if request_id == id else f"{id} ({request_id})"


def _wants_its_own(headers: Mapping[str, Any]) -> bool:
    """Whether the client will have no work that was begun for another request: Cache-Control: no-cache, as load tests send."""
    return any(name.lower() == "cache-control" and "no-cache" in str(value).lower() for name, value in headers.items())


def _begins_stream(open: Open) -> bool:
    """Whether the client is to get a stream's first sign of life."""
    return open.request.reply.stream and (open.job.opened or time.monotonic() - open.arrived >= UNOPENED_SECONDS)


def _header(value: str) -> str:
    """`value` as a header can carry it: one line of printable ASCII."""
    plain = value.encode("ascii", errors="replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in plain)[:MAX_HEADER]


def _last(open: Open) -> bool | None:
    """How the last letter goes out: as a begun reply's last chunk, or whole."""
    return True if open.begun else None


def _refusal(error: WhisperError, request_id: str) -> Letter:
    status, body = render_error(error)
    return _letter(body, request_id, status)


def _letter(body: Body, request_id: str, status: int) -> Letter:
    return Letter(status, body.content_type, body.payload, request_id)
