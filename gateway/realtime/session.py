"""One session: the client's commands in, events out, and one transcription at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.to_thread import run_sync

from whispercore.errors import InvalidRequest, WhisperError
from whispercore.types import SAMPLE_RATE

from .audio import BYTES_PER_SECOND, AudioBuffer, Decoder, Pcm
from .captions import Captions
from .commands import Append, Clear, Command, Commit, Update, command, event_id, read
from .events import (
    Cleared,
    Committed,
    Event,
    ItemAdded,
    ItemCreated,
    ItemDone,
    SessionCreated,
    SessionUpdated,
    SpeechStarted,
    SpeechStopped,
    TranscriptionCompleted,
    TranscriptionDelta,
    TranscriptionFailed,
    TranscriptionSessionCreated,
    TranscriptionSessionUpdated,
    error_event,
    item,
    new_id,
)
from .options import SessionOptions
from .pacing import Pacing
from .recognizer import Recognizer, Transcript, TranscriptionError
from .turns import Started, Stopped, Turns
from .voices import StreamingVoiceDetector

logger = logging.getLogger(__name__)

BUFFERED_SECONDS = 300
"""Sound of a session that may wait: uncommitted, or committed and not transcribed yet. Then the session stops reading."""
SHORTEST_COMMIT = SAMPLE_RATE // 10
FIRST_SECONDS = 0.8
"""Sound with which an open turn is transcribed for the first time."""
LONGEST_WINDOW = 28 * SAMPLE_RATE
"""Sound of an open turn that is transcribed at once: less than Whisper's window. The rest follows at the next time."""
MAX_ERRORS = 50
"""Errors in a row after which the session ends: the client does not read them."""


class TooManyErrors(InvalidRequest):
    """The client keeps sending events that are refused."""

    default_code = "too_many_errors"


@dataclass(slots=True, eq=False)
class Item:
    """An item whose sound begins at sample `start`. `until`: the sample up to which it has been transcribed.

    `pcm`, `options`, `previous`: of a committed item, the sound, the configuration at that moment, and the item before.
    """

    start: int
    until: int = 0
    id: str = field(default_factory=lambda: new_id("item"))
    captions: Captions = field(default_factory=Captions)
    pcm: bytes = b""
    options: SessionOptions = field(default_factory=SessionOptions)
    previous: str | None = None


