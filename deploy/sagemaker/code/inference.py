"""SageMaker's inference script: the native route inside AWS's own containers, PyTorch's and Hugging Face's.

Both toolkits call model_fn once, and for each request input_fn, predict_fn and output_fn. Options and replies are those
of `/predictions/whisper`. SageMaker forwards no headers of the client's, so the options of a raw recording are
parameters of Content-Type: `audio/flac; x-whisper-language=en`.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from whispercore import Settings, Transcriber
from whispercore.api.multipart import is_form
from whispercore.checkpoints import prepare
from whispercore.errors import InvalidRequest
from whispercore.serving.intake import Intake
from whispercore.serving.response import Response, error_response

IN_HUGGING_FACE = "sagemaker_huggingface_inference_toolkit" in sys.modules
"""Whether Hugging Face's toolkit has imported this script. It sends the request's Accept as the reply's Content-Type."""


class Incoming(NamedTuple):
    """A request as the core's `parse` takes it."""

    fields: Mapping[str, Any]
    headers: Mapping[str, Any]


def model_fn(model_dir: str) -> Intake:
    """Load the checkpoint in `model_dir`. WHISPER_ variables of the endpoint's model change the settings.

    Raises ConfigurationError when there is no checkpoint, or several and WHISPER_MODEL names none of them.
    """
    converted = Path(tempfile.gettempdir()) / "whisper-converted"  # the folder of the model is read-only
    settings = Settings.load({"model": model_dir, "converted_dir": str(converted)})
    prepare(settings)
    transcriber = Transcriber(settings)
    transcriber.start_reading()
    return Intake(transcriber)


def input_fn(data: bytes | bytearray | str | None, content_type: str | None, context: Any) -> Incoming | InvalidRequest:
    """The body and the headers. The toolkits decode JSON to text, and pass None for a form, whose fields they drop."""
    if data is None and is_form(content_type or ""):
        return InvalidRequest("this container takes no forms: send the recording as the body, or as base64 in JSON", param="file")
    headers = context.request_processor[0].get_request_properties()
    # The toolkits serve one path; `url_path` is how TorchServe passes the paths of OpenAI's API.
    return Incoming({"body": data}, {name: value for name, value in headers.items() if name.lower() != "url_path"})


def predict_fn(incoming: Incoming | InvalidRequest, intake: Intake, _: Any) -> Response:
    """The whole reply, of a stream too. An error of the request is a reply with its status."""
    request_id = uuid.uuid4().hex
    if isinstance(incoming, InvalidRequest):
        return error_response(incoming, request_id)
    news = threading.Event()
    opened = intake.receive(request_id, incoming.fields, incoming.headers, news.set)
    if isinstance(opened, Response):
        return opened
    try:
        while not opened.job.ended:
            news.wait()
            news.clear()
        response = opened.respond(allow_empty=False)
    finally:
        intake.jobs.detach(opened.attachment)
    assert response is not None, "a job that has ended has its last response"
    return response


def output_fn(response: Response, _: str, context: Any) -> bytes | tuple[bytes, str]:
    """The body, and for the PyTorch container its Content-Type. The status and the headers go into the context."""
    context.set_response_status(response.status, response.reason, 0)
    for name, value in response.headers.items():
        context.set_response_header(0, name, value)
    return response.payload if IN_HUGGING_FACE else (response.payload, response.content_type)
