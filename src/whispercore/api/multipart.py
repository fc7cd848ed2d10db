"""The body of a multipart form → its fields (RFC 7578).

TorchServe splits forms itself, except when their Content-Type has capitals, as in `Multipart/Form-Data`.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from email.utils import collapse_rfc2231_value
from urllib.parse import unquote

from ..errors import InvalidRequest

MAX_PARTS = 1000
_END_OF_HEADERS = b"\r\n\r\n"


def is_form(content_type: str) -> bool:
    """Whether Content-Type names a multipart form, in any case."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def parameters(content_type: str) -> list[tuple[str, str]]:
    """The parameters of a Content-Type in their order, without quotes (RFC 2045).

    A value outside of ASCII is `name*=utf-8''` and its bytes with percent signs (RFC 2231).
    """
    found = _message("Content-Type", content_type).get_params(failobj=[])
    return [_decoded(name, collapse_rfc2231_value(value)) for name, value in found[1:]]


def _decoded(name: str, value: str) -> tuple[str, str]:
    """The standard library leaves RFC 2231 as it is when the parameter's name has hyphens."""
    return (name[:-1], unquote(value.split("'", 2)[-1])) if name.endswith("*") else (name, value)


def form_fields(body: bytes | bytearray | memoryview, content_type: str) -> dict[str, memoryview | list[memoryview]]:
    """The values by field name, as views of `body`.

    A name that ends with `[]` or is repeated has a list. Raises InvalidRequest.
    """
    values: dict[str, list[memoryview]] = {}
    for name, value in _parts(body, _boundary(content_type)):
        values.setdefault(name, []).append(value)
    return {name: items if len(items) > 1 or name.endswith("[]") else items[0] for name, items in values.items()}


def _boundary(content_type: str) -> bytes:
    boundary = _message("Content-Type", content_type).get_boundary()
    if not boundary:
        raise _invalid("Content-Type names no boundary")
    return b"--" + boundary.encode(errors="replace")


def _parts(body: bytes | bytearray | memoryview, boundary: bytes) -> Iterator[tuple[str, memoryview]]:
    """The name and the content of each part."""
    data, view = body if isinstance(body, bytes | bytearray) else bytes(body), memoryview(body)
    position = data.find(boundary)
    for _ in range(MAX_PARTS):
        start = position + len(boundary)
        if position < 0:
            raise _invalid("its last boundary is missing: was the upload cut short?")
        if data[start : start + 2] == b"--":
            return
        headers_end = data.find(_END_OF_HEADERS, start)
        position = data.find(b"\r\n" + boundary, max(headers_end, start))
        if headers_end < 0 or position < 0:
            raise _invalid("its last boundary is missing: was the upload cut short?")
        content_start = headers_end + len(_END_OF_HEADERS)
        yield _name(data[start:headers_end]), view[content_start : max(position, content_start)]
        position += 2
    raise _invalid(f"it has more than {MAX_PARTS} parts")


def _name(headers: bytes | bytearray) -> str:
    """The field's name, from the part's Content-Disposition."""
    for line in headers.decode(errors="replace").splitlines():
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            name = _message("Content-Disposition", value.strip()).get_param("name", header="Content-Disposition")
            if name is not None:
                return collapse_rfc2231_value(name)
    raise _invalid("a part has no name")


def _message(header: str, value: str) -> Message:
    message = Message()
    message[header] = value
    return message


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not a valid multipart form: {reason}", code="invalid_form")
