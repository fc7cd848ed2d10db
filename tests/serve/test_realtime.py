"""Realtime transcription with the official client: the gateway before TorchServe, and the gateway alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from openai import OpenAI
from openai.types.realtime import RealtimeTranscriptionSessionAudioInputParam

from tests.serve.server import Gateway

pytestmark = pytest.mark.parametrize("server", ["gateway", "inprocess"], indirect=True)
SAMPLES = Path(__file__).resolve().parents[2] / "samples"
EVENT = "conversation.item.input_audio_transcription"
RATE = 24_000


def pieces(name: str) -> Iterator[str]:
    """A sample and a second of silence, in base64, a tenth of a second each."""
    sound, rate = soundfile.read(SAMPLES / name, dtype="float32")
    sound = np.concatenate([soxr.resample(sound, rate, RATE), np.zeros(RATE, np.float32)])
    data = (sound * 32_767).astype("<i2").tobytes()
    for at in range(0, len(data), RATE // 5):
        yield base64.b64encode(data[at : at + RATE // 5]).decode()


def transcribed(server: Gateway, sound: RealtimeTranscriptionSessionAudioInputParam, name: str, *, commit: bool) -> list[Any]:
    """The events up to the first transcript."""
    client = OpenAI(base_url=server.openai_url, api_key="none")
    found: list[Any] = []
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        connection.session.update(session={"type": "transcription", "audio": {"input": sound}})
        for piece in pieces(name):
            connection.input_audio_buffer.append(audio=piece)
        if commit:
            connection.input_audio_buffer.commit()
        for event in connection:
            found.append(event)
            if event.type in (f"{EVENT}.completed", f"{EVENT}.failed", "error"):
                return found
    return found


def test_a_turn_found_by_the_server(server: Gateway) -> None:
    found = transcribed(
        server,
        {"transcription": {"model": "whisper-1", "language": "en"}, "turn_detection": {"type": "server_vad"}},
        "timer.flac",
        commit=False,
    )
    kinds = [event.type for event in found]
    assert kinds[:3] == ["session.created", "session.updated", "input_audio_buffer.speech_started"]
    assert kinds.index("input_audio_buffer.speech_stopped") < kinds.index("input_audio_buffer.committed")
    assert found[-1].transcript == "Set a timer for five minutes."
    assert "".join(event.delta for event in found if event.type == f"{EVENT}.delta") == found[-1].transcript
    assert len({event.item_id for event in found if hasattr(event, "item_id")}) == 1


def test_an_item_that_the_client_commits(server: Gateway) -> None:
    found = transcribed(server, {"turn_detection": None}, "code.ogg", commit=True)
    with (SAMPLES / "code.ogg").open("rb") as file:
        expected = OpenAI(base_url=server.openai_url, api_key="none").audio.transcriptions.create(file=file, model="whisper-1")
    assert found[-1].transcript == expected.text
    assert found[-1].usage.seconds == pytest.approx(soundfile.info(SAMPLES / "code.ogg").duration + 1, abs=0.02)
