"""The whole function under the Runtime API emulator: awslambdaric, the model, real sound; also where only /tmp can be written."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import bake_model
import numpy as np
import pytest
import soundfile

from bench import datasets
from bench.scores import plain
from bench.serverless import SANDBOX
from tests.unit.doubles import PATIENCE
from whispercore.errors import ConfigurationError

from .conftest import FILES, ROOT
from .test_http_events import FORM, form, url_event

pytestmark = pytest.mark.slow

MEMORY = 10 << 30
TIMER = (ROOT / "samples" / "timer.flac").read_bytes()
WORDS = "Set a timer for five minutes."


@cache
def missing_sandbox() -> str:
    """Why there is no sandbox; empty when there is one."""
    if not shutil.which("bwrap"):
        return "bwrap is missing (Debian: apt install bubblewrap)"
    done = subprocess.run([*SANDBOX, "true"], capture_output=True, text=True)
    return done.stderr.strip()


@pytest.fixture(params=["read-only", "open"])
def sandbox(request: pytest.FixtureRequest) -> Sequence[str]:
    """What stands before the command: a sandbox, or nothing."""
    if request.param == "open":
        return ()
    if reason := missing_sandbox():
        pytest.skip(f"no read-only sandbox: {reason}")
    return (*SANDBOX, "prlimit", f"--as={MEMORY}")


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    """A folder for models. Within /tmp the sandbox would hide it."""
    folder = ROOT / "build" / f"lambda-models-{os.getpid()}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nano(models: Path) -> Path:
    bake_model.bake(ROOT / "whisper-models" / "nano.pt", models / "nano")
    return models / "nano"


class Emulated:
    """The emulator's process: `ask` sends an event and returns what became of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.started = self._line()

    def ask(self, event: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or "null")


@contextmanager
def emulated(model: Path, sandbox: Sequence[str], *options: str, status: int = 0, **variables: str) -> Iterator[Emulated]:
    """The function with this model. Its home cannot be written. `status`: of the emulator when it ends."""
    command = [*sandbox, sys.executable, str(FILES / "runtime_emulator.py"), *options]
    command += [sys.executable, "-m", "awslambdaric", "lambda_function.lambda_handler"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "AWS_"))}
    environment = {**inherited, "PYTHONPATH": f"{ROOT / 'src'}:{FILES}", "HOME": "/nonexistent", "WHISPER_MODEL": str(model), **variables}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Emulated(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE) == status
        finally:
            process.kill()


def payload(sound: bytes, **options: Any) -> Any:
    return {"audio": base64.b64encode(sound).decode(), **options}


def test_the_function_works_where_only_tmp_can_be_written(nano: Path, sandbox: Sequence[str]) -> None:
    with emulated(nano, sandbox, WHISPER_API_KEY="secret") as function:
        assert function.started["init_seconds"] > 0
        assert function.ask(payload(TIMER))["result"]["text"] == WORDS
        home = function.ask(payload((ROOT / "samples" / "home.flac").read_bytes(), response_format="srt", strategy="sequential"))
        assert "Close the garage door." in home["result"]["rendered"]
        body = form(file=TIMER, model="whisper-1")
        reply = function.ask(url_event(body, "/v1/audio/transcriptions", content_type=FORM, authorization="Bearer secret"))["result"]
        assert reply["statusCode"] == 200 and json.loads(reply["body"])["text"] == WORDS
        assert function.ask(url_event(TIMER))["result"]["statusCode"] == 401
        refused = function.ask(payload(b"no sound"))["error"]
        assert refused["errorType"] == "RequestFailed" and json.loads(refused["errorMessage"])["error"]["code"] == "unsupported_audio"
        assert function.ask({"strange": 1})["error"]["errorType"] == "UnknownEvent"
        assert "too large for the limit" in function.ask({"audio": "A" * 7_000_000})["error"]["errorMessage"]
        assert function.ask(payload(TIMER))["result"]["text"] == WORDS, "after all these errors"


def test_the_function_answers_before_lambda_ends_it(nano: Path) -> None:
    """Three hours of silence, every window decoded to its last token, within ten seconds."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, format="FLAC") as sound:
        for _ in range(180):
            sound.write(np.zeros(60 * 8000, np.float32))
    with emulated(nano, (), "--timeout", "10", WHISPER_FIXED_TOKENS="220") as function:
        error = function.ask(payload(file.getvalue(), vad_filter=False, language="en"))["error"]
        assert error["errorType"] == "FunctionFailed", "not: Task timed out"
        message = json.loads(error["errorMessage"])["error"]["message"]
        assert "were transcribed when the invocation's time was nearly over" in message and "more memory" in message


def test_a_missing_model_is_told_while_the_function_starts(models: Path) -> None:
    with emulated(models / "none", (), status=1) as function:
        assert "no checkpoint at" in function.started["error"]["errorMessage"]


def test_real_speech_is_understood(models: Path, sandbox: Sequence[str]) -> None:
    """OpenAI's base in 8 bits on a reading from LibriSpeech."""
    from whispercore import checkpoints
    from whispercore.settings import Settings

    try:
        base = checkpoints.locate(Settings.load({"model": "base"}))
        recording = datasets.named("test-clean").recordings[0]
    except ConfigurationError as error:
        pytest.skip(f"real speech and the model base are needed: {error}")
    if not (models / "base").exists():
        bake_model.bake(base, models / "base")
    with emulated(models / "base", sandbox) as function:
        result = function.ask(payload(recording.path.read_bytes(), word_timestamps=True))["result"]
    assert plain(result["text"]) == plain(recording.text) and all(segment["words"] for segment in result["segments"])


def test_the_emulator_is_as_strict_as_lambda(tmp_path: Path) -> None:
    """It ends an invocation at its timeout, and refuses a result beyond 6 MB."""
    (tmp_path / "handlers.py").write_text(
        "import time\ndef large(event, context):\n    return 'x' * 7_000_000\ndef slow(event, context):\n    time.sleep(60)\n"
    )
    emulator = [sys.executable, str(FILES / "runtime_emulator.py"), "--timeout", "1"]
    errors = {}
    for name in ("large", "slow"):
        command = [*emulator, sys.executable, "-m", "awslambdaric", f"handlers.{name}"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, input="{}\n", capture_output=True, text=True)
        errors[name] = json.loads(done.stdout.splitlines()[1])["error"]
    assert errors["large"]["errorType"] == "Function.ResponseSizeTooLarge"
    assert "timed out after 1.00 seconds" in errors["slow"]["errorMessage"]
