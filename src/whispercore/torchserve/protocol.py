"""TorchServe's messages from Java to the worker, read in large pieces and with a limit on the fields of a request.

TorchServe's own reader calls `recv` for every length and every value, and keeps every field: a form with 200,000 empty
fields occupies the worker's only thread for 20 s. The functions here have the signatures of those in
ts/protocol/otf_message_handler.py that they replace.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ..api.fields import MAX_FIELDS

END_OF_LIST = -1
_PIECE = 256 * 1024
_LENGTH = struct.Struct("!i")


class Connection(Protocol):
    """What is used of a socket."""

    def recv(self, size: int, /) -> bytes:
        """Up to `size` bytes, none when the other side has closed."""
        ...

    def recv_into(self, buffer: memoryview, /) -> int:
        """Fill a part of `buffer`; how many bytes, 0 when the other side has closed."""
        ...


class MessageReader:
    """Reads a connection in large pieces. Java sends the next message only after the reply, so nothing of it is read too early."""

    def __init__(self, connection: Connection, on_close: Callable[[], None] = lambda: sys.exit(0)) -> None:
        """`on_close` is called when Java has gone; TorchServe's own reader exits, too."""
        self._connection = connection
        self._on_close = on_close
        self._buffer = b""
        self._place = 0

    def read(self, length: int) -> bytearray:
        """Exactly `length` bytes."""
        data = bytearray(length)
        held = min(length, len(self._buffer) - self._place)
        data[:held] = self._buffer[self._place : self._place + held]
        self._place += held
        if length - held >= _PIECE:
            self._receive_into(memoryview(data)[held:])
        elif length > held:
            self._fill(length - held)
            data[held:] = self._buffer[: length - held]
            self._place = length - held
        return data

    def length(self) -> int:
        """The next number: a length, or `END_OF_LIST`."""
        place = self._place
        if place + _LENGTH.size <= len(self._buffer):
            self._place = place + _LENGTH.size
            return int(_LENGTH.unpack_from(self._buffer, place)[0])
        return int(_LENGTH.unpack(self.read(_LENGTH.size))[0])

    def skip(self, length: int) -> None:
        """Pass over `length` bytes."""
        while length > (held := len(self._buffer) - self._place):
            length -= held
            self._fill(1)
        self._place += length

    def _fill(self, at_least: int) -> None:
        """Replace the buffer, all of which has been read, by the next bytes."""
        pieces, received = [], 0
        while received < at_least:
            piece = self._connection.recv(_PIECE)
            if not piece:
                self._on_close()
                raise EOFError("TorchServe has closed the connection")
            pieces.append(piece)
            received += len(piece)
        self._buffer, self._place = pieces[0] if len(pieces) == 1 else b"".join(pieces), 0

    def _receive_into(self, view: memoryview) -> None:
        while len(view):
            received = self._connection.recv_into(view)
            if not received:
                self._on_close()
                raise EOFError("TorchServe has closed the connection")
            view = view[received:]


_READERS: WeakKeyDictionary[Any, MessageReader] = WeakKeyDictionary()


def _reader(connection: Any) -> MessageReader:
    """The reader of a connection, which holds what has been received and not been read."""
    reader = _READERS.get(connection)
    if reader is None:
        reader = _READERS[connection] = MessageReader(connection)
    return reader


def retrieve_buffer(connection: Any, length: int) -> bytearray:
    """In place of `_retrieve_buffer`."""
    return _reader(connection).read(length)


def retrieve_request(connection: Any) -> dict[str, Any] | None:
    """In place of `_retrieve_request`: one request of a batch with at most `MAX_FIELDS` + 1 of its fields, so
    that the core sees when there were too many; None after the last request."""
    return read_request(_reader(connection))


def read_request(reader: MessageReader) -> dict[str, Any] | None:
    """One request: its id, its headers, its fields; None at the end of the batch."""
    length = reader.length()
    if length == END_OF_LIST:
        return None
    identifier = reader.read(length)
    headers = []
    while (length := reader.length()) != END_OF_LIST:
        name = reader.read(length)
        headers.append({"name": name, "value": reader.read(reader.length())})
    fields: list[dict[str, Any]] = []
    while (length := reader.length()) != END_OF_LIST:
        if len(fields) > MAX_FIELDS:
            reader.skip(length)
            reader.skip(reader.length())
            reader.skip(reader.length())
        else:
            fields.append(_field(reader, length))
    return {"requestId": identifier, "headers": headers, "parameters": fields}


def _field(reader: MessageReader, length: int) -> dict[str, Any]:
    """A field, its value decoded by its content type as TorchServe does: JSON parsed, text as str; the bytes where that fails."""
    name = reader.read(length).decode(errors="replace")
    content_type = reader.read(reader.length()).decode(errors="replace")
    value: Any = reader.read(reader.length())
    try:
        if content_type == "application/json":
            value = json.loads(value.decode())
        elif content_type.startswith("text"):
            value = value.decode()
    except (ValueError, RecursionError):
        pass  # the core says what is wrong with it
    return {"name": name, "contentType": content_type, "value": value}
