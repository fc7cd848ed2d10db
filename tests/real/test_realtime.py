"""Realtime transcription by OpenAI's base of a recording that is played at the speed of speech."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from websockets.sync.client import connect

from bench import datasets
from bench.peers import Setup
from gateway.inprocess import InProcess
from tests.unit.gateway.conftest import Served, serve
from whispercore import checkpoints
from whispercore.errors import ConfigurationError
from whispercore.serving.transcriber import Transcriber
from whispercore.torchserve.handshake import CLIENT_HEADER

pytestmark = pytest.mark.slow
MODEL = Setup(model="base", device="cpu", threads=2)
RATE, STEP = 24_000, 0.1
EVENT = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    try:
        checkpoints.locate(MODEL.located)
    except ConfigurationError as error:
        pytest.skip(f"the model base is needed: {error}")
    transcriber = Transcriber(replace(MODEL.settings("ct2", "int8"), client_header=CLIENT_HEADER))
    with serve(tmp_path_factory.mktemp("gateway"), backend=InProcess(lambda: transcriber)) as running:
        yield running


def recording(speech: Callable[[str], datasets.Set]) -> Path:
    """One of LibriSpeech's of about twelve seconds."""
    return next(item.path for item in speech("test-clean").recordings if 11.5 < item.seconds < 12.5)


def played(served: Served, path: Path) -> list[dict[str, Any]]:
    """The events of a session in which the recording is one turn, sent as it would be spoken."""
    sound, rate = soundfile.read(path, dtype="float32")
    sound = np.concatenate([soxr.resample(sound, rate, RATE), np.zeros(3 * RATE, np.float32)])
    data = (sound * 32_767).astype("<i2").tobytes()
    vad = {"type": "server_vad", "silence_duration_ms": 2_000}
    options = {"transcription": {"model": "whisper-1", "language": "en"}, "turn_detection": vad}
    found: list[dict[str, Any]] = []
    with connect(f"ws://127.0.0.1:{served.port}/v1/realtime?intent=transcription") as client:
        client.send(json.dumps({"type": "session.update", "session": {"type": "transcription", "audio": {"input": options}}}))
        began, size = time.monotonic(), round(2 * RATE * STEP)
        for i, at in enumerate(range(0, len(data), size), start=1):
            audio = base64.b64encode(data[at : at + size]).decode()
            client.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            time.sleep(max(0.0, began + i * STEP - time.monotonic()))  # the pace of speech
        while not found or found[-1]["type"] not in (f"{EVENT}.completed", f"{EVENT}.failed"):
            found.append(json.loads(client.recv(timeout=120)))
    return found


def test_the_text_is_that_of_the_file(served: Served, speech: Callable[[str], datasets.Set]) -> None:
    path = recording(speech)
    found = played(served, path)
    form = {"model": "whisper-1", "language": "en"}
    expected = served.client.post("/v1/audio/transcriptions", files={"file": path.open("rb")}, data=form).json()["text"]
    transcript = found[-1]["transcript"]
    assert words(transcript) == words(expected)
    sent = "".join(event["delta"] for event in found if event["type"] == f"{EVENT}.delta")
    assert transcript.startswith(sent) == (sent == transcript), "deltas that begin the transcript are completed"
    kinds = [event["type"] for event in found]
    assert kinds.index(f"{EVENT}.delta") < kinds.index("input_audio_buffer.speech_stopped"), "there is text while the turn is open"


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())
