"""The Accept header selects the format where the request has no response_format."""

from __future__ import annotations

import pytest

from tests.unit.api.request_samples import SOUND
from whispercore.api.request import parse
from whispercore.api.routes import CONTENT_TYPES


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/plain", "text"),
        ("Text/Plain; charset=utf-8", "text"),
        ("text/vtt", "vtt"),
        ("application/x-subrip", "srt"),
        ("text/tab-separated-values", "tsv"),
        ("text/plain;q=0.2, text/vtt;q=0.9", "vtt"),
        ("*/*, text/plain", "text"),
        ("text/plain;q=0.1, */*;q=0.8", "json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
        ("text/plain;q=0", "json"),
        ("text/plain;q=nan", "json"),
        ("audio/wav", "json"),
    ],
)
def test_the_accept_header_selects_the_format(accept: str, expected: str) -> None:
    assert parse({"body": SOUND}, {"accept": accept}).reply.response_format == expected


@pytest.mark.parametrize("name", CONTENT_TYPES)
def test_response_format_wins_over_accept(name: str) -> None:
    request = parse({"file": SOUND, "response_format": name.upper().encode()}, {"Accept": "text/plain"})
    assert request.reply.response_format == name
