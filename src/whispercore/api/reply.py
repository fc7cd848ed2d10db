"""`Transcript` → the body of a whole reply: json, verbose_json, text, srt, vtt or tsv."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ..options import Reply
from ..tokenizer import Tokenizer
from ..types import Transcript
from .routes import Route, content_type
from .text import TEXT_WRITERS
from .transcript_json import Fields, transcript_fields

_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""Characters at which str.splitlines would break a line of a stream. json.dumps escapes the other ones."""


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a reply and its Content-Type."""

    content_type: str
    payload: bytes


def render(transcript: Transcript, reply: Reply, route: Route = "native", *, tokenizer: Tokenizer | None = None, model: str = "") -> Body:
    """The transcript in the format `reply.response_format`.

    The format `json` has OpenAI's fields on OpenAI's routes, and segments on the native route.

    `tokenizer`: the model's; required with `reply.logprobs`. `model`: its name in JSON replies; left out when empty.
    """
    writer = TEXT_WRITERS.get(reply.response_format)
    if writer:
        return Body(content_type(reply.response_format), writer(transcript, reply).encode(errors="replace"))
    return json_body(transcript_fields(transcript, reply, route, tokenizer, model))


def json_body(fields: Fields) -> Body:
    """A JSON object as a body."""
    return Body(content_type("json"), json_bytes(fields))


def json_bytes(fields: Fields) -> bytes:
    """JSON on one line, in UTF-8. Infinite numbers and NaN become null, because JSON has no notation for them."""
    text = json.dumps(_finite(fields), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS).encode(errors="replace")


def _finite(value: Any) -> Any:
    """`value` with None in place of every infinite float and NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
