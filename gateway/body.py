"""The body of a request → its fields and its uploads, streamed into the spool with limits on size and time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import anyio
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from whispercore.api.fields import AUDIO_FIELDS, MAX_FIELDS, RAW_FIELD
from whispercore.errors import InvalidRequest, TooLarge, WhisperError

from .refusals import RequestTimeout
from .spool import Spool, Spooled, SpoolWriter

IDLE_SECONDS = 30.0
"""The longest time between two pieces of a body."""
SLOWEST_BYTES = 2048.0
"""Bytes a second that a body must have on average, after `IDLE_SECONDS`. The slowest mobile network has more."""
MAX_FILES = 100
"""Files of a form, at most: those of a batch of jobs. A transcription takes one."""
MAX_TEXT = 1024 * 1024
"""Bytes of all text fields together."""
DRAIN_SECONDS, DRAIN_BYTES = 5.0, 64 * 1024 * 1024
"""How long, and how much of, a refused body is read on, so that the client gets to read the reply."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries. `uploads`: by the name of the field, "body" for a raw body."""

    fields: Mapping[str, Any]
    uploads: Mapping[str, tuple[Spooled, ...]] = field(default_factory=dict)

    def remove(self) -> None:
        """Remove the files of the uploads."""
        for spooled in (file for files in self.uploads.values() for file in files):
            spooled.remove()


async def read_body(request: Request, spool: Spool, max_bytes: int) -> Body:
    """Read the whole body, and the query.

    Raises InvalidRequest (400) for a broken form, TooLarge (413) beyond `max_bytes`, RequestTimeout (408) when the body
    arrives too slowly, Overloaded (503) when the disk is full, ClientDisconnect when the client has gone.
    """
    pieces = _pieces(request)
    try:
        return await _read(request, pieces, spool, max_bytes)
    except WhisperError:
        await _drain(pieces)
        raise


