"""The back end in the gateway's own process: no Java, no second process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import anyio
from anyio.to_thread import run_sync

from whispercore.checkpoints import choose_model, prepare
from whispercore.serving.intake import Intake
from whispercore.serving.open_request import OpenRequest
from whispercore.serving.response import Response
from whispercore.serving.self_test import SelfTest
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.torchserve.handshake import CLIENT_HEADER

from .backend import Call, Reply
from .configuration import core_section
from .core_metrics import CoreMetrics

KEEP_ALIVE_SECONDS = 1.0
"""A stream without news gets a sign of life this often, so that proxies do not end it."""
UNOPENED_SECONDS = 5.0
"""A stream begins when its recording has been opened, because until then an error can set the status; or after this time."""


class InProcess:
    """The core, driven by the event loop. Its callbacks come from threads of the core and only set an event."""

    name = "inprocess"

    def __init__(self, load: Callable[[], Transcriber]) -> None:
        """`load` makes the transcriber; it runs on a thread, because loading takes seconds."""
        self._load = load
        self.intake: Intake
        self._self_test: SelfTest
        self._metrics: CoreMetrics

    async def start(self) -> None:
        """Load the model. Raises ConfigurationError."""
        transcriber = await run_sync(self._load)
        await run_sync(transcriber.start_reading)
        self.intake = await run_sync(Intake, transcriber)
        self._self_test = SelfTest(self.intake.health)
        self._metrics = CoreMetrics(self.intake)

    async def send(self, call: Call) -> Reply:
        """Answer a request."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def on_news() -> None:
            loop.call_soon_threadsafe(news.set)

        headers = {**call.headers, CLIENT_HEADER: call.client, "url_path": call.path}
        received = self.intake.receive(call.request_id, call.row(), headers, on_news)
        if isinstance(received, Response):
            self._metrics.count(received)
            return _reply(received)
        responses = self._responses(received, news)
        first = await anext(responses)
        reply = _reply(first)
        if first.last is False:
            reply.body = _payloads(first, responses, reply)
        return reply

    async def readiness(self) -> Reply:
        """The report of the route `health/ready`."""
        return await self.send(Call(path="health/ready", fields={}, uploads={}, headers={}, request_id="-"))

    async def metrics(self) -> str:
        """The metrics of the core."""
        return self._metrics.text()

    async def close(self) -> None:
        """Cancel what is open and free the models."""
        await run_sync(self._self_test.close)
        await run_sync(self.intake.models.close)

    async def _responses(self, request: OpenRequest, news: asyncio.Event) -> AsyncGenerator[Response, None]:
        """The chunks of a stream and its end, or the one response of another request. Cancels the job when it is closed."""
        attached = True
        try:
            while True:
                news.clear()
                if request.job.ended:
                    last = await run_sync(lambda: request.respond(allow_empty=False))  # JSON of hours of words takes a tenth of a second
                    assert last
                    self.intake.jobs.detach(request.attachment)
                    attached = False
                    self._metrics.count(last)
                    yield last
                    return
                begins = request.is_stream and (request.job.opened or time.monotonic() - request.arrived >= UNOPENED_SECONDS)
                if chunk := request.respond(allow_empty=begins and not request.reply_started):
                    yield chunk
                with anyio.move_on_after(KEEP_ALIVE_SECONDS) as waiting:
                    await news.wait()
                if waiting.cancelled_caught and request.reply_started and (sign := request.respond(allow_empty=True)):
                    yield sign
        finally:
            if attached:
                self.intake.jobs.detach(request.attachment)


def _reply(response: Response) -> Reply:
    reply = Reply(status=response.status, content_type=response.content_type, body=response.payload, headers=response.headers)
    reply.audio_seconds = response.audio_seconds
    return reply


async def _payloads(first: Response, responses: AsyncGenerator[Response, None], reply: Reply) -> AsyncGenerator[bytes, None]:
    """The payloads of a stream. At its end `reply` learns the duration of the recording."""
    async with aclosing(responses):
        yield first.payload
        async for response in responses:
            reply.audio_seconds = response.audio_seconds
            yield response.payload


def load() -> Transcriber:
    """The transcriber of the settings; its checkpoint is converted when that has not been done. Raises ConfigurationError."""
    settings = choose_model(replace(Settings.load(core_section()), client_header=CLIENT_HEADER))
    prepare(settings)
    return Transcriber(settings)
