"""Transcribes the sound of a session through the back end, like a file that a client uploads."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio

from whispercore.types import SAMPLE_RATE

from ..backend import Backend, Call, Reply
from ..spool import Spool
from .captions import Segment
from .options import TRANSCRIPTIONS, Transcription

RETRIES = 6
"""Of a turn whose transcription the back end refuses or fails; the sound waits meanwhile."""
_LONGEST_PAUSE = 20.0


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcription of a turn. `seconds`: of sound. `languages`, `logprobs`: OpenAI's lists; None when not in the reply."""

    text: str
    seconds: float
    languages: list[Any] | None = None
    logprobs: list[Any] | None = None


class TranscriptionError(Exception):
    """The back end has not transcribed the sound. `error`: OpenAI's error object."""

    def __init__(self, status: int, error: dict[str, Any], retry_after: float) -> None:
        super().__init__(error.get("message"))
        self.status, self.error, self.retry_after = status, error, retry_after


@dataclass(slots=True, kw_only=True)
class Recognizer:
    """`client`: the name by which the queue is fair. `sleep`: waits before a retry. `greedy`: the engine has temperatures."""

    backend: Backend
    spool: Spool
    client: str
    request_id: str
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    greedy: bool = True

    async def partial(self, pcm: bytes, transcription: Transcription, language: str | None) -> tuple[Segment, ...]:
        """The sentences of an open turn so far, without retries at higher temperatures. `language`: None to detect it.

        Raises TranscriptionError.
        """
        fields = transcription.fields() | ({"language": language} if language else {})
        try:
            content, _ = await self._send("", pcm, fields | ({"temperature": "0"} if self.greedy else {}))
        except TranscriptionError as error:
            if not self.greedy or error.error.get("param") != "temperature":
                raise
            self.greedy = False
            content, _ = await self._send("", pcm, fields)
        return tuple(Segment(segment["start"], segment["end"], segment["text"]) for segment in content["segments"])

    async def final(self, pcm: bytes, transcription: Transcription, *, logprobs: bool) -> Transcript:
        """A whole turn, as the file route transcribes it. A busy or failing back end is asked again. Raises TranscriptionError."""
        fields = {**transcription.fields(), "model": transcription.model} | ({"include[]": ["logprobs"]} if logprobs else {})
        attempt = 0
        while True:
            try:
                content, reply = await self._send(TRANSCRIPTIONS, pcm, fields)
                return Transcript(content["text"], reply.audio_seconds, content.get("languages"), content.get("logprobs"))
            except TranscriptionError as error:
                if error.status < 500 or attempt == RETRIES:
                    raise
                await self.sleep(min(max(error.retry_after, 2.0**attempt / 2), _LONGEST_PAUSE))
                attempt += 1

    async def _send(self, path: str, pcm: bytes, fields: dict[str, Any]) -> tuple[dict[str, Any], Reply]:
        with self.spool.writer("turn.wav") as writer:
            writer.add(wav(pcm))
            spooled = await writer.finish()
        try:
            call = Call(path=path, fields=fields, uploads={"file": (spooled,)}, headers={}, request_id=self.request_id, client=self.client)
            reply = await self.backend.send(call)
        finally:
            spooled.remove()
        assert isinstance(reply.body, bytes)
        content = json.loads(reply.body)
        if "error" in content:
            raise TranscriptionError(reply.status, content["error"], float(reply.headers.get("retry-after", 0)))
        return content, reply


def wav(pcm: bytes) -> bytes:
    """16-bit samples at 16 kHz as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        writer.writeframes(pcm)
    return file.getvalue()
