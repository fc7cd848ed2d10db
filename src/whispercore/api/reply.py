"""`Transcript` or `WhisperError` → the bytes of the reply: json, verbose_json, text, srt, vtt, tsv, or a stream's chunks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from whisper.tokenizer import LANGUAGES

from ..errors import NotFound, WhisperError
from ..options import Reply, ResponseFormat
from ..tokenizer import Tokenizer
from ..types import AudioTrack, Dropped, Progress, Segment, Transcript, Word
from .models import is_served
from .request import CONTENT_TYPES, Route
from .subtitles import srt, tsv, vtt
from .values import shown

AUDIO_TOKENS_PER_SECOND = 50
"""Positions of the encoder: 1,500 in 30 s."""

Fields = dict[str, Any]
_LINE_ENDS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x85\u2028\u2029"}
"""Where a client that reads a stream with str.splitlines would end a line; JSON itself escapes the other ones."""
_KEEP = {
    "no_speech": ("no speech", "no_speech_threshold"),
    "hallucination": ("improbable words amid silence", "hallucination_silence_threshold"),
}
"""For each reason to leave a passage out: what it was taken for, and the option that decides it."""
_MOST_TIMES = 5
"""Passages whose times a warning lists."""


@dataclass(frozen=True, slots=True)
class Body:
    """A reply's body, with what to say in Content-Type."""

    content_type: str
    payload: bytes


def render(transcript: Transcript, reply: Reply, route: Route = "native", *, tokenizer: Tokenizer | None = None, model: str = "") -> Body:
    """The transcript in the form that `reply` asks for; `json` is OpenAI's on its routes, with segments on the native one.

    `tokenizer`: the model's, needed where `reply.logprobs` are wanted. `model`: its name, told in JSON unless empty.
    """
    wanted = reply.response_format
    if wanted in ("json", "verbose_json"):
        return Body(content_type(wanted), _json(_fields(transcript, reply, route, tokenizer, model)))
    return Body(content_type(wanted), _TEXT_WRITERS[wanted](transcript, reply).encode(errors="replace"))


def render_models(served: str, wanted: str = "", warnings: Sequence[str] = (), *, max_audio_bytes: int) -> Body:
    """OpenAI's list of models, of which there is one, or the one `wanted`. Raises NotFound for another.

    `max_audio_bytes`: the largest upload, which clients read before they send one; OpenAI's own models do not have it.
    """
    model = {
        "id": served,
        "object": "model",
        "created": 0,
        "owned_by": "self-hosted",
        "max_audio_bytes": max_audio_bytes,
        **_told(warnings),
    }
    if wanted and not is_served(wanted, served):
        raise NotFound(f"no such model: {shown(wanted)}; there is: {served}", param="model", code="model_not_found")
    return Body(content_type("json"), _json(model if wanted else {"object": "list", "data": [model]}))


def warnings_of(transcript: Transcript) -> tuple[str, ...]:
    """What a client has to know about the transcript: what was wrong with the input, what was left out, why it is empty."""
    left_out = [_left_out(transcript.dropped, reason) for reason in _KEEP if any(one.reason == reason for one in transcript.dropped)]
    if not transcript.segments and not left_out:
        left_out = ["no speech was found in the recording"]
    return (*transcript.warnings, *left_out)


def _left_out(dropped: Iterable[Dropped], reason: str) -> str:
    passages = [f"{one.start:.1f}-{one.end:.1f}" for one in dropped if one.reason == reason]
    what, keep = _KEEP[reason]
    times = ", ".join(passages[:_MOST_TIMES]) + (", …" if len(passages) > _MOST_TIMES else "")
    count = "1 passage was" if len(passages) == 1 else f"{len(passages)} passages were"
    return f"{count} left out as {what} ({times} s); {keep}=none keeps {'it' if len(passages) == 1 else 'them'}"


def content_type(wanted: ResponseFormat) -> str:
    """What Content-Type says of a reply in that form; JSON is UTF-8 by definition."""
    kind = CONTENT_TYPES[wanted]
    return kind if kind == CONTENT_TYPES["json"] else f"{kind}; charset=utf-8"


def render_error(error: WhisperError) -> tuple[int, Body]:
    """The status and OpenAI's error object: message, type, param, code."""
    return error.status, Body(content_type("json"), _json(_error(error)))


def status_phrase(status: int) -> str:
    """The words after the number in a status line."""
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase


# A stream: server-sent events on OpenAI's routes, newline-delimited JSON on the native one


def stream_content_type(route: Route) -> str:
    """What Content-Type says of a stream."""
    return "application/x-ndjson" if route == "native" else "text/event-stream"


