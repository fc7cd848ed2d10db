"""`Transcript` and `Progress` → the chunks of a streamed reply.

The native route streams newline-delimited JSON (NDJSON); OpenAI's routes stream server-sent events (SSE).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import WhisperError
from ..options import Reply
from ..tokenizer import Tokenizer
from ..types import Progress, Segment, Transcript
from .error_reply import error_fields
from .reply import json_bytes
from .routes import Route
from .text import TEXT_WRITERS
from .transcript_json import Fields, done_fields, joined_text, logprob_fields, segment_fields, transcript_fields


def stream_chunk(
    segments: Sequence[Segment], progress: Progress, reply: Reply, route: Route = "native", *, tokenizer: Tokenizer | None = None
) -> bytes:
    """The chunk for newly final segments.

    `segments`: the last ones of `progress.segments`; empty when only the progress is new. The native route gets one line
    per segment, or a progress line without segments. OpenAI's routes get one event, or nothing without new text.
    """
    sent = len(progress.segments) - len(segments)
    if route != "native":
        return _delta(progress.segments, sent, reply, tokenizer)
    if not segments:
        return stream_progress(progress)
    lines = (segment_fields(number, segment, reply, tokenizer) for number, segment in enumerate(segments, start=sent))
    return b"".join(_line({"type": "segment", **line, **_progress(progress)}) for line in lines)


def stream_progress(progress: Progress) -> bytes:
    """A line of the native stream with the progress only. It also keeps the connection alive."""
    return _line({"type": "progress", **_progress(progress)})


def stream_end(
    transcript: Transcript, reply: Reply, route: Route = "native", *, tokenizer: Tokenizer | None = None, model: str = ""
) -> bytes:
    """The last chunk of a stream. Native route: the whole reply. OpenAI's routes: the text that the deltas add up to.

    The lines of a native stream are always JSON. When `reply` asks for text or subtitles, the last line has the fields
    of `json` and the finished file in `rendered`.
    """
    if route != "native":
        return _event({"type": "transcript.text.done", **done_fields(transcript, reply, tokenizer, model)})
    fields = {"type": "transcript", **transcript_fields(transcript, reply, route, tokenizer, model)}
    writer = TEXT_WRITERS.get(reply.response_format)
    return _line({**fields, "rendered": writer(transcript, reply)} if writer else fields)


def stream_error(error: WhisperError, route: Route = "native") -> bytes:
    """The last chunk of a stream that failed: OpenAI's error object, which OpenAI's clients raise as APIError."""
    return _line({"type": "error", **error_fields(error)}) if route == "native" else _event(error_fields(error))


def _progress(progress: Progress) -> Fields:
    duration = None if progress.duration is None else round(progress.duration, 3)
    return {"progress": {"seconds": round(progress.seconds, 3), "duration": duration}}


def _delta(segments: Sequence[Segment], sent: int, reply: Reply, tokenizer: Tokenizer | None) -> bytes:
    """The event that extends the text of the first `sent` segments to the text of all; nothing when both are equal."""
    delta = joined_text(segments)[len(joined_text(segments[:sent])) :]
    if not delta:
        return b""
    return _event({"type": "transcript.text.delta", "delta": delta, **logprob_fields(segments[sent:], reply, tokenizer)})


def _line(fields: Fields) -> bytes:
    return json_bytes(fields) + b"\n"


def _event(fields: Fields) -> bytes:
    return b"data: " + json_bytes(fields) + b"\n\n"
