"""A recording or a URL → its transcript, by the server's native stream."""

from __future__ import annotations

import json
import mimetypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
"""Seconds between two pieces of the reply. A server that is at work sends one each second."""
ADVICE = {
    401: "start the app with a valid WHISPER_API_KEY",
    413: "send a shorter recording, or only its sound track",
    415: "send audio or video in a common format",
    422: "send audio or video in a common format",
    429: "the limit of the API key is reached: try again later",
    503: "the server is busy, starting or stopping: try again in a minute",
}


class TranscriptionError(Exception):
    """The server has refused the request, or cannot be reached. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """`url`: the address of the gateway. `key`: its API key, or ""."""

    url: str
    key: str = ""

    def transcribe(
        self,
        *,
        recording: Path | None = None,
        url: str = "",
        task: str = "transcribe",
        on_progress: Callable[[float, float | None], None] = lambda seconds, duration: None,
    ) -> Transcript:
        """The transcript of a file, or of what the server fetches from a URL.

        `on_progress` gets the seconds of the recording that are transcribed, and its duration while that is known. Raises
        TranscriptionError.
        """
        began = time.monotonic()
        fields = {"task": task, "stream": "true", **({"url": url} if url else {})}
        with self._reply(fields, recording) as lines:
            for line in lines:
                if progress := line.get("progress"):
                    on_progress(progress["seconds"], progress["duration"])
                if line["type"] == "error":
                    raise TranscriptionError(line["error"]["message"])
                if line["type"] == "transcript":
                    return Transcript(line["text"], tuple(line["segments"]), time.monotonic() - began)
        raise TranscriptionError("the reply ended before the transcript was complete: try again")

    @contextmanager
    def _reply(self, fields: dict[str, str], recording: Path | None) -> Iterator[Iterator[dict[str, Any]]]:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            with _form(fields, recording) as form, httpx.stream("POST", self._native, headers=headers, timeout=TIMEOUT, **form) as response:
                if response.status_code != 200:
                    response.read()
                    raise TranscriptionError(_message(response))
                yield (json.loads(line) for line in response.iter_lines() if line.strip())
        except httpx.HTTPError as error:
            message = f"the server at {self.url} cannot be reached ({type(error).__name__}): check WHISPER_SERVER_URL and that it runs"
            raise TranscriptionError(message) from None

    @property
    def _native(self) -> str:
        return f"{self.url.rstrip('/')}/predictions/whisper"


@dataclass(frozen=True, slots=True)
class Transcript:
    """`segments`: objects with `start`, `end` and `text`, as in docs/replies.md. `seconds`: how long it took."""

    text: str
    segments: tuple[dict[str, Any], ...]
    seconds: float

    def with_times(self) -> str:
        """A line for each segment, as Whisper JAX's demo writes them: [00:00.000 -> 00:02.500] text."""
        return "\n".join(f"[{_clock(item['start'])} -> {_clock(item['end'])}]{item['text']}" for item in self.segments)


@contextmanager
def _form(fields: dict[str, str], recording: Path | None) -> Iterator[dict[str, Any]]:
    """The arguments of httpx for a form; the file is read while it is sent."""
    if recording is None:
        yield {"data": fields}
        return
    with recording.open("rb") as file:
        kind = mimetypes.guess_type(recording.name)[0] or "application/octet-stream"
        yield {"data": fields, "files": {"file": (recording.name, file, kind)}}


def _message(response: httpx.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {response.status_code}"
    advice = ADVICE.get(response.status_code)
    return f"{message}; {advice}" if advice else str(message)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours:02d}:' if hours else ''}{minutes:02d}:{rest / 1000:06.3f}"
