"""The Lambda function: an event in, its result out, with the server's own parsing, replies and errors."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import http_events
import plain_payload
import s3_events
from function_errors import ReplyTooLarge, UnknownEvent
from invocation import CORE_MEGABYTES, Deadline, LambdaContext, answer
from s3_objects import Objects, Place

from whispercore.api.fields import RAW_FIELD
from whispercore.devices import logical_cores
from whispercore.errors import ConfigurationError, EngineError, WhisperError
from whispercore.serving.intake import Intake
from whispercore.serving.response import Response, error_response
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings

logger = logging.getLogger(__name__)

MAX_REPLY = 6_291_556
"""Bytes of a result that Lambda carries, in JSON with everything beyond ASCII escaped."""


class Function:
    """The model and the configuration, which all invocations of one environment share. Lambda makes one at a time."""

    def __init__(self, environ: Mapping[str, str] = os.environ, transcriber: Transcriber | None = None) -> None:
        """`transcriber`: by default one with the settings of the environment. Raises ConfigurationError."""
        self.output = s3_events.Output.load(environ)
        self.key = environ.get("WHISPER_API_KEY", "")
        self.objects = Objects()
        settings = Settings.load({"engine": "ct2", "device": "cpu", "threads": cores(environ)}, environ)
        self.intake = Intake(transcriber or Transcriber(settings))
        self._check_options()

    def __call__(self, event: Any, context: LambdaContext) -> Any:
        """The result for one event. Raises what makes Lambda try again: see `s3_events` and `plain_payload`."""
        deadline = Deadline.of(context)
        if not isinstance(event, Mapping):
            raise UnknownEvent(f"an event must be a JSON object; got {type(event).__name__}")
        if http_events.is_http(event):
            return self._http(event, context.aws_request_id, deadline)
        if s3_events.is_s3(event):
            return s3_events.transcribe_all(self.intake, self.objects, self.output, event, context.aws_request_id, deadline)
        if plain_payload.is_payload(event):
            return self._plain(event, context.aws_request_id, deadline)
        names = ", ".join(sorted(str(name)[:40] for name in event)[:10]) or "none"
        raise UnknownEvent(
            f"the function does not know this event (its fields: {names}): it takes notifications of S3, requests of a function URL or "
            f"of API Gateway, and payloads with one of {', '.join(plain_payload.SOURCES)}"
        )

    def close(self) -> None:
        """Free the model."""
        self.intake.models.close()

    def _http(self, event: Mapping[str, Any], request_id: str, deadline: Deadline) -> Any:
        try:
            fields, headers = http_events.read(event)
            if self.key and headers["url_path"] != "health/ready":
                http_events.check_key(headers, self.key)
            if http_events.behind_gateway(event):
                deadline = deadline.at_most(http_events.GATEWAY_SECONDS, http_events.GATEWAY_ADVICE)
            response = answer(self.intake, request_id, fields, headers, deadline).response
            if _size(result := http_events.result(response)) > MAX_REPLY:
                place = self._place_for(response, request_id)
                self.objects.write(place, response.payload, response.content_type, {})
                return http_events.redirect(self.objects.link(place), response)
        except WhisperError as error:
            logger.info("request %s refused with %d: %s", request_id, error.status, error.message)
            return http_events.result(error_response(error, request_id))
        except Exception as error:  # API Gateway would answer 502, without a word
            logger.exception("request %s could not be answered", request_id)
            return http_events.result(error_response(EngineError(f"the request could not be answered: {error}"), request_id))
        return result

    def _plain(self, payload: Mapping[str, Any], request_id: str, deadline: Deadline) -> Any:
        try:
            place = plain_payload.output_of(payload)
            response = plain_payload.transcribe(self.intake, self.objects, payload, request_id, deadline)
            result = plain_payload.result(response)
            if place is None and _size(result) > MAX_REPLY:
                place = self._place_for(response, request_id)
            if place is not None:
                self.objects.write(place, response.payload, response.content_type, {})
                return {"result": str(place)}
        except WhisperError as error:
            logger.info("request %s refused with %d: %s", request_id, error.status, error.message)
            return plain_payload.result(error_response(error, request_id))
        return result

    def _place_for(self, response: Response, request_id: str) -> Place:
        """Where a reply goes that is too large for Lambda. Raises ReplyTooLarge when there is no bucket for it.

        `request_id`: Lambda's. One that the client has chosen could name the reply of another request.
        """
        if not self.output.bucket:
            raise ReplyTooLarge(
                f"the reply has {len(response.payload):,} bytes, more than Lambda carries ({MAX_REPLY:,}): set WHISPER_OUTPUT_BUCKET, "
                "and it goes there; or ask for less (response_format=text or srt, no words, no logprobs)"
            )
        suffix = ".json" if response.content_type == "application/json" else ".txt"
        return Place(self.output.bucket, f"{self.output.prefix}replies/{request_id}{suffix}")

    def _check_options(self) -> None:
        """Raise ConfigurationError for options of S3's recordings that no request could have."""
        for name in self.output.formats:
            try:
                self.intake.jobs.check({**self.output.options, "response_format": name, RAW_FIELD: b"-"}, {})
            except WhisperError as error:
                raise ConfigurationError(f"WHISPER_OUTPUT_OPTIONS: {error.message}", param="WHISPER_OUTPUT_OPTIONS") from None


def cores(environ: Mapping[str, str]) -> int:
    """The cores that Lambda gives for the function's memory, of those that there are; elsewhere 0, for the physical ones."""
    return min(math.ceil(int(environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "0")) / CORE_MEGABYTES), logical_cores())


def _size(result: Any) -> int:
    """The bytes of a result as the runtime interface client sends it."""
    return len(json.dumps(result))
