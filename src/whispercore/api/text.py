"""A transcript as text: the plain text, or a subtitle file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..options import Reply, ResponseFormat
from ..types import Transcript
from .subtitles import srt, tsv, vtt


def _plain(transcript: Transcript, reply: Reply) -> str:
    return transcript.text.strip() + "\n"


TEXT_WRITERS: Mapping[ResponseFormat, Callable[[Transcript, Reply], str]] = MappingProxyType(
    {
        "text": _plain,
        "srt": lambda transcript, reply: srt(transcript.segments, reply.subtitles),
        "vtt": lambda transcript, reply: vtt(transcript.segments, reply.subtitles),
        "tsv": lambda transcript, reply: tsv(transcript.segments),
    }
)
"""The writer of each format that is not JSON."""
