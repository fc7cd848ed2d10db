"""The Accept header → the format of the reply."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..options import ResponseFormat
from .routes import CONTENT_TYPES

_FORMATS: Mapping[str, ResponseFormat] = MappingProxyType(
    {
        **{kind: name for name, kind in CONTENT_TYPES.items() if name != "verbose_json"},
        **{"text/*": "text", "text/srt": "srt", "application/*": "json", "*/*": "json"},
    }
)
"""Media type → the format that it selects."""


def accepted_format(accept: str) -> ResponseFormat:
    """The format with the highest quality; json when the header names none of this server's.

    At equal quality, an exact media type wins over a wildcard.
    """
    ranked: list[tuple[float, bool, ResponseFormat]] = []
    for media_range in accept.lower().split(","):
        kind, *parameters = [part.strip() for part in media_range.split(";")]
        quality = next((_quality(parameter[2:]) for parameter in parameters if parameter.startswith("q=")), 1.0)
        response_format = _FORMATS.get(kind)
        if response_format and quality > 0:
            ranked.append((quality, "*" not in kind, response_format))
    return max(ranked, key=lambda entry: entry[:2])[2] if ranked else "json"


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
