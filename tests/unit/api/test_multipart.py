"""Forms that arrive as one body, built as the `requests` library builds them."""

from __future__ import annotations

import os

import pytest
from requests import Request as HttpRequest

from whispercore.api.multipart import form_fields, is_form
from whispercore.api.request import parse
from whispercore.errors import InvalidRequest

SOUND = bytes(range(256)) * 40 + b"\r\n--\r\n--almost"


def form_body(fields: list[tuple[str, str]], files: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """The body and the Content-Type of a form."""
    named = [(name, (f"{name}.wav", content)) for name, content in files]
    prepared = HttpRequest("POST", "http://localhost", data=fields, files=named).prepare()
    assert isinstance(prepared.body, bytes)
    return prepared.body, prepared.headers["Content-Type"]


def test_fields_and_files() -> None:
    body, kind = form_body([("language", "en"), ("languages[]", "de"), ("twice", "a"), ("twice", "b"), ("größe", "ü")], [("file", SOUND)])
    form = form_fields(bytearray(body), kind)
    values = {name: [bytes(item) for item in value] if isinstance(value, list) else bytes(value) for name, value in form.items()}
    expected = {"language": b"en", "languages[]": [b"de"], "twice": [b"a", b"b"], "größe": "ü".encode(), "file": SOUND}
    assert values == expected


@pytest.mark.parametrize("content", [b"", b"\r\n", b"\r\n\r\n", b"--", os.urandom(5000)])
def test_every_byte_of_the_content_is_kept(content: bytes) -> None:
    body, kind = form_body([], [("file", content)])
    assert bytes(form_fields(memoryview(body), kind)["file"]) == content


@pytest.mark.parametrize("kind", ["Multipart/Form-Data", "MULTIPART/FORM-DATA", "multipart/form-data"])
def test_a_content_type_with_capitals(kind: str) -> None:
    body, content_type = form_body([("beam_size", "5"), ("language", "en-US")], [("file", SOUND)])
    boundary = content_type.partition("boundary=")[2]
    for spelled in (f"{kind}; boundary={boundary}", f'{kind}; charset=utf-8; Boundary="{boundary}"', f"{kind};BOUNDARY={boundary}"):
        request = parse({"body": bytearray(body)}, {"CONTENT-TYPE": spelled})
        assert (bytes(request.audio), request.options.beam_size, request.options.language) == (SOUND, 5, "en")


def test_other_content_types_are_not_forms() -> None:
    assert is_form("Multipart/Form-Data ; boundary=x")
    assert not any(map(is_form, ["multipart/mixed; boundary=x", "audio/wav", "", "multipart/form-data-x"]))


BODY, KIND = form_body([("language", "en")], [("file", SOUND)])


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (BODY, "Multipart/Form-Data", "boundary"),
        (BODY, "Multipart/Form-Data; boundary=other", "cut short"),
        (BODY[:-60], KIND, "cut short"),
        (BODY[:30], KIND, "cut short"),
        (b"", KIND, "cut short"),
        (b"--x\r\nContent-Type: audio/wav\r\n\r\nsound\r\n--x--", "multipart/form-data; boundary=x", "no name"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 1001 + b"--x--",
            "multipart/form-data; boundary=x",
            "1000 parts",
        ),
    ],
)
def test_an_invalid_form(body: bytes, kind: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse({"body": bytearray(body)}, {"content-type": kind})
    assert caught.value.code == "invalid_form"
