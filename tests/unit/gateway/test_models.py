"""Several models through the gateway in process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.inprocess import InProcess
from tests.unit.doubles import PATIENCE, wav
from tests.unit.gateway.conftest import CORE, Served, serve, wait_for
from whispercore.serving.transcriber import Transcriber

PLAIN = {"vad_filter": "false"}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Lets the model `second` be loaded."""
    gate = threading.Event()
    monkeypatch.setattr("whispercore.serving.models.prepare", lambda settings: gate.wait(PATIENCE))
    yield gate
    gate.set()


@pytest.fixture
def two_models(tmp_path: Path, gate: threading.Event) -> Iterator[Served]:
    core = replace(CORE, engine="fake", model="first", models="first,second", models_idle_seconds=0.2)
    with serve(tmp_path, backend=InProcess(lambda: Transcriber(core))) as served:
        yield served
        gate.set()


def listed(served: Served) -> dict[str, bool]:
    return {model["id"]: model["loaded"] for model in served.client.get("/v1/models").json()["data"]}


def ask(served: Served, model: str, **arguments: Any) -> httpx.Response:
    return served.client.post("/v1/audio/transcriptions", files={"file": wav(1)}, data={"model": model, **PLAIN}, **arguments)


def test_a_model_is_loaded_on_first_use_and_unloaded_when_idle(two_models: Served, gate: threading.Event) -> None:
    assert listed(two_models) == {"first": True, "second": False}
    assert two_models.metric("whisper_model_loaded") == 1
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, two_models, "second") for _ in range(2)]
        wait_for(lambda: two_models.metric("whisper_open_requests") == 2)
        assert ask(two_models, "whisper-1").headers["x-whisper-model"] == "first"
        gate.set()
        assert {reply.result().headers["x-whisper-model"] for reply in waiting} == {"second"}
    wait_for(lambda: not listed(two_models)["second"], "unloading")
    assert 'whisper_model_loaded{model="second"} 0.0' in two_models.client.get("/metrics").text
    assert ask(two_models, "second").json()["text"]
    assert two_models.client.get("/v1/models/whisper-second").json()["id"] == "second"


def test_a_client_that_leaves_does_not_wait_for_its_model(two_models: Served, gate: threading.Event) -> None:
    with pytest.raises(httpx.ReadTimeout):
        ask(two_models, "second", timeout=0.3)
    wait_for(lambda: two_models.metric("whisper_open_requests") == 0, "the request has been dropped")
    windows = two_models.metric("whisper_windows_total")
    gate.set()
    assert ask(two_models, "second").status_code == 200
    assert two_models.metric("whisper_windows_total") == windows + 1


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_requests(two_models: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: object) -> None:
        raise OSError("the disk is broken")

    monkeypatch.setattr("whispercore.serving.models.prepare", broken)
    for _ in range(2):
        reply = ask(two_models, "second")
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "model_not_loaded")
        assert "disk" not in reply.text
    assert ask(two_models, "first").status_code == 200
