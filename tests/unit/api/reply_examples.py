"""The generated blocks of docs/replies.md: every form of a reply, rendered from one transcript.

`PYTHONPATH=src:. python -m tests.unit.api.reply_examples` writes them into the page.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from whispercore.api.error_reply import render_error
from whispercore.api.models import ServedModel, render_models
from whispercore.api.reply import render
from whispercore.api.request import parse
from whispercore.api.routes import Route
from whispercore.api.stream import stream_chunk, stream_end, stream_error, stream_progress
from whispercore.errors import EngineError, WhisperError
from whispercore.options import Reply
from whispercore.tokenizer import Tokenizer
from whispercore.types import AudioTrack, Dropped, Progress, Segment, Transcript, Word

PAGE = Path(__file__).parents[3] / "docs" / "replies.md"
WIDTH = 100
"""Columns beyond which an example's JSON is wrapped."""
TOKENIZER = Tokenizer(51_865)
MODEL = "base"


def spoken(*words: tuple[str, float, float], logprobs: tuple[float, ...] = ()) -> Segment:
    """A segment of words with their starts and ends."""
    text = "".join(word for word, _, _ in words)
    return Segment(
        words[0][1],
        words[-1][2],
        text,
        tokens=TOKENIZER.encode(text),
        avg_logprob=-0.19,
        compression_ratio=0.86,
        no_speech_prob=0.02,
        words=tuple(Word(*word, probability=0.98) for word in words),
        logprobs=logprobs,
    )


GREETING = spoken((" Good", 0.4, 0.7), (" morning.", 0.7, 1.5), logprobs=(-0.02, -0.01, -0.2))
NEWS = spoken((" The", 2.1, 2.3), (" next", 2.3, 2.6), (" train", 2.6, 3.1), (" leaves", 3.1, 3.6), (" at", 3.6, 3.9), (" nine.", 3.9, 4.9))
WITH_WORDS = Transcript(
    "Good morning. The next train leaves at nine.", "en", 5.62, "transcribe", (GREETING, NEWS), language_probability=0.9871
)
TRANSCRIPT = replace(WITH_WORDS, segments=tuple(replace(segment, words=()) for segment in WITH_WORDS.segments))
FIRST_SEGMENT = replace(WITH_WORDS, text="Good morning.", segments=TRANSCRIPT.segments[:1])


def wrapped(value: Any, indent: int = 0, column: int = 0) -> str:
    """JSON on one line where it fits into `WIDTH` columns, else with an item per line."""
    text = json.dumps(value, ensure_ascii=False)
    if column + len(text) <= WIDTH or not isinstance(value, dict | list):
        return text
    inner = indent + 2
    if isinstance(value, list):
        opening, closing, items = "[", "]", [wrapped(item, inner, inner) for item in value]
    else:
        names = {name: json.dumps(name) + ": " for name in value}
        opening, closing = "{", "}"
        items = [names[name] + wrapped(item, inner, inner + len(names[name])) for name, item in value.items()]
    separator = ",\n" + " " * inner
    return f"{opening}\n{' ' * inner}{separator.join(items)}\n{' ' * indent}{closing}"