class Session:
    """A session of one client. `receive` takes its messages one after the other, `run` transcribes meanwhile."""

    def __init__(
        self,
        *,
        options: SessionOptions,
        beta: bool,
        recognizer: Recognizer,
        pacing: Pacing,
        send: Callable[[Event], Awaitable[None]],
        on_transcript: Callable[[Transcript], WhisperError | None],
        detector: Callable[[], Callable[[Pcm], list[float]]] = StreamingVoiceDetector,
    ) -> None:
        """`send` sends an event; `on_transcript` counts a turn, and returns an error that ends the session."""
        self.id = new_id("sess")
        self.options = options
        self._beta = beta
        self._recognizer, self._pacing, self._send = recognizer, pacing, send
        self._on_transcript, self._new_detector = on_transcript, detector
        self._decoder = Decoder(options.format)
        self._audio = AudioBuffer()
        self._detector: Callable[[Pcm], list[float]] | None = None
        self._turns: Turns | None = None
        self._open: Item | None = None
        self._committed: deque[Item] = deque()
        self._previous: str | None = None
        self._language: str | None = None
        self._errors = 0
        self._news, self._space = anyio.Event(), anyio.Event()
        self._partial_scope: anyio.CancelScope | None = None

    async def begin(self) -> None:
        """Send the first event."""
        await self._listen()
        event = TranscriptionSessionCreated if self._beta else SessionCreated
        await self._send(event(self._described(self._beta)))

    async def receive(self, message: str | bytes) -> None:
        """Obey a message of the client; a message that cannot be obeyed is answered with an error event.

        Returns when there is room for more sound. Raises TooManyErrors.
        """
        client_id: str | None = None
        try:
            if isinstance(message, bytes):
                raise InvalidRequest("events are JSON in text messages: send sound as base64 in input_audio_buffer.append")
            content = read(message)
            client_id = event_id(content)
            await self._obey(command(content))
            self._errors = 0
        except WhisperError as error:
            await self._send(error_event(error, client_id))
            self._errors += 1
            if self._errors >= MAX_ERRORS:
                raise TooManyErrors(f"{MAX_ERRORS} events in a row were refused: the session ends") from None
        while self._waiting_seconds > BUFFERED_SECONDS and self._committed:
            self._space = anyio.Event()
            await self._space.wait()

    async def run(self) -> None:
        """Transcribe until cancelled: committed items first, then the open one. Raises WhisperError when the session must end."""
        while True:
            if self._committed:
                await self._transcribe_committed(self._committed[0])
            elif self._open and self._is_due(self._open):
                await self._transcribe_open(self._open)
            else:
                self._news = anyio.Event()
                await self._news.wait()

    async def finish(self) -> None:
        """Commit the sound that is open, and wait until all sound is transcribed."""
        if self._open:
            with suppress(InvalidRequest):  # too little sound
                await self._commit_all()
        while self._committed:
            self._space = anyio.Event()
            await self._space.wait()

    @property
    def speaking(self) -> bool:
        """Whether a turn is open."""
        return self._open is not None

    @property
    def _waiting_seconds(self) -> float:
        open_samples = self._audio.end - self._open.start if self._open else 0
        return open_samples / SAMPLE_RATE + sum(len(waiting.pcm) for waiting in self._committed) / BYTES_PER_SECOND

    def _described(self, beta: bool) -> dict[str, object]:
        return self.options.session_beta(self.id) if beta else self.options.session(self.id)

    async def _obey(self, command: Command) -> None:
        match command:
            case Append(audio):
                await self._hear(audio)
            case Commit():
                await self._commit_all()
            case Clear():
                await self._clear()
            case Update(session, beta):
                await self._update(session, beta)

    async def _update(self, session: Mapping[str, Any], beta: bool) -> None:
        options = self.options.updated_beta(session) if beta else self.options.updated(session)
        before, self.options = self.options, options
        if options.format != before.format:
            await self._take(self._decoder.flush())
            self._decoder = Decoder(options.format)
        if options.turn_detection != before.turn_detection:
            await self._listen()
        await self._send((TranscriptionSessionUpdated if beta else SessionUpdated)(self._described(beta)))

    async def _listen(self) -> None:
        """Begin, change or end the detection of turns. Sound that waits for the client's commit is committed when it begins."""
        detection = self.options.turn_detection
        if detection is None:
            self._turns = self._detector = None
        elif self._turns:
            self._turns.detection = detection
        else:
            if self._open:
                await self._commit(self._open, self._audio.end)
            self._detector = await run_sync(self._new_detector)
            self._turns = Turns(detection, self._audio.end)

    async def _hear(self, data: bytes) -> None:
        if data:
            await self._take(await run_sync(self._decoder.decode, data))

    async def _take(self, samples: Pcm) -> None:
        self._audio.append(samples)
        if self._turns and self._detector:
            turns = self._turns
            for probability in await run_sync(self._detector, samples):
                for change in turns.feed(probability):
                    await self._on_change(change)
            if not self._open:
                self._audio.forget(turns.needed_from)
        elif self._audio.end - self._audio.start > BUFFERED_SECONDS * SAMPLE_RATE and self._open:
            await self._commit(self._open, self._audio.end)
            message = f"{BUFFERED_SECONDS} s of sound were not committed: the server has committed them; send input_audio_buffer.commit"
            raise InvalidRequest(message, code="buffer_full")
        elif self._open is None:
            self._open = Item(self._audio.start, self._audio.start)
        self._news.set()

    async def _on_change(self, change: Started | Stopped) -> None:
        if isinstance(change, Started):
            self._open = Item(change.at, change.at)
            await self._send(SpeechStarted(_milliseconds(change.at), self._open.id))
        elif self._open:
            await self._send(SpeechStopped(_milliseconds(change.at), self._open.id))
            await self._commit(self._open, change.at)

    async def _commit_all(self) -> None:
        """The client's commit: all sound that is there is an item."""
        await self._take(await run_sync(self._decoder.flush))
        opened = self._open or Item(self._audio.start)
        if self._audio.end - opened.start < SHORTEST_COMMIT:
            message = "the buffer has less than 100 ms of sound: send input_audio_buffer.append before input_audio_buffer.commit"
            raise InvalidRequest(message, code="input_audio_buffer_commit_empty")
        await self._commit(opened, self._audio.end)
        if self._turns:
            self._turns.end_turn(self._audio.end)

    async def _commit(self, opened: Item, end: int) -> None:
        self._open = None
        if self._partial_scope:
            self._partial_scope.cancel()
        opened.pcm, opened.options, opened.previous = self._audio.between(opened.start, end), self.options, self._previous
        self._audio.forget(end)
        self._previous = opened.id
        self._committed.append(opened)
        self._news.set()
        await self._send(Committed(opened.id, opened.previous))
        await self._send((ItemCreated if self._beta else ItemAdded)(item(opened.id), opened.previous))

    async def _clear(self) -> None:
        self._decoder.flush()
        self._open = None
        if self._partial_scope:
            self._partial_scope.cancel()
        self._audio.forget(self._audio.end)
        if self._turns:
            self._turns.end_turn(self._audio.end)
        await self._send(Cleared())

    def _is_due(self, opened: Item) -> bool:
        """Whether there is enough new sound with voice, or a word that one more transcription may make certain."""
        end = self._audio.end
        if end - opened.start < FIRST_SECONDS * SAMPLE_RATE or end - opened.until < self._pacing.interval * SAMPLE_RATE:
            return False
        return self._turns is None or self._turns.last_voice > opened.until or not opened.captions.settled

    async def _transcribe_open(self, opened: Item) -> None:
        start = opened.start + round(opened.captions.offset * SAMPLE_RATE)
        end = min(self._audio.end, start + LONGEST_WINDOW)
        pcm = self._audio.between(start, end)
        transcription = self.options.transcription
        opened.until = end
        with anyio.CancelScope() as self._partial_scope:
            try:
                with self._pacing.transcription():
                    segments = await self._recognizer.partial(pcm, transcription, transcription.language or self._language)
            except TranscriptionError as error:
                logger.info("a partial transcription was refused with %d: %s", error.status, error)
                return self._pacing.refused()
        if opened is not self._open:
            return
        if delta := opened.captions.update(segments, (end - start) / SAMPLE_RATE):
            await self._send(TranscriptionDelta(opened.id, delta))

    async def _transcribe_committed(self, committed: Item) -> None:
        options = committed.options
        end: WhisperError | None = None
        try:
            transcript = await self._recognizer.final(committed.pcm, options.transcription, logprobs=options.logprobs)
        except TranscriptionError as error:
            text = None
            await self._send(TranscriptionFailed(committed.id, error.error))
        else:
            text = transcript.text
            end = self._on_transcript(transcript)
            self._language = _only_language(transcript) or self._language
            if delta := committed.captions.finish(text):
                await self._send(TranscriptionDelta(committed.id, delta))
            usage = {"type": "duration", "seconds": round(transcript.seconds, 3)}
            await self._send(TranscriptionCompleted(committed.id, text, usage, transcript.languages, transcript.logprobs))
        if not self._beta:
            await self._send(ItemDone(item(committed.id, text), committed.previous))
        self._committed.popleft()
        self._space.set()
        if end:
            raise end


def _milliseconds(position: int) -> int:
    return position * 1000 // SAMPLE_RATE


def _only_language(transcript: Transcript) -> str | None:
    """The language of a transcript with words, for the partial transcriptions that follow."""
    languages = transcript.languages or []
    return languages[0]["code"] if transcript.text and len(languages) == 1 else None
