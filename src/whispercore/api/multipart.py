"""A multipart form that the server has handed over undivided → its fields (RFC 7578).

TorchServe divides forms itself, but not one whose Content-Type is written with capitals, as in `Multipart/Form-Data`.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from email.utils import collapse_rfc2231_value

from ..errors import InvalidRequest

MAX_PARTS = 1000
_END_OF_HEADERS = b"\r\n\r\n"


def is_form(content_type: str) -> bool:
    """Whether Content-Type names a multipart form, in any case."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def form_fields(body: bytes | bytearray | memoryview, content_type: str) -> dict[str, memoryview | list[memoryview]]:
    """The fields by name, uncopied; a list when a name ends with `[]` or came more than once. Raises InvalidRequest."""
    values: dict[str, list[memoryview]] = {}
    for name, value in _parts(body, _boundary(content_type)):
        values.setdefault(name, []).append(value)
    return {name: several if len(several) > 1 or name.endswith("[]") else several[0] for name, several in values.items()}


def _boundary(content_type: str) -> bytes:
    boundary = _message("Content-Type", content_type).get_boundary()
    if not boundary:
        raise _broken("Content-Type names no boundary")
    return b"--" + boundary.encode(errors="replace")


def _parts(body: bytes | bytearray | memoryview, boundary: bytes) -> Iterator[tuple[str, memoryview]]:
    """The name and the content of each part."""
    data, view = body if isinstance(body, bytes | bytearray) else bytes(body), memoryview(body)
    place = data.find(boundary)
    for _ in range(MAX_PARTS):
        start = place + len(boundary)
        if place < 0:
            raise _broken("its last boundary is missing: was the upload cut short?")
        if data[start : start + 2] == b"--":
            return
        headers_end = data.find(_END_OF_HEADERS, start)
        place = data.find(b"\r\n" + boundary, max(headers_end, start))
        if headers_end < 0 or place < 0:
            raise _broken("its last boundary is missing: was the upload cut short?")
        yield _name(data[start:headers_end]), view[headers_end + len(_END_OF_HEADERS) : max(place, headers_end + len(_END_OF_HEADERS))]
        place += 2
    raise _broken(f"it has more than {MAX_PARTS} parts")


def _name(headers: bytes | bytearray) -> str:
    """The field's name, from the part's Content-Disposition."""
    for line in headers.decode(errors="replace").splitlines():
        title, _, value = line.partition(":")
        if title.strip().lower() == "content-disposition":
            name = _message("Content-Disposition", value.strip()).get_param("name", header="Content-Disposition")
            if name is not None:
                return collapse_rfc2231_value(name)
    raise _broken("a part has no name")


def _message(title: str, value: str) -> Message:
    message = Message()
    message[title] = value
    return message


def _broken(why: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not a valid multipart form: {why}", code="invalid_form")