def block(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def whole(transcript: Transcript, route: Route = "native", **reply: Any) -> str:
    """A whole reply: JSON is wrapped, everything else is byte for byte."""
    body = render(transcript, Reply(**reply), route, tokenizer=TOKENIZER, model=MODEL)
    if body.content_type == "application/json":
        return block(wrapped(json.loads(body.payload)), "json")
    return block(body.payload.decode())


def fields(transcript: Transcript, *names: str, **reply: Any) -> str:
    """Some fields of a native reply."""
    content = json.loads(render(transcript, Reply(**reply), tokenizer=TOKENIZER, model=MODEL).payload)
    return block(wrapped({name: content[name] for name in names}), "json")


def stream(route: Route) -> str:
    """A stream that sends one segment after the other, and then the transcript."""
    reply, segments = Reply(stream=True), TRANSCRIPT.segments
    chunks = [stream_progress(Progress())] if route == "native" else []
    for count, segment in enumerate(segments, start=1):
        progress = Progress(segments[:count], segment.end, TRANSCRIPT.duration)
        chunks.append(stream_chunk([segment], progress, reply, route))
    return chunk(b"".join(chunks) + stream_end(TRANSCRIPT, reply, route, model=MODEL), route)


def chunk(content: bytes, route: Route) -> str:
    """Lines or events of a stream, their JSON wrapped."""
    if route == "native":
        return block("\n".join(wrapped(json.loads(line)) for line in content.decode().splitlines()))
    events = content.decode().removesuffix("\n\n").split("\n\n")
    contents = [json.loads(event.removeprefix("data: ")) for event in events]
    return block("\n\n".join("data: " + wrapped(content, column=len("data: ")) for content in contents))


def refusal(**form: bytes) -> str:
    """The reply to a request that is refused."""
    try:
        parse({"file": b"RIFF", **form}, {})
    except WhisperError as error:
        return block(wrapped(json.loads(render_error(error)[1].payload)), "json")
    raise AssertionError("the request was accepted")


def examples() -> dict[str, str]:
    """The blocks by name."""
    call = replace(FIRST_SEGMENT, segments=(replace(TRANSCRIPT.segments[0], channel=1, language="en"),))
    noisy = replace(TRANSCRIPT, dropped=(Dropped(5.0, 5.6, " Thank you.", "no_speech"),), warnings=("corrupt packets skipped: 2",))
    film = replace(TRANSCRIPT, audio_tracks=(AudioTrack(0, "eng"), AudioTrack(1, "deu", "Commentary")))
    failure = EngineError("the engine failed: out of registers")
    models = render_models([ServedModel(MODEL)], max_audio_bytes=157_286_400)
    return {
        "json": whole(TRANSCRIPT),
        "json_words": fields(replace(FIRST_SEGMENT, segments=WITH_WORDS.segments[:1]), "segments"),
        "openai_json": whole(TRANSCRIPT, "transcriptions"),
        "verbose_json": whole(TRANSCRIPT, "transcriptions", response_format="verbose_json"),
        "verbose_json_words": whole(WITH_WORDS, "transcriptions", response_format="verbose_json", timestamp_granularities=("word",)),
        "text": whole(TRANSCRIPT, response_format="text"),
        "srt": whole(TRANSCRIPT, response_format="srt"),
        "vtt": whole(TRANSCRIPT, response_format="vtt"),
        "tsv": whole(TRANSCRIPT, response_format="tsv"),
        "srt_words": whole(WITH_WORDS, response_format="srt", max_words_per_line=3),
        "dropped": fields(noisy, "dropped", "warnings"),
        "no_speech": fields(replace(TRANSCRIPT, text="", segments=()), "text", "segments", "warnings"),
        "audio_tracks": fields(film, "audio_tracks"),
        "channels": fields(call, "segments"),
        "logprobs": whole(FIRST_SEGMENT, "transcriptions", include=("logprobs",)),
        "stream": stream("native"),
        "stream_rendered": chunk(stream_end(FIRST_SEGMENT, Reply(stream=True, response_format="srt"), model=MODEL), "native"),
        "stream_openai": stream("transcriptions"),
        "stream_error": chunk(stream_error(failure), "native"),
        "stream_error_openai": chunk(stream_error(failure, "transcriptions"), "transcriptions"),
        "error": refusal(beam_size=b"40"),
        "error_unsupported": refusal(diarize=b"true"),
        "models": block(wrapped(json.loads(models.payload)), "json"),
    }


def with_examples(page: str) -> str:
    """The page with newly rendered blocks. Raises KeyError for a block that is not an example."""
    blocks = examples()
    return re.sub(
        r"^(<!-- (\w+) -->\n).*?^(<!-- /\2 -->)$",
        lambda match: match[1] + blocks[match[2]] + match[3],
        page,
        flags=re.DOTALL | re.MULTILINE,
    )


if __name__ == "__main__":
    PAGE.write_text(with_examples(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
