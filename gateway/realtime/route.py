"""The route of the WebSocket: who may open a session, how many, and for how long."""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

import anyio
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from whispercore.errors import EngineError, InvalidRequest, Overloaded, WhisperError

from ..context import Admission, Gateway, admitted, count_audio, gateway_of, request_id_of
from ..refusals import Forbidden, RateLimited, Unauthorized
from .events import Event, error_event
from .options import MAX_NAME, SessionOptions, Transcription
from .pacing import Pacing
from .recognizer import Recognizer, Transcript
from .session import Session

logger = logging.getLogger(__name__)
router = APIRouter()

IDLE_SECONDS = 600.0
"""A session without a message of its client ends after this time."""
_KEY, _BETA = "openai-insecure-api-key.", "openai-beta.realtime-v1"
_INTENT = "transcription"


class SessionIdle(InvalidRequest):
    """The client has sent nothing for a long time."""

    default_code = "session_idle"


class Sessions:
    """The open sessions of a gateway, `limit` at most, and the interval that they share."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[Session] = set()
        self.pacing = Pacing(lambda: sum(session.speaking for session in self.open), time.monotonic)


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """OpenAI's Realtime transcription. A refusal is an error event, then a close code: browsers show no HTTP status."""
    try:
        await websocket.accept(_subprotocol(websocket))
        async with admitted(websocket, _authorization(websocket)) as admission:
            await _serve(websocket, admission)
    except WhisperError as error:
        logger.info("realtime session %s ended: %s", request_id_of(websocket), error.message)
        await _close(websocket, error)
    except WebSocketDisconnect:
        logger.info("realtime session %s: the client has gone", request_id_of(websocket))


async def _serve(websocket: WebSocket, admission: Admission) -> None:
    gateway, sessions = gateway_of(websocket), _sessions_of(websocket)
    _check_origin(websocket, gateway)
    _check_intent(websocket)
    if len(sessions.open) >= sessions.limit:
        message = f"{sessions.limit} realtime sessions are open already (WHISPER_REALTIME_SESSIONS): try again later"
        raise Overloaded(message, code="too_many_sessions", retry_after=30)
    session = _session(websocket, gateway, admission, sessions.pacing)
    sessions.open.add(session)
    gateway.telemetry.realtime_sessions.set(len(sessions.open))
    try:
        await _converse(websocket, session)
    finally:
        sessions.open.remove(session)
        gateway.telemetry.realtime_sessions.set(len(sessions.open))


def _session(websocket: WebSocket, gateway: Gateway, admission: Admission, pacing: Pacing) -> Session:
    lock = anyio.Lock()

    async def send(event: Event) -> None:
        async with lock:
            await websocket.send_text(event.text())

    def on_transcript(transcript: Transcript) -> WhisperError | None:
        count_audio(gateway, admission, transcript.seconds, request_id_of(websocket))
        key = admission.key
        if key and key.audio_seconds_per_day and gateway.usage.audio_seconds(key) >= key.audio_seconds_per_day:
            message = f"this key may transcribe {key.audio_seconds_per_day:g} s of audio a day: it is used up until midnight UTC"
            return RateLimited(message, code="insufficient_quota")
        return None

    model = websocket.query_params.get("model")
    recognizer = Recognizer(backend=gateway.backend, spool=gateway.spool, client=admission.name, request_id=request_id_of(websocket))
    return Session(
        options=SessionOptions(transcription=Transcription(model=model[:MAX_NAME]) if model else Transcription()),
        beta=_is_beta(websocket),
        recognizer=recognizer,
        pacing=pacing,
        send=send,
        on_transcript=on_transcript,
    )