async def _read(request: Request, pieces: AsyncIterator[bytes], spool: Spool, max_bytes: int) -> Body:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    form = _Fields()
    for name, value in request.query_params.multi_items():
        form.add(name, value)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    bounded = _bounded(pieces, max_bytes)
    if kind == b"multipart/form-data":
        return await _read_form(bounded, options.get(b"boundary", b""), form, spool)
    if kind == b"application/x-www-form-urlencoded":
        return await _read_urlencoded(bounded, form)
    with spool.writer() as writer:
        async for piece in bounded:
            writer.add(piece)
            await writer.flush()
        if not writer.size:
            return Body(form.values())
        return Body(form.values(), {RAW_FIELD: (await writer.finish(),)})


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The pieces of the body as they arrive, none too slowly."""
    began, received = time.monotonic(), 0
    stream = request.stream()
    while True:
        try:
            with anyio.fail_after(IDLE_SECONDS):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestTimeout(f"no data arrived for {IDLE_SECONDS:g} s: send the body without pauses") from None
        received += len(piece)
        seconds = time.monotonic() - began - IDLE_SECONDS
        if seconds > 0 and received < seconds * SLOWEST_BYTES:
            raise RequestTimeout(f"the body arrives too slowly: at least {SLOWEST_BYTES / 1024:g} KiB a second are expected")
        if piece:
            yield piece


async def _bounded(pieces: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    received = 0
    async for piece in pieces:
        received += len(piece)
        if received > max_bytes:
            raise _too_large(max_bytes)
        yield piece


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    """Read on for a while. A client that is still sending would otherwise get a reset in place of the reply."""
    drained = 0
    try:
        with anyio.move_on_after(DRAIN_SECONDS):
            async for piece in pieces:
                drained += len(piece)
                if drained > DRAIN_BYTES:
                    return
    except (ClientDisconnect, WhisperError):
        return


async def _read_urlencoded(pieces: AsyncIterator[bytes], form: _Fields) -> Body:
    text = bytearray()
    async for piece in pieces:
        text += piece
        if len(text) > MAX_TEXT:
            raise TooLarge(f"the fields have more than {MAX_TEXT:,} bytes: send the recording as a file of a multipart form")
    try:
        pairs = parse_qsl(text.decode(errors="replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise _too_many_fields() from None
    for name, value in pairs:
        form.add(name, value)
    return Body(form.values())


async def _read_form(pieces: AsyncIterator[bytes], boundary: bytes, form: _Fields, spool: Spool) -> Body:
    if not boundary:
        raise InvalidRequest("the body is not a valid multipart form: Content-Type names no boundary", code="invalid_form")
    reader = _FormReader(boundary, form, spool)
    try:
        async for piece in pieces:
            reader.write(piece)
            await reader.flush()
        return Body(form.values(), reader.finish())
    except MultipartParseError as error:
        raise InvalidRequest(f"the body is not a valid multipart form: {error}", code="invalid_form") from None
    finally:
        reader.close()


class _Fields:
    """Text fields: all values of a name, in the order of their arrival."""

    def __init__(self) -> None:
        self.count = 0
        self._values: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        self.count += 1
        if self.count > MAX_FIELDS:
            raise _too_many_fields()
        self._values.setdefault(name, []).append(value)

    def values(self) -> dict[str, Any]:
        """A name that ends with "[]" or is repeated has a list."""
        return {name: items if len(items) > 1 or name.endswith("[]") else items[0] for name, items in self._values.items()}


class _FormReader:
    """Parts of a multipart form (RFC 7578): files go into the spool, everything else is text."""

    def __init__(self, boundary: bytes, form: _Fields, spool: Spool) -> None:
        self._form, self._spool = form, spool
        self._ending: list[tuple[str, SpoolWriter]] = []
        self._done: list[tuple[str, Spooled]] = []
        self._name = ""
        self._writer: SpoolWriter | None = None
        self._text = bytearray()
        self._text_bytes = 0
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        """Parse the next piece of the body."""
        self._parser.write(data)

    async def flush(self) -> None:
        """Write what has been collected to the files, and close those that are complete: a form may have many."""
        while self._ending:
            name, writer = self._ending[0]
            self._done.append((name, await writer.finish()))
            del self._ending[0]
        if self._writer:
            await self._writer.flush()

    def finish(self) -> dict[str, tuple[Spooled, ...]]:
        """The uploads by field. Raises InvalidRequest when the form has no end."""
        if not self._ended:
            message = "the body is not a valid multipart form: its last boundary is missing: was the upload cut short?"
            raise InvalidRequest(message, code="invalid_form")
        uploads: dict[str, tuple[Spooled, ...]] = {}
        for name, spooled in self._done:
            uploads[name] = (*uploads.get(name, ()), spooled)
        self._done = []
        return uploads

    def close(self) -> None:
        """Remove the files that `finish` has not given away."""
        for writer in (*(writer for _, writer in self._ending), *((self._writer,) if self._writer else ())):
            writer.__exit__(None, None, None)
        for _, spooled in self._done:
            spooled.remove()

    def _begin_part(self) -> None:
        self._name, self._disposition = "", b""
        self._text.clear()

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise InvalidRequest("the body is not a valid multipart form: a part has no name", code="invalid_form")
        self._name = options[b"name"].decode(errors="replace")
        if b"filename" in options or self._name in AUDIO_FIELDS:
            self._form.count += 1
            if self._form.count > MAX_FIELDS or len(self._done) + len(self._ending) >= MAX_FILES:
                raise _too_many_fields()
            self._writer = self._spool.writer(options.get(b"filename", b"").decode(errors="replace"))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._writer:
            self._writer.add(data[start:end])
            return
        self._text_bytes += end - start
        if self._text_bytes > MAX_TEXT:
            raise TooLarge(f"the text fields of the form have more than {MAX_TEXT:,} bytes: send the recording as a file")
        self._text += data[start:end]

    def _end_part(self) -> None:
        if self._writer:
            self._ending.append((self._name, self._writer))
            self._writer = None
        else:
            self._form.add(self._name, self._text.decode(errors="replace"))

    def _end(self) -> None:
        self._ended = True


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body has more than {limit:,} bytes ({limit / 2**20:.0f} MB)", param="file")


def _too_many_fields() -> InvalidRequest:
    return InvalidRequest(f"the form has more than {MAX_FIELDS} fields or {MAX_FILES} files", code="too_many_fields")
