"""A finished native stream → `Transcript` again, so that it can be rendered in any format later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..openai_whisper import tokenizer
from ..types import AudioTrack, Dropped, Segment, Transcript, Word
from .transcript_json import warnings_of


class StreamReader:
    """Takes the lines of a native stream of `verbose_json`, one by one. `seconds`, `duration`: the progress so far."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.duration: float | None = None
        self.transcript: Transcript | None = None
        self.model = ""
        self.error: Mapping[str, Any] | None = None
        self._words: list[Sequence[Mapping[str, Any]]] = []
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take a chunk, which may hold parts of lines."""
        self._rest += chunk
        if b"\n" not in chunk:  # the last line of hours of audio comes in hundreds of chunks
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            if line.strip():
                self._take(json.loads(line))

    def _take(self, line: Mapping[str, Any]) -> None:
        if progress := line.get("progress"):
            self.seconds, self.duration = progress["seconds"], progress["duration"]
        match line["type"]:
            case "segment":
                self._words.append(line.get("words", ()))
            case "error":
                self.error = line["error"]
            case "transcript":
                self.transcript, self.model = _transcript(line, self._words), line.get("model", "")
                self.seconds = self.duration = self.transcript.duration


def _transcript(fields: Mapping[str, Any], words: Sequence[Sequence[Mapping[str, Any]]]) -> Transcript:
    """The transcript of the last line. `words`: those of each segment, which `verbose_json` does not assign to segments."""
    transcript = Transcript(
        text=fields["text"],
        language=tokenizer.TO_LANGUAGE_CODE.get(fields["language"], fields["language"]),
        duration=fields["duration"],
        task=fields["task"],
        segments=tuple(_segment(segment, words[number]) for number, segment in enumerate(fields["segments"])),
        dropped=tuple(Dropped(**passage) for passage in fields.get("dropped", ())),
        language_probability=fields.get("language_probability"),
        audio_tracks=tuple(AudioTrack(**track) for track in fields.get("audio_tracks", ())),
    )
    derived = warnings_of(transcript)  # made anew each time it is rendered
    return replace(transcript, warnings=tuple(warning for warning in fields.get("warnings", ()) if warning not in derived))


def _segment(fields: Mapping[str, Any], words: Sequence[Mapping[str, Any]]) -> Segment:
    return Segment(
        start=fields["start"],
        end=fields["end"],
        text=fields["text"],
        tokens=tuple(fields["tokens"]),
        temperature=fields["temperature"],
        avg_logprob=fields["avg_logprob"],
        compression_ratio=fields["compression_ratio"],
        no_speech_prob=fields["no_speech_prob"],
        words=tuple(Word(**word) for word in words),
        seek=fields["seek"],
        channel=fields.get("channel"),
        language=fields.get("language"),
    )
