"""Two real models in one server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, words
from tests.serve.server import ROOT, Gateway, running, wait_for

TIMER = (SAMPLES / "timer.flac").read_bytes()
MODELS = Path(os.environ.get("WHISPER_MODELS_DIR") or ROOT / "whisper-models")
SECOND = next((path for path in (MODELS / "tiny.en", MODELS / "tiny.en.pt") if path.exists()), None)

pytestmark = pytest.mark.skipif(SECOND is None, reason="tiny.en is missing: python3 clients/download_model.py tiny.en")


def listed(gateway: Gateway) -> dict[str, bool]:
    models = requests.get(f"{gateway.openai_url}/models", timeout=60).json()["data"]
    return {model["id"]: model["loaded"] for model in models}


def transcribe(gateway: Gateway, model: str) -> requests.Response:
    url = f"{gateway.openai_url}/audio/transcriptions"
    reply = requests.post(url, files={"file": TIMER}, data={"model": model}, timeout=300)
    assert reply.status_code == 200, reply.text
    return reply


@pytest.mark.parametrize("kind", ["gateway", "inprocess"])
def test_two_models_by_name(tmp_path: Path, state: Path, kind: str) -> None:
    arguments = ("--inprocess",) if kind == "inprocess" else ()
    with running(tmp_path, state, arguments, WHISPER_MODELS="nano,tiny.en", WHISPER_MODELS_IDLE_SECONDS="3") as server:
        gateway = server.gateway(kind)
        assert listed(gateway) == {"nano": True, "tiny.en": False}
        for asked, model in (("tiny.en", "tiny.en"), ("nano", "nano"), ("whisper-1", "nano"), ("openai/whisper-tiny.en", "tiny.en")):
            reply = transcribe(gateway, asked)
            assert reply.headers["x-whisper-model"] == model
            text = reply.json()["text"].replace("5", "five")  # tiny.en writes digits, nano words
            assert words(text) == words(TRANSCRIPTS["timer.flac"])
        assert listed(gateway)["tiny.en"] and gateway.metric("whisper_model_loaded") == 2
        wait_for(lambda: not listed(gateway)["tiny.en"], 60, "tiny.en is unloaded")
        wait_for(lambda: gateway.metric("whisper_model_loaded") == 1, 60, "the metric says so")
        assert transcribe(gateway, "tiny.en").headers["x-whisper-model"] == "tiny.en"
