"""A transcript as the client shows it: its file, a line per segment, a summary, and the reason when it is empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from failures import RequestFailed
from progress import clock
from replies import Line

EMPTY_FORMS = {"", "WEBVTT", "start\tend\ttext"}
"""The content of a transcript without words in text and subtitle formats."""
_KEEP_OPTIONS = {"no_speech": "no_speech_threshold", "hallucination": "hallucination_silence_threshold"}
"""For each reason to drop a passage, the option that controls it."""


def content(transcript: Line) -> str:
    """The transcript as a file's content: the server's text, or JSON."""
    if "rendered" in transcript:
        return str(transcript["rendered"])
    fields = {name: value for name, value in transcript.items() if name != "type"}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def save(content: str, output: Path) -> None:
    """Write the complete file or nothing. Raises RequestFailed."""
    part = output.with_name(output.name + ".part")
    try:
        part.write_bytes(content.encode(errors="replace"))
        part.replace(output)
    except OSError as error:
        raise RequestFailed("not saved", f"cannot write {output}: {error.strerror}") from None
    finally:  # also after Ctrl-C
        part.unlink(missing_ok=True)


def segment_line(line: Mapping[str, Any]) -> str:
    """A segment with its times, which OpenAI's streams lack."""
    text: str = line["text"].strip()
    return f"{line['start']:9.2f} {line['end']:9.2f}  {text}" if line["type"] == "segment" else text


def is_empty(transcript: Line) -> bool:
    """Whether the transcript has no words."""
    text = transcript["text"] if isinstance(transcript.get("text"), str) else transcript.get("rendered", "")
    return text.strip() in EMPTY_FORMS


def why_empty(transcript: Line, warnings: Sequence[str]) -> str:
    """The reason why there are no words, and what to do."""
    dropped = transcript.get("dropped") or []
    if not dropped:
        left_out = next((warning for warning in warnings if "left out" in warning), "no speech was found")
        return f"no words: {left_out}. If there is speech in it, try --option vad_filter=false, and --language"
    passages = "1 passage was" if len(dropped) == 1 else f"{len(dropped)} passages were"
    reasons = ", ".join(sorted({str(passage["reason"]).replace("_", " ") for passage in dropped}))
    text = shortened(" ".join(" ".join(str(passage["text"]) for passage in dropped).split()))
    keep = " ".join(
        f"--option {option}=none" for reason, option in _KEEP_OPTIONS.items() if any(passage["reason"] == reason for passage in dropped)
    )
    return f"no words: {passages} left out as {reasons}: “{text}”; to keep what was left out: {keep}"


def summary(transcript: Line, seconds: float) -> str:
    """The processing time, and the language and model if the reply has them."""
    duration = transcript.get("duration")
    parts = [f"{clock(duration)} of sound in {clock(seconds)}" if duration else f"done in {clock(seconds)}"]
    if duration and seconds:
        parts.append(f"{duration / seconds:.1f} x real time")
    if language := transcript.get("language"):
        parts.append(f"language {language}")
    if model := transcript.get("model"):
        parts.append(f"model {model}")
    return ", ".join(parts)


def shortened(text: str) -> str:
    """The first 80 characters."""
    return text if len(text) <= 80 else f"{text[:80]}…"