def stream_chunk(
    segments: Sequence[Segment], progress: Progress, reply: Reply, route: Route = "native", *, tokenizer: Tokenizer | None = None
) -> bytes:
    """What has become final: `segments`, the last ones of `progress.segments`, none when only time has passed.

    Native: a line per segment, or one that tells the progress. Else OpenAI's event with the new text, empty when there is none.
    """
    told = len(progress.segments) - len(segments)
    if route != "native":
        return _delta(progress.segments, told, reply, tokenizer)
    lines = [_segment(number, one, reply, tokenizer) for number, one in enumerate(segments, start=told)]
    if not lines:
        return stream_progress(progress)
    return b"".join(_line({"type": "segment", **line, **_progress(progress)}) for line in lines)


def stream_progress(progress: Progress) -> bytes:
    """A line of the native stream that tells only how far the transcription is: a sign of life."""
    return _line({"type": "progress", **_progress(progress)})


def stream_end(
    transcript: Transcript, reply: Reply, route: Route = "native", *, tokenizer: Tokenizer | None = None, model: str = ""
) -> bytes:
    """The end of a stream, after all segments. Native: the whole reply. OpenAI's routes: the text that all deltas make together.

    A native stream is JSON. When `reply` asks for text or subtitles, the line has the fields of `json` and the finished file in `rendered`.
    """
    if route == "native":
        return _line({"type": "transcript", **_fields(transcript, reply, route, tokenizer, model), **_rendered(transcript, reply)})
    return _event(
        {
            "type": "transcript.text.done",
            "text": _joined(transcript.segments),
            **_logprobs(transcript.segments, reply, tokenizer),
            **_languages(transcript),
            "usage": _usage_tokens(transcript),
            **_model(model),
            **_told(warnings_of(transcript)),
        }
    )


def stream_error(error: WhisperError, route: Route = "native") -> bytes:
    """The end of a stream that failed: OpenAI's error object; the official clients raise it as APIError."""
    return _line({"type": "error", **_error(error)}) if route == "native" else _event(_error(error))


def _progress(progress: Progress) -> Fields:
    return {"progress": {"seconds": _seconds(progress.seconds), "duration": _seconds(progress.duration)}}


def _rendered(transcript: Transcript, reply: Reply) -> Fields:
    """The reply as text, where `reply` asks for a format that is not JSON."""
    writer = _TEXT_WRITERS.get(reply.response_format)
    return {"rendered": writer(transcript, reply)} if writer else {}


def _delta(segments: Sequence[Segment], told: int, reply: Reply, tokenizer: Tokenizer | None) -> bytes:
    """The event that turns the text of the first `told` segments into that of all."""
    delta = _joined(segments)[len(_joined(segments[:told])) :]
    if not delta:
        return b""
    return _event({"type": "transcript.text.delta", "delta": delta, **_logprobs(segments[told:], reply, tokenizer)})


def _joined(segments: Iterable[Segment]) -> str:
    """The text of a transcript. That of fewer segments is its beginning: blanks at the end come with what follows them."""
    return "".join(segment.text for segment in segments).strip()


def _line(fields: Fields) -> bytes:
    return _json(fields) + b"\n"


def _event(fields: Fields) -> bytes:
    return b"data: " + _json(fields) + b"\n\n"


def _json(fields: Fields) -> bytes:
    text = json.dumps(_finite(fields), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS).encode(errors="replace")


