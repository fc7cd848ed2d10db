"""The back end behind TorchServe: requests go to its worker over loopback, uploads as files of the spool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import anyio
import httpx

from whispercore.api.reply import json_bytes
from whispercore.api.routes import Route
from whispercore.api.stream import stream_error
from whispercore.errors import EngineError, Overloaded
from whispercore.torchserve.handshake import API_VERSION, CLIENT_HEADER
from whispercore.torchserve.spool import message

from .backend import Call, Reply
from .refusals import error_reply

PATH = f"/predictions/whisper/{API_VERSION}"
READY_SECONDS = 10.0
"""How long the worker may take to answer whether it is ready."""
_DIED = EngineError("the worker ended while it answered: send the request again", code="worker_died")
_PASSED_ON = ("x-whisper-model", "x-whisper-warnings", "retry-after")


class TorchServe:
    """One client with a connection for each open request."""

    name = "torchserve"

    def __init__(self, url: str, metrics_url: str = "") -> None:
        self._metrics_url = metrics_url
        # A transcription has no limit of time here: the worker and its watchdog end what does not progress.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._client = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(None, connect=5.0), limits=limits, trust_env=False)

    async def start(self) -> None:
        """TorchServe is started by the launcher."""

    async def send(self, call: Call) -> Reply:
        """Answer a request. Closing the reply early makes the caller remove the files, by which the worker cancels the request."""
        uploads = {name: [file.path.name for file in files] for name, files in call.uploads.items()}
        headers = {**call.headers, "x-request-id": call.request_id, CLIENT_HEADER: call.client}
        body = json_bytes(message(call.fields, headers, uploads))
        request = self._client.build_request(
            "POST" if call.uploads or call.fields else "GET",
            f"{PATH}/{call.path}" if call.path else "/predictions/whisper",
            content=body,
            headers={"content-type": "application/json"},
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            return error_reply(
                Overloaded(f"the worker cannot be reached ({type(error).__name__}): try again later", code="worker_down", retry_after=15)
            )
        kind = response.headers.get("content-type", "")
        passed_on = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        reply = Reply(status=response.status_code, content_type=kind, body=b"", headers=passed_on)
        if response.status_code == 200 and kind.startswith(("text/event-stream", "application/x-ndjson")):
            reply.body = _stream(response, reply, "native" if "ndjson" in kind else "transcriptions")
            return reply
        return await _whole(response, reply)

    async def readiness(self) -> Reply:
        """The worker's own report; 503 when it gives none."""
        call = Call(path="health/ready", fields={}, uploads={}, headers={}, request_id="-")
        with anyio.move_on_after(READY_SECONDS):
            return await self.send(call)
        return error_reply(Overloaded("the worker does not answer", code="not_ready", retry_after=15))

    async def metrics(self) -> str:
        """TorchServe's page of metrics; a comment when it cannot be had."""
        if not self._metrics_url:
            return ""
        try:
            response = await self._client.get(f"{self._metrics_url}/metrics", timeout=READY_SECONDS)
            return response.text
        except httpx.HTTPError as error:
            return f"# TorchServe's metrics cannot be had: {type(error).__name__}\n"

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _whole(response: httpx.Response, reply: Reply) -> Reply:
    try:
        async with aclosing(response):
            reply.body = await response.aread()
    except httpx.HTTPError:
        return error_reply(_DIED)
    reply.audio_seconds = float(response.headers.get("x-whisper-audio-seconds", 0.0))
    return _in_our_form(reply)


async def _stream(response: httpx.Response, reply: Reply, route: Route) -> AsyncIterator[bytes]:
    """The chunks; at their end `reply` learns the duration. A worker that dies leaves an error as the last chunk."""
    tail = b""
    async with aclosing(response):
        try:
            async for chunk in response.aiter_raw():
                tail = chunk if chunk.strip() else tail
                yield chunk
        except httpx.HTTPError:
            yield stream_error(_DIED, route)
    reply.audio_seconds = _duration(tail)


def _duration(tail: bytes) -> float:
    """The duration of the recording, as the last line of a stream has it: OpenAI's usage, or the native duration."""
    try:
        last = json.loads(tail.strip().splitlines()[-1].removeprefix(b"data: "))
        return float(last["usage"]["seconds"] if "usage" in last else last["duration"])
    except (ValueError, KeyError, IndexError, TypeError):
        return 0.0


def _in_our_form(reply: Reply) -> Reply:
    """TorchServe's own errors, {"code", "type", "message"}, as OpenAI's error object."""
    body = reply.body if isinstance(reply.body, bytes) else b""
    if reply.status < 400 or b'"error"' in body:
        return reply
    if reply.status in (503, 507) and b"Worker died" not in body:
        return error_reply(Overloaded("the server has no room for the request now: try again later", retry_after=15))
    return error_reply(_DIED)
