"""The recording of a request: raw body, form field, base64."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.api.request_samples import BASE64, SOUND, refused
from whispercore.api.fields import AUDIO_FIELDS
from whispercore.api.request import parse
from whispercore.api.upload import check_audio_bytes
from whispercore.errors import TooLarge
from whispercore.options import Options, Reply


@pytest.mark.parametrize("name", ["body", *AUDIO_FIELDS])
def test_a_raw_body_and_a_form_field_are_not_copied(name: str) -> None:
    request = parse({name: SOUND}, {"Content-Type": "audio/wav"})
    assert request.audio is SOUND
    assert request.options == Options()
    assert (request.route, request.reply) == ("native", Reply())


@pytest.mark.parametrize("name", AUDIO_FIELDS)
@pytest.mark.parametrize("prefix", ["", "data:audio/wav;base64,", "data:;base64,", "DATA:audio/webm;codecs=opus;BASE64,"])
def test_base64(name: str, prefix: str) -> None:
    assert parse({"body": {name: prefix + BASE64}}, {}).audio == SOUND


@pytest.mark.parametrize("text", ["QUJ\nD", "QUJDR", "Q-_D", "not base64", "data:audio/wav,QUJD", "data:audio/wav;base64", "data:"])
def test_invalid_base64(text: str) -> None:
    error = refused({"body": {"audio": text}})
    assert (error.status, error.param, error.code) == (400, "audio", "invalid_base64")


@pytest.mark.parametrize("row", [{}, {"body": None}, {"language": b"en"}, {"body": {"language": "en"}}, {"body": {"file": None}}])
def test_missing_file(row: dict[str, Any]) -> None:
    error = refused(row)
    assert (error.status, error.param) == (400, "file")
    assert "missing file" in error.message


@pytest.mark.parametrize("row", [{"body": bytearray()}, {"file": b""}, {"audio": ""}, {"body": {"audio": ""}}, {"body": memoryview(b"")}])
def test_empty_file(row: dict[str, Any]) -> None:
    error = refused(row)
    assert (error.status, error.param, error.code) == (400, "file", "empty_file")


@pytest.mark.parametrize(
    "row",
    [
        {"file": b"a", "audio": b"b"},
        {"file": [b"a", b"b"]},
        {"body": b"a", "data": b"b"},
        {"body": {"file": "QUJD", "data": "QUJD"}},
        {"body": {"file": "QUJD"}, "file": b"x"},
    ],
)
def test_two_recordings(row: dict[str, Any]) -> None:
    error = refused(row)
    assert error.status == 400
    assert "one recording" in error.message


def test_a_form_part_with_a_text_type_is_passed_to_the_decoder() -> None:
    assert parse({"file": "hello"}, {}).audio == b"hello"


def test_byte_limit() -> None:
    check_audio_bytes(b"x" * 10, 10)
    with pytest.raises(TooLarge, match=r"2,097,153 bytes, at most 2,097,152 \(2 MB\)"):
        check_audio_bytes(memoryview(bytearray(2 * 2**20 + 1)), 2 * 2**20)
