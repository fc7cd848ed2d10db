"""From a server's fields and headers to an open request, or to the reply of a request that needs no transcription."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..api.models import ServedModel, remarks, render_models
from ..api.request import Request, client_request_id
from ..errors import EngineError, WhisperError
from ..options import Reply
from . import self_test, watchdog
from .backlog import WATCHDOG
from .health import Health
from .models import Models
from .open_request import OpenRequest, both_ids
from .response import Response, error_response, whole_response
from .sharing import SharedJobs, wants_own_job
from .transcriber import Transcriber

logger = logging.getLogger(__name__)

MAX_CLIENT_NAME = 128
"""Characters of a client's name, at most."""


class Intake:
    """Receives the requests of one front end, TorchServe's mailbox or the gateway. Not thread-safe."""

    def __init__(self, transcriber: Transcriber, *, watchdog_token: str = "") -> None:
        """`transcriber`: of the default model; its settings name the others.

        `watchdog_token`: what the launcher's watchdog shows of itself; empty: there is none. Raises what `Models` raises.
        """
        self.transcriber = transcriber
        self.models = Models(transcriber)
        self._watchdog_token = watchdog_token
        self.jobs = SharedJobs(self.models)
        self.health = Health(transcriber, self.models.others)

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted, and the engine gives results."""
        return not self.jobs.closing and self.health.gives_results

    def receive(
        self, server_id: str, fields: Mapping[str, Any], headers: Mapping[str, Any], on_news: Callable[[], None]
    ) -> OpenRequest | Response:
        """Begin a request, or answer it when it is refused or needs no transcription.

        `on_news` is called on threads of the core when the request has something to send.
        """
        arrived = time.monotonic()
        request_id = client_request_id(headers) or server_id
        try:
            if self._is_watchdog(headers):
                return self._begin(server_id, request_id, self._test(), arrived, on_news, client=WATCHDOG, alone=True)
            client, others = self._client(headers)
            request = self.jobs.check(fields, others)
            if request.route == "models":
                return self._list_models(request, request_id)
            if request.route == "ready":
                report = self.health.report(is_ready=self.is_ready, open_requests=len(self.jobs))
                return whole_response(report, request_id, 200 if self.is_ready else 503)
            return self._begin(server_id, request_id, request, arrived, on_news, client=client, alone=wants_own_job(headers))
        except WhisperError as error:
            logger.info("request %s refused with %d: %s", both_ids(server_id, request_id), error.status, error.message)
            return error_response(error, request_id)
        except Exception as error:  # an unforeseen error of one request must not fail the others of the same call
            logger.exception("request %s could not be read", both_ids(server_id, request_id))
            return error_response(EngineError(f"the request could not be read: {error}"), request_id)

    def _begin(
        self,
        server_id: str,
        request_id: str,
        request: Request,
        arrived: float,
        on_news: Callable[[], None],
        *,
        client: str,
        alone: bool,
    ) -> OpenRequest:
        on_progress = on_news if request.reply.stream else None
        model = self.models.choose(request.model)
        attachment = self.jobs.begin(request, model=model, client=client, alone=alone, on_news=on_news, on_progress=on_progress)
        opened = OpenRequest(
            server_id,
            request_id,
            attachment,
            arrived,
            resent_bytes=len(request.audio),
            model=model,
            remarks=self._remarks(request.model, model),
        )
        if attachment.joined:
            logger.info("request %s shares the work of another: the same audio and options", opened)
        return opened

    def _is_watchdog(self, headers: Mapping[str, Any]) -> bool:
        shown = header(headers, watchdog.HEADER)
        return bool(self._watchdog_token) and hmac.compare_digest(shown.encode(errors="replace"), self._watchdog_token.encode())

    def _test(self) -> Request:
        """The watchdog's request."""
        options = self_test.options(self.transcriber.engine.name)
        return Request(audio=self_test.recording(), options=options, reply=Reply(), route="native")

    def _client(self, headers: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The client's name, and the other headers: that of the name looks like an option when it begins with x-whisper-.

        The name is "" without the setting `client_header` or without that header.
        """
        name = self.transcriber.settings.client_header.lower()
        if not name:
            return "", headers
        client = header(headers, name)[:MAX_CLIENT_NAME]
        others = {key: value for key, value in headers.items() if key.lower() != name}
        return client if client.isprintable() else ascii(client), others

    def _list_models(self, request: Request, request_id: str) -> Response:
        loaded = self.models.loaded
        models = [ServedModel(name, loaded[name], self._remarks("", name)) for name in self.models.names]
        return whole_response(render_models(models, request.model, max_audio_bytes=self.transcriber.settings.max_audio_bytes), request_id)

    def _remarks(self, asked: str, model: str) -> tuple[str, ...]:
        """What a reply of `model` has to say about it when the request asked for the model `asked`."""
        return remarks(asked, model, demonstration=self.models.is_demonstration(model))


def header(headers: Mapping[str, Any], name: str) -> str:
    """The value of a header, whose name may have any case; "" when it is missing."""
    name = name.lower()
    return next((value for key, value in headers.items() if key.lower() == name and isinstance(value, str)), "")
