"""The inference script without a toolkit: its functions in the order in which both toolkits call them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.sagemaker.code import inference
from tests.unit.doubles import wav
from whispercore.errors import ConfigurationError
from whispercore.serving.intake import Intake

SOUND = wav(2.0)


class Context:
    """The toolkits' context: the headers of the request, and what the script sets for the reply."""

    def __init__(self, **headers: str) -> None:
        self.request_processor = [self]
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.status: tuple[int, str, int] | None = None
        self.reply_headers: dict[str, str] = {}

    def get_request_properties(self) -> dict[str, str]:
        return self._headers

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        self.status = code, phrase, index

    def set_response_header(self, _: int, name: str, value: str) -> None:
        self.reply_headers[name] = value


@pytest.fixture
def intake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Intake]:
    monkeypatch.setenv("WHISPER_ENGINE", "fake")
    made = inference.model_fn(str(tmp_path))
    yield made
    made.transcriber.close()


def answer(intake: Intake, data: Any, context: Context, accept: str = "application/json") -> tuple[int, Any]:
    """As sagemaker_inference's transformer and Hugging Face's handler service call the script."""
    read = inference.input_fn(data, context.get_request_properties().get("Content-Type"), context)
    result = inference.output_fn(inference.predict_fn(read, intake, context), accept, context)
    assert context.status
    return context.status[0], result


def test_a_recording(intake: Intake) -> None:
    context = Context(Content_Type="audio/wav; x-whisper-language=en", Accept="application/json")
    status, (body, kind) = answer(intake, bytearray(SOUND), context)
    assert (status, kind) == (200, "application/json")
    assert json.loads(body)["language"] == "en" and json.loads(body)["duration"] == 2.0
    assert context.reply_headers["x-whisper-model"] == Path(intake.transcriber.settings.model).name


def test_json_arrives_as_text(intake: Intake) -> None:
    text = json.dumps({"audio": base64.b64encode(SOUND).decode(), "response_format": "srt"})
    status, (_, kind) = answer(intake, text, Context(Content_Type="application/json"))
    assert (status, kind) == (200, "application/x-subrip; charset=utf-8")


def test_hugging_faces_toolkit_gets_the_body_alone(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot take a pair, and sets the Content-Type itself."""
    monkeypatch.setattr(inference, "IN_HUGGING_FACE", True)
    status, body = answer(intake, SOUND, Context(Content_Type="audio/x-flac"))
    assert status == 200 and json.loads(body)["duration"] == 2.0


@pytest.mark.parametrize(
    ("data", "kind", "status", "message"),
    [
        (b"no sound", "audio/wav", 415, "the upload is not audio"),
        (b"", "audio/wav", 400, "the file is empty"),
        ("{", "application/json", 400, "the body is not valid JSON"),
        (None, "multipart/form-data; boundary=x", 400, "this container takes no forms"),
        (SOUND, "audio/wav; x-whisper-task=sing", 400, "x-whisper-task must be one of"),
    ],
)
def test_bad_input_has_its_status(intake: Intake, data: Any, kind: str, status: int, message: str) -> None:
    context = Context(Content_Type=kind)
    code, (body, content_type) = answer(intake, data, context)
    assert (code, content_type) == (status, "application/json")
    assert json.loads(body)["error"]["message"].startswith(message)
    assert len(intake.jobs) == 0


def test_a_header_cannot_choose_another_path(intake: Intake) -> None:
    context = Context(Content_Type="audio/wav")
    context.get_request_properties()["url_path"] = "v1/models"
    status, (body, _) = answer(intake, SOUND, context)
    assert status == 200 and "segments" in json.loads(body)


def test_a_folder_without_weights_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_DEVICE", "cpu")
    (tmp_path / "code").mkdir()
    with pytest.raises(ConfigurationError, match=r"no checkpoint in .*, which holds code"):
        inference.model_fn(str(tmp_path))