async def _converse(websocket: WebSocket, session: Session) -> None:
    """Serve a session until its client goes. Raises the error that ends it, or WebSocketDisconnect."""
    ends: list[Exception] = []

    async with anyio.create_task_group() as group:

        async def transcribe() -> None:
            try:
                await session.run()
            except Exception as error:  # the reader must end, too; the error is raised below
                ends.append(error)
                group.cancel_scope.cancel()

        group.start_soon(transcribe)
        try:
            await _read(websocket, session)
        except Exception as error:
            ends.append(error)
        group.cancel_scope.cancel()
    raise _expected(ends[0], websocket)


async def _read(websocket: WebSocket, session: Session) -> None:
    """Hand over the client's messages until an error ends the session."""
    await session.begin()
    try:
        while True:
            await session.receive(await _next_message(websocket))
    except SessionIdle:
        await session.finish()
        raise


def _expected(error: Exception, websocket: WebSocket) -> Exception:
    """The error itself when it is one of the session's own; anything else is a bug, which the log explains."""
    if isinstance(error, WhisperError | WebSocketDisconnect):
        return error
    logger.error("realtime session %s failed", request_id_of(websocket), exc_info=error)
    return EngineError("the session could not go on")


async def _next_message(websocket: WebSocket) -> str | bytes:
    with anyio.move_on_after(IDLE_SECONDS):
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")
        return text if isinstance(text, str) else message.get("bytes", b"")
    raise SessionIdle(f"no event arrived for {IDLE_SECONDS:g} s: open a new session when there is sound")


async def _close(websocket: WebSocket, error: WhisperError) -> None:
    """Tell the client why, and close. It may have gone."""
    try:
        await websocket.send_text(error_event(error).text())
        await websocket.close(_close_code(error), error.code)
    except (WebSocketDisconnect, RuntimeError):
        return


def _close_code(error: WhisperError) -> int:
    """The codes of RFC 6455 and of IANA's registry: 3000 unauthorized, 1013 try again later, 1011 internal error."""
    if isinstance(error, Unauthorized):
        return 3000
    if isinstance(error, Overloaded):
        return 1013
    if isinstance(error, EngineError):
        return 1011
    return 1000 if isinstance(error, SessionIdle) else 1008


def _sessions_of(websocket: WebSocket) -> Sessions:
    sessions: Sessions = websocket.app.state.realtime
    return sessions


def _protocols(websocket: WebSocket) -> list[str]:
    return list(websocket.scope.get("subprotocols", ()))


def _subprotocol(websocket: WebSocket) -> str | None:
    """A browser needs one of the subprotocols that it offers: `realtime`, else the first one that is no key."""
    offered = [name for name in _protocols(websocket) if not name.startswith(_KEY)]
    return "realtime" if "realtime" in offered else next(iter(offered), None)


def _authorization(websocket: WebSocket) -> str:
    """The key among the subprotocols, where a browser has to put it, as an Authorization header; empty when there is none."""
    key = next((name.removeprefix(_KEY) for name in _protocols(websocket) if name.startswith(_KEY)), "")
    return f"Bearer {key}" if key else ""


def _is_beta(websocket: WebSocket) -> bool:
    return websocket.headers.get("openai-beta") == "realtime=v1" or _BETA in _protocols(websocket)


def _check_intent(websocket: WebSocket) -> None:
    if websocket.query_params.get("intent", _INTENT) != _INTENT:
        raise InvalidRequest(f"this server only transcribes: intent must be {_INTENT}", param="intent")


def _check_origin(websocket: WebSocket, gateway: Gateway) -> None:
    """Without keys, let only pages of this server and of WHISPER_CORS_ORIGINS in.

    A browser lets any page open a WebSocket to any server, unlike a request with fetch. Raises Forbidden.
    """
    origin = websocket.headers.get("origin")
    allowed = gateway.configuration.cors_origins
    if gateway.keys is not None or origin is None or origin in allowed or "*" in allowed:
        return
    if urlsplit(origin).netloc != websocket.headers.get("host"):
        raise Forbidden("pages of other origins may not open sessions: list the origin in WHISPER_CORS_ORIGINS", code="forbidden_origin")