def _finite(value: Any) -> Any:
    """`value` with null for every float that JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


# JSON


def _fields(transcript: Transcript, reply: Reply, route: Route, tokenizer: Tokenizer | None, model: str) -> Fields:
    if reply.response_format == "verbose_json":
        return _verbose(transcript, reply, route, model)
    return _native(transcript, reply, tokenizer, model) if route == "native" else _openai(transcript, reply, tokenizer, model)


def _native(transcript: Transcript, reply: Reply, tokenizer: Tokenizer | None, model: str) -> Fields:
    return {
        "text": transcript.text,
        "language": transcript.language,
        **_probability(transcript),
        "duration": _seconds(transcript.duration),
        **_model(model),
        "segments": [_segment(number, segment, reply, tokenizer) for number, segment in enumerate(transcript.segments)],
        **_remarks(transcript),
    }


def _openai(transcript: Transcript, reply: Reply, tokenizer: Tokenizer | None, model: str) -> Fields:
    return {
        "text": transcript.text,
        **_logprobs(transcript.segments, reply, tokenizer),
        **_languages(transcript),
        "usage": _usage(transcript),
        **_model(model),
        **_told(warnings_of(transcript)),
    }


def _verbose(transcript: Transcript, reply: Reply, route: Route, model: str) -> Fields:
    """OpenAI's fields, and others that its clients pass over.

    Those are the probability of words and of the language, what was dropped, warnings, the model, a segment's channel and language.
    """
    language = "en" if route == "translations" else transcript.language
    words = [_word(word) for segment in transcript.segments for word in segment.words]
    if route != "native":  # OpenAI's are without the blank before them
        words = [{**word, "word": word["word"].strip()} for word in words]
    return {
        "task": transcript.task,
        "language": LANGUAGES.get(language, language),
        **_probability(transcript),
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
        **({"segments": [_verbose_segment(*numbered) for numbered in enumerate(transcript.segments)]} if reply.segments else {}),
        **({"words": words} if reply.words else {}),
        "usage": _usage(transcript),
        **_model(model),
        **_remarks(transcript),
    }


def _segment(number: int, segment: Segment, reply: Reply, tokenizer: Tokenizer | None) -> Fields:
    return {
        "id": number,
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": segment.text,
        "avg_logprob": segment.avg_logprob,
        "no_speech_prob": segment.no_speech_prob,
        "compression_ratio": segment.compression_ratio,
        "temperature": segment.temperature,
        **({"words": [_word(word) for word in segment.words]} if segment.words else {}),
        **_logprobs([segment], reply, tokenizer),
        **_channel(segment),
        **_language(segment),
    }


def _verbose_segment(number: int, segment: Segment) -> Fields:
    return {
        "id": number,
        "seek": segment.seek,
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
        **_channel(segment),
        **_language(segment),
    }


def _seconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _word(word: Word) -> Fields:
    return {"word": word.word, "start": _seconds(word.start), "end": _seconds(word.end), "probability": round(word.probability, 4)}


def _channel(segment: Segment) -> Fields:
    return {} if segment.channel is None else {"channel": segment.channel}


def _language(segment: Segment) -> Fields:
    """Whisper's code, also in verbose_json: OpenAI's segments have no such field."""
    return {} if segment.language is None else {"language": segment.language}


def _model(name: str) -> Fields:
    return {"model": name} if name else {}


def _probability(transcript: Transcript) -> Fields:
    probability = transcript.language_probability
    return {} if probability is None else {"language_probability": round(probability, 4)}


def _languages(transcript: Transcript) -> Fields:
    """OpenAI's list of the languages detected; none was when the request gave it."""
    return {} if transcript.language_probability is None else {"languages": [{"code": transcript.language}]}


def _logprobs(segments: Iterable[Segment], reply: Reply, tokenizer: Tokenizer | None) -> Fields:
    """Of each text token, as OpenAI's include[]=logprobs. Raises ValueError without the tokenizer that it takes."""
    if not reply.logprobs:
        return {}
    if tokenizer is None:
        raise ValueError("log-probabilities are told with the tokens' text: render needs the model's tokenizer")
    return {"logprobs": [one for segment in segments for one in _token_logprobs(segment, tokenizer)]}


def _token_logprobs(segment: Segment, tokenizer: Tokenizer) -> list[Fields]:
    """A token may be a part of a letter only: `bytes` are whole, its text is not."""
    tokens = [token for token in segment.tokens if token < tokenizer.eot]
    spelled = [tokenizer.openai.encoding.decode_single_token_bytes(token) for token in tokens]
    return [
        {"token": one.decode(errors="replace"), "bytes": list(one), "logprob": logprob}
        for one, logprob in zip(spelled, segment.logprobs, strict=False)
    ]


def _usage(transcript: Transcript) -> Fields:
    """OpenAI counts begun seconds."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def _usage_tokens(transcript: Transcript) -> Fields:
    """In tokens, the only usage that OpenAI's done event knows."""
    sound = math.ceil(transcript.duration * AUDIO_TOKENS_PER_SECOND)
    said = sum(len(segment.tokens) for segment in transcript.segments)
    details = {"audio_tokens": sound, "text_tokens": 0}
    return {"type": "tokens", "input_tokens": sound, "input_token_details": details, "output_tokens": said, "total_tokens": sound + said}


def _remarks(transcript: Transcript) -> Fields:
    dropped = {"dropped": [_dropped(one) for one in transcript.dropped]} if transcript.dropped else {}
    tracks = {"audio_tracks": [_audio_track(track) for track in transcript.audio_tracks]} if transcript.audio_tracks else {}
    return {**dropped, **tracks, **_told(warnings_of(transcript))}


def _audio_track(track: AudioTrack) -> Fields:
    return {"index": track.index, "language": track.language, **({"title": track.title} if track.title else {})}


def _dropped(dropped: Dropped) -> Fields:
    return {"start": _seconds(dropped.start), "end": _seconds(dropped.end), "text": dropped.text, "reason": dropped.reason}


def _told(warnings: Sequence[str]) -> Fields:
    return {"warnings": list(warnings)} if warnings else {}


def _error(error: WhisperError) -> Fields:
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


# Text and subtitles


def _plain(transcript: Transcript, reply: Reply) -> str:
    return transcript.text.strip() + "\n"


_TEXT_WRITERS: Mapping[ResponseFormat, Callable[[Transcript, Reply], str]] = MappingProxyType(
    {
        "text": _plain,
        "srt": lambda transcript, reply: srt(transcript.segments, reply.subtitles),
        "vtt": lambda transcript, reply: vtt(transcript.segments, reply.subtitles),
        "tsv": lambda transcript, reply: tsv(transcript.segments),
    }
)
