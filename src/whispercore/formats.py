"""`Transcript` or `WhisperError` → the bytes of the reply: json, verbose_json, text, srt, vtt, tsv."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from whisper.tokenizer import LANGUAGES
from whisper.utils import WriteSRT, WriteTSV, WriteVTT

from .errors import WhisperError
from .types import Segment, Transcript, Word
from .wire import CONTENT_TYPES, Reply, ResponseFormat, Route

FRAMES_PER_SECOND = 100
"""Mel frames; `seek` counts them."""

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Body:
    """A reply's body, with what to say in Content-Type."""

    content_type: str
    payload: bytes


def render(transcript: Transcript, reply: Reply, route: Route = "native") -> Body:
    """The transcript in the form that `reply` asks for; `json` is OpenAI's on its routes, with segments on the native one."""
    wanted = reply.response_format
    if wanted == "verbose_json":
        return _json(_verbose(transcript, reply))
    if wanted == "json":
        return _json(_native(transcript) if route == "native" else _openai(transcript))
    return _text(wanted, _TEXT_WRITERS[wanted](transcript))


def render_models(names: Sequence[str]) -> Body:
    """OpenAI's list of models."""
    return _json({"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "self-hosted"} for name in names]})


def content_type(wanted: ResponseFormat) -> str:
    """What Content-Type says of a reply in that form; JSON is UTF-8 by definition."""
    kind = CONTENT_TYPES[wanted]
    return kind if kind == CONTENT_TYPES["json"] else f"{kind}; charset=utf-8"


def render_error(error: WhisperError) -> tuple[int, Body]:
    """The status and OpenAI's error object: message, type, param, code."""
    return error.status, _json({"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}})


def status_phrase(status: int) -> str:
    """The words after the number in a status line."""
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase


def _json(fields: Fields) -> Body:
    text = json.dumps(_finite(fields), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Body(CONTENT_TYPES["json"], text.encode(errors="replace"))


def _text(wanted: ResponseFormat, text: str) -> Body:
    return Body(content_type(wanted), text.encode(errors="replace"))


def _finite(value: Any) -> Any:
    """`value` with null for every float that JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


# JSON


def _native(transcript: Transcript) -> Fields:
    return {
        "text": transcript.text,
        "language": transcript.language,
        "duration": round(transcript.duration, 3),
        "segments": [_segment(number, segment) for number, segment in enumerate(transcript.segments)],
        **_warnings(transcript),
    }


def _openai(transcript: Transcript) -> Fields:
    return {"text": transcript.text, "usage": _usage(transcript), **_warnings(transcript)}


def _verbose(transcript: Transcript, reply: Reply) -> Fields:
    words = [_word(word) for segment in transcript.segments for word in segment.words]
    return {
        "task": transcript.task,
        "language": LANGUAGES.get(transcript.language, transcript.language),
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        **({"segments": [_verbose_segment(*numbered) for numbered in enumerate(transcript.segments)]} if reply.segments else {}),
        **({"words": words} if reply.words else {}),
        "usage": _usage(transcript),
        **_warnings(transcript),
    }


def _usage(transcript: Transcript) -> Fields:
    """OpenAI counts begun seconds."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def _warnings(transcript: Transcript) -> Fields:
    return {"warnings": list(transcript.warnings)} if transcript.warnings else {}


def _segment(number: int, segment: Segment) -> Fields:
    return {
        "id": number,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "avg_logprob": segment.avg_logprob,
        "no_speech_prob": segment.no_speech_prob,
        "compression_ratio": segment.compression_ratio,
        "temperature": segment.temperature,
        **({"words": [_word(word) for word in segment.words]} if segment.words else {}),
    }


def _verbose_segment(number: int, segment: Segment) -> Fields:
    """All of OpenAI's fields. `seek` is the segment's own start in mel frames: windows are cut elsewhere than there."""
    return {
        "id": number,
        "seek": int(segment.start * FRAMES_PER_SECOND),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _word(word: Word) -> Fields:
    return {"word": word.word, "start": round(word.start, 3), "end": round(word.end, 3)}


# Text and subtitles


def _plain(transcript: Transcript) -> str:
    return transcript.text.strip() + "\n"


def _one_line(text: str) -> str:
    """A line break in a text would end the cue or the row there."""
    return " ".join(text.splitlines())


def _written(writer: Any) -> Callable[[Transcript], str]:
    """openai-whisper's own writer, into a string."""

    def write(transcript: Transcript) -> str:
        file = io.StringIO()
        segments = [{"start": segment.start, "end": segment.end, "text": _one_line(segment.text)} for segment in transcript.segments]
        writer(output_dir="").write_result({"segments": segments}, file=file)
        return file.getvalue()

    return write


_TEXT_WRITERS: Mapping[ResponseFormat, Callable[[Transcript], str]] = MappingProxyType(
    {"text": _plain, "srt": _written(WriteSRT), "vtt": _written(WriteVTT), "tsv": _written(WriteTSV)}
)
