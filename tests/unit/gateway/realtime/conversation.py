"""A session without a network: the test plays the client, the back end and the voice detector."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from gateway.backend import Call, Reply
from gateway.realtime.audio import Pcm
from gateway.realtime.events import Event
from gateway.realtime.options import SessionOptions
from gateway.realtime.pacing import Pacing
from gateway.realtime.recognizer import Recognizer, Transcript
from gateway.realtime.session import Session
from gateway.spool import Spool
from whispercore.audio.silero import FRAME
from whispercore.errors import WhisperError

RATE = 24_000
MANUAL = {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}
COMMIT = {"type": "input_audio_buffer.commit"}
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"


def sound(seconds: float, level: int = 8_000) -> bytes:
    return np.full(round(seconds * RATE), level, "<i2").tobytes()


def append(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}


def appends(data: bytes, seconds: float = 0.1) -> list[dict[str, Any]]:
    size = round(seconds * RATE) * 2
    return [append(data[at : at + size]) for at in range(0, len(data), size)]


class LoudnessDetector:
    """Sound is voice, silence is none."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.int16)

    def __call__(self, samples: Pcm) -> list[float]:
        self._rest = np.concatenate([self._rest, samples])
        frames = self._rest[: len(self._rest) // FRAME * FRAME].reshape(-1, FRAME)
        self._rest = self._rest[frames.size :]
        return [0.9 if np.abs(frame).max() > 1_000 else 0.0 for frame in frames]


@dataclass(slots=True)
class CountingBackend:
    """Hears a word in each half second of sound: w0 w1 w2 … `errors`: the statuses of the next replies of whole turns."""

    name: str = "counting"
    calls: list[Call] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each call's sound."""
    errors: list[int] = field(default_factory=list)
    final: str | None = None
    has_temperatures: bool = True
    hears: bool = True
    gate: anyio.Event | None = None
    """Whole turns wait for it."""
    at_once: int = 0
    most_at_once: int = 0

    async def start(self) -> None: ...

    async def send(self, call: Call) -> Reply:
        self.calls.append(call)
        (file,) = call.uploads["file"]
        with wave.open(io.BytesIO(file.path.read_bytes())) as reader:
            assert reader.getparams()[:3] == (1, 2, 16_000)
            seconds = reader.getnframes() / 16_000
        self.seconds.append(seconds)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await anyio.sleep(0)
            return await self._reply(call, seconds)
        finally:
            self.at_once -= 1

    async def _reply(self, call: Call, seconds: float) -> Reply:
        text = " ".join(f"w{i}" for i in range(int(seconds * 2)))
        if not call.path and "temperature" in call.fields and not self.has_temperatures:
            return _json({"error": {"message": "no", "code": "invalid_value", "param": "temperature"}}, 400)
        if not self.hears:
            return _json({"segments": [], "text": ""}, seconds=seconds)
        if not call.path:
            return _json({"segments": [{"start": 0.0, "end": seconds, "text": f" {text}"}]})
        if self.gate:
            await self.gate.wait()
        if self.errors and (status := self.errors.pop(0)) != 200:
            error = {"message": "no", "type": "server_error", "code": "overloaded", "param": None}
            return _json({"error": error}, status)
        return _json({"text": text if self.final is None else self.final, "languages": [{"code": "en"}]}, seconds=seconds)

    async def readiness(self) -> Reply:
        return _json({"ready": True})

    async def metrics(self) -> str:
        return ""

    async def close(self) -> None: ...


def _json(content: dict[str, Any], status: int = 200, seconds: float = 0.0) -> Reply:
    return Reply(status=status, content_type="application/json", body=json.dumps(content).encode(), audio_seconds=seconds)


async def _no_sleep(seconds: float) -> None:
    await anyio.sleep(0)


class Conversation:
    """`say` sends messages, `until` waits for events; `events` are those received."""

    def __init__(
        self,
        backend: CountingBackend,
        folder: Path,
        *,
        options: SessionOptions | None = None,
        beta: bool = False,
        on_transcript: Callable[[Transcript], WhisperError | None] = lambda transcript: None,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.backend = backend
        self.spool = Spool(folder / "spool")
        self._changed = anyio.Event()
        recognizer = Recognizer(backend=backend, spool=self.spool, client="test", request_id="r", sleep=_no_sleep)
        self.session = Session(
            options=options or SessionOptions(),
            beta=beta,
            recognizer=recognizer,
            pacing=Pacing(lambda: 1, lambda: 0.0),
            send=self._receive,
            on_transcript=on_transcript,
            detector=LoudnessDetector,
        )

    async def _receive(self, event: Event) -> None:
        self.events.append(json.loads(event.text()))
        self._changed.set()
        self._changed = anyio.Event()

    async def say(self, *messages: dict[str, Any] | str | bytes) -> None:
        for message in messages:
            await self.session.receive(json.dumps(message) if isinstance(message, dict) else message)
            await anyio.wait_all_tasks_blocked()

    async def until(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        with anyio.fail_after(20):
            while len(found := self.of(kind)) < count:
                await self._changed.wait()
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]


def converse(
    messages: Sequence[dict[str, Any] | str | bytes],
    *,
    items: int = 0,
    backend: CountingBackend | None = None,
    options: SessionOptions | None = None,
    beta: bool = False,
) -> Conversation:
    """A conversation after all messages and the transcription of `items` items."""
    found: list[Conversation] = []

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            conversation = Conversation(backend or CountingBackend(), Path(folder), options=options, beta=beta)
            found.append(conversation)
            async with anyio.create_task_group() as group:
                group.start_soon(conversation.session.run)
                await conversation.session.begin()
                await conversation.say(*messages)
                with anyio.fail_after(20):
                    while len(conversation.of(COMPLETED)) + len(conversation.of(FAILED)) < items:
                        await conversation._changed.wait()
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            assert list(conversation.spool.folder.iterdir()) == []

    anyio.run(run)
    return found[0]
