"""This repository's own image on SageMaker: its contract, against a real ./serve.sh that is started as SageMaker starts it."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from deploy.sagemaker.invocation import content_type
from tests.serve.server import ROOT, Server

pytestmark = [pytest.mark.serve, pytest.mark.slow]
SOUND = ROOT / "samples" / "timer.flac"
WORDS = "Set a timer for five minutes."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With weights in the folder of SageMaker, and another model in the image's place."""
    folder = tmp_path_factory.mktemp("sagemaker")
    model = folder / "ml" / "model"
    model.mkdir(parents=True)
    shutil.copy(ROOT / "whisper-models" / "nano.pt", model / "tuned.pt")
    (model / "code").mkdir()
    started = Server(
        folder,
        folder / "state",
        arguments=("serve",),
        SAGEMAKER_BASE_DIR=str(folder / "ml"),
        WHISPER_MODEL=str(folder / "the-images-own.pt"),
    )
    try:
        yield started.wait_until_ready()
        assert started.stop() == 0, started.output
    finally:
        started.clean_up()


@pytest.fixture(params=["torchserve", "gateway"])
def address(server: Server, request: pytest.FixtureRequest) -> str:
    return f"http://127.0.0.1:{server.port if request.param == 'torchserve' else server.gateway_port}"


def test_it_answers_health_checks_within_sagemakers_two_seconds(address: str) -> None:
    assert requests.get(f"{address}/ping", timeout=2).status_code == 200


def test_the_weights_are_those_of_the_folder(address: str) -> None:
    reply = requests.post(f"{address}/invocations", data=SOUND.read_bytes(), headers={"Content-Type": "audio/flac"}, timeout=60)
    assert reply.status_code == 200 and reply.headers["Content-Type"] == "application/json"
    assert (reply.json()["text"], reply.json()["model"]) == (WORDS, "tuned")


def test_options_in_content_type(address: str) -> None:
    headers = {"Content-Type": content_type("audio/flac", {"language": "en", "response_format": "srt"})}
    reply = requests.post(f"{address}/invocations", data=SOUND.read_bytes(), headers=headers, timeout=60)
    assert reply.status_code == 200 and WORDS in reply.text and "-->" in reply.text
    refused = requests.post(
        f"{address}/invocations",
        data=SOUND.read_bytes(),
        headers={"Content-Type": content_type("audio/flac", {"language": "xx"})},
        timeout=60,
    )
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "x-whisper-language"


def test_options_in_json_and_accept(address: str) -> None:
    body = {"audio": base64.b64encode(SOUND.read_bytes()).decode(), "language": "en", "word_timestamps": True}
    reply = requests.post(f"{address}/invocations", json=body, timeout=60)
    assert reply.status_code == 200 and reply.json()["segments"][0]["words"]
    headers = {"Content-Type": "audio/flac", "Accept": "text/vtt"}
    assert requests.post(f"{address}/invocations", data=SOUND.read_bytes(), headers=headers, timeout=60).text.startswith("WEBVTT")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["one.pt", "two.pt"], "holds several checkpoints: one.pt, two.pt; set WHISPER_MODEL to the path of one"),
        (["weights.bin"], "no checkpoint in .*/ml/model, which holds weights.bin: a checkpoint is a .pt file or a folder"),
        (["cut.pt"], "cut.pt cannot be read as a checkpoint, it may be cut short"),
    ],
)
def test_weights_that_cannot_be_served_end_the_start_with_one_line(server: Server, tmp_path: Path, files: list[str], message: str) -> None:
    model = tmp_path / "ml" / "model"
    model.mkdir(parents=True)
    for name in files:
        (model / name).write_bytes(b"PK\x03\x04")
    started = Server(tmp_path, server.folder / "state", arguments=("serve",), SAGEMAKER_BASE_DIR=str(tmp_path / "ml"))
    try:
        assert started.wait_until_over() == 1
    finally:
        started.clean_up()
    lines = [line for line in started.output.splitlines() if line.startswith(("error:", "serve.sh:"))]
    assert len(lines) == 1, started.output
    assert re.search(message, lines[0])
