"""OpenAI's routes and the native one: a recording in, its transcript out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing

from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from whispercore.api.fields import OPTION_HEADER
from whispercore.api.request import parse
from whispercore.torchserve.handshake import API_VERSION, CLIENT_HEADER

from .backend import Call, Reply
from .body import Body, read_body
from .context import Admission, admitted, count_audio, gateway_of, request_id_of, until_gone
from .recordings import with_recording

router = APIRouter()
NATIVE = "/predictions/whisper"


@router.post("/v1/audio/transcriptions")
async def transcriptions(request: Request) -> Response:
    """OpenAI's transcription."""
    return await transcribe(request, "v1/audio/transcriptions")


@router.post("/v1/audio/translations")
async def translations(request: Request) -> Response:
    """OpenAI's translation into English."""
    return await transcribe(request, "v1/audio/translations")


@router.post(NATIVE)
@router.post("/invocations")
@router.put(NATIVE)
@router.put(f"{NATIVE}/{{filename}}")  # curl -T appends the name of the file to a URL that ends with a slash
async def native(request: Request) -> Response:
    """The native transcription, with TorchServe's path and with SageMaker's."""
    return await transcribe(request, "")


@router.post(f"{NATIVE}/{API_VERSION}/{{path:path}}")
async def torchserve_paths(request: Request, path: str) -> Response:
    """OpenAI's routes under the paths that they have on TorchServe."""
    return await transcribe(request, path)


@router.get(f"{NATIVE}/{API_VERSION}/v1/models")
@router.get("/v1/models")
async def models(request: Request) -> Response:
    """OpenAI's list of models."""
    return await _list_models(request, "v1/models")


@router.get(f"{NATIVE}/{API_VERSION}/v1/models/{{model:path}}")
@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> Response:
    """One model of the list."""
    return await _list_models(request, f"v1/models/{model}")


async def transcribe(request: Request, path: str) -> Response:
    """Read the body, have it transcribed, answer. Raises WhisperError, which the application turns into a reply."""
    gateway, stack = gateway_of(request), AsyncExitStack()
    try:
        admission = await stack.enter_async_context(admitted(request))
        body = await read_body(request, gateway.spool, gateway.configuration.max_body_bytes)
        stack.callback(body.remove)
        body = await with_recording(body, request, gateway)
        stack.callback(body.remove)
        call = call_of(request, path, body, admission)
        await run_sync(_check, call)  # JSON with a long recording takes a second to parse
        reply = await until_gone(request, gateway.backend.send(call))
        headers = {**reply.headers, **admission.headers}
        if isinstance(reply.body, bytes):
            count_audio(gateway, admission, reply.audio_seconds, call.request_id)
            return Response(reply.body, reply.status, headers, reply.content_type)
        stack.callback(lambda: count_audio(gateway, admission, reply.audio_seconds, call.request_id))
        return _Stream(reply, headers, stack.pop_all())
    finally:
        await stack.aclose()


def call_of(request: Request, path: str, body: Body, admission: Admission) -> Call:
    """What the back end gets."""
    kept = {name: value for name, value in request.headers.items() if name not in (CLIENT_HEADER, "authorization", "cookie")}
    # uvicorn gives names in lower case; options get capitals again, because errors name them.
    headers = {name.title() if name.startswith(OPTION_HEADER) else name: value for name, value in kept.items()}
    return Call(
        path=path,
        fields=body.fields,
        uploads=body.uploads,
        headers=headers,
        request_id=request_id_of(request),
        client=admission.name,
    )


def _check(call: Call) -> None:
    """Raise the error of a request that the core would refuse, before it occupies the back end."""
    parse(call.row(), {**call.headers, "url_path": call.path})


class _Stream(StreamingResponse):
    """The chunks of a stream. It closes `stack` at its end, also when the client goes before the first chunk.

    A generator could not do that: nothing in it runs when it is closed before it has begun.
    """

    def __init__(self, reply: Reply, headers: Mapping[str, str], stack: AsyncExitStack) -> None:
        assert not isinstance(reply.body, bytes)
        # As a header: Starlette adds a charset to a media type that begins with text/, also to text/event-stream.
        super().__init__(reply.body, reply.status, {**headers, "content-type": reply.content_type})
        self._chunks, self._stack = reply.body, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the chunks."""
        async with self._stack, aclosing(self._chunks):
            await super().__call__(scope, receive, send)


async def _list_models(request: Request, path: str) -> Response:
    async with admitted(request) as admission:
        call = Call(path=path, fields={}, uploads={}, headers={}, request_id=request_id_of(request), client=admission.name)
        reply = await gateway_of(request).backend.send(call)
    assert isinstance(reply.body, bytes)
    return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)
