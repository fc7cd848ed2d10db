"""`whispercore transcribe` without a server: in this process, with the bundled model or an engine without weights."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CLIENTS = ROOT / "clients"
sys.path.insert(0, str(CLIENTS))

import download_model  # noqa: E402
import environment  # noqa: E402
import feeding  # noqa: E402
import transcribe  # noqa: E402
import weights  # noqa: E402

from tests.unit.clients.terminals import on_a_terminal, read_until  # noqa: E402
from tests.unit.doubles import Recorder, serving, wav  # noqa: E402
from whispercore.options import Options  # noqa: E402
from whispercore.serving.transcriber import Transcriber  # noqa: E402

FAKE = ("--engine", "fake", "--option", "vad_filter=false")
NANO = ROOT / "whisper-models" / "nano.pt"


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with an empty cache and without settings."""
    for name in list(os.environ):
        if name.startswith("WHISPER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def talks(tmp_path: Path) -> list[str]:
    for number, (name, seconds) in enumerate({"a.wav": 40, "b.wav": 2, "c.wav": 3}.items()):
        (tmp_path / name).write_bytes(wav(seconds, seed=number))
    return [str(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]


@pytest.mark.slow
def test_a_real_model_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main_here([str(ROOT / "samples" / "timer.flac"), "--model", "nano", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    reply = json.loads(out)
    assert (reply["text"], reply["model"]) == ("Set a timer for five minutes.", "nano") and reply["segments"]
    assert err.startswith(f"{ROOT / 'samples' / 'timer.flac'}: warning: nano is a demonstration model")


def test_standard_output_keeps_the_order_of_the_arguments(talks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main_here([*talks, *FAKE]) == 0
    texts, err = capsys.readouterr()
    assert err == "".join(f"==> {talk}\n" for talk in talks)
    assert [len(text.split()) for text in texts.splitlines()] == [48, 3, 4]


@pytest.mark.parametrize("form", ["text", "json", "verbose_json", "srt", "vtt", "tsv"])
def test_files_are_those_of_the_servers_forms(form: str, talks: list[str], tmp_path: Path) -> None:
    from whispercore.api.reply import render
    from whispercore.api.request import parse

    out = tmp_path / "out"
    assert transcribe.main_here([talks[1], *FAKE, "--format", form, "--output-dir", str(out), "--quiet"]) == 0
    request = parse({"body": b"-", "response_format": form, "vad_filter": "false"}, {})
    with Transcriber(engine=Recorder()) as transcriber:
        transcript = transcriber.submit(talks[1], request.options).result(20)
    [path] = out.iterdir()
    assert path.read_bytes() == render(transcript, request.reply, model="nano").payload


def test_one_bad_file_stops_no_other(talks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.mp3").write_text("no sound")
    (tmp_path / "a.wav").write_bytes(b"")
    out = tmp_path / "out"
    assert transcribe.main_here([str(tmp_path), *FAKE, "--output-dir", str(out)]) == 1
    err = capsys.readouterr().err
    assert "words.mp3: the upload is not audio" in err and "a.wav: the upload is empty" in err
    assert {path.name for path in out.iterdir()} == {"b.txt", "c.txt"}
    assert "2 of 4 failed: the same command with --skip-existing sends only those" in err


def test_segments_as_they_come(talks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main_here([talks[0], *FAKE, "--stream"]) == 0
    lines = capsys.readouterr().out.splitlines()
    times = [(float(line[:9]), float(line[10:19])) for line in lines]
    assert times[0][0] == 0.0 and times[-1][1] == 40.0 and times == sorted(times)
    assert sum(len(line[20:].split()) for line in lines) == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--option", "beem_size=5"], "did you mean 'beam_size'?"),
        (["--local", "--url", "http://h"], "--local needs no server"),
        (["--max-bytes", "1"], "are for a server"),
        (["--no-extract"], "are for a server"),
        (["--server", "http://h", "--model", "base"], "its own settings decide"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, talks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        transcribe.main_here([talks[0], *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--setting", "thread=1"], "error: unknown setting 'thread'"),
        (["--model", "bass"], "error: no checkpoint at"),
        (["--engine", "quick"], "error: setting 'engine' must be one of"),
    ],
)
def test_settings_that_cannot_be_used(arguments: list[str], message: str, talks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main_here([talks[0], *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_script_stays_a_client_of_the_server(
    talks: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(transcribe.Sending, "all", lambda self, jobs: asked.append(self._server.url) or 0)
    assert transcribe.main([talks[0]]) == 0
    assert asked == ["http://localhost:8080/predictions/whisper"]
    assert transcribe.main([talks[0], "--local", *FAKE]) == 0
    assert transcribe.main_here([talks[0], "--server", "http://h/predictions/whisper"]) == 0
    assert asked[1:] == ["http://h/predictions/whisper"]


# Models


class Models(SimpleHTTPRequestHandler):
    """Serves a file under any path."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        content = NANO.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.slow
def test_a_missing_model_is_fetched_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "MODELS", tmp_path / "none")
    monkeypatch.setitem(download_model.SHA256, "base", hashlib.sha256(NANO.read_bytes()).hexdigest())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    server.asked = []  # type: ignore[attr-defined]
    monkeypatch.setenv("WHISPER_DOWNLOAD_URL", f"http://127.0.0.1:{server.server_port}")
    call = [str(ROOT / "samples" / "timer.flac"), "--setting", "device=cpu"]
    with serving(server):
        assert transcribe.main_here(call) == 0
        out, err = capsys.readouterr()
        models = tmp_path / "cache" / "whisper-torchserve" / "models"
        assert out == "Set a timer for five minutes.\n"
        assert f"fetching the model base into {models}: it is not there yet\n" in err
        assert (models / "base.pt").read_bytes() == NANO.read_bytes()
        assert list((tmp_path / "cache" / "whisper-torchserve" / "converted").iterdir())
        assert transcribe.main_here(call) == 0  # it is there now
    assert len(server.asked) == 1  # type: ignore[attr-defined]
    assert "fetching" not in capsys.readouterr().err


def test_a_model_that_cannot_be_fetched_is_one_error(
    talks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise download_model.DownloadFailed("no connection: check the network")

    monkeypatch.setattr(environment, "MODELS", tmp_path / "none")
    monkeypatch.setattr(weights, "download", fail)
    assert transcribe.main_here([talks[0], "--model", "small"]) == 1
    assert "error: the model small cannot be fetched: no connection: check the network; --model PATH" in capsys.readouterr().err


def test_where_models_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "prepare", lambda settings: "")
    monkeypatch.setattr(environment, "MODELS", tmp_path / "checkout")
    for folder in ("checkout", "mine", "cache/whisper-torchserve/models"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "small.pt").touch()
    (tmp_path / "cache/whisper-torchserve/models/medium.pt").touch()
    assert weights.prepared_settings({"model": "small"}).models_path == tmp_path / "checkout"
    assert weights.prepared_settings({"model": "medium"}).models_path == tmp_path / "cache/whisper-torchserve/models"
    monkeypatch.setenv("WHISPER_MODELS_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("WHISPER_MODEL", "small")
    assert weights.prepared_settings({}).models_path == tmp_path / "mine"
    assert weights.prepared_settings({"models_dir": str(tmp_path / "checkout")}).models_path == tmp_path / "checkout"
    assert weights.prepared_settings({"engine": "fake"}).engine == "fake"
    assert weights.prepared_settings({}).max_audio_seconds > 100_000


# Several at once


def test_as_many_are_open_as_fill_the_batches(tmp_path: Path) -> None:
    """A long recording alone fills them; short ones share them."""
    paths = [tmp_path / f"{number}.wav" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(wav(300 if number == 0 else 1, seed=number))
    engine, most = Recorder(max_batch=4, delay=0.1), []
    options = Options(vad_filter=False)
    with Transcriber(engine=engine) as transcriber:

        def opened(path: Path) -> Any:
            return path.open("rb")

        def watch(running: Any) -> None:
            most.append(len(running))

        work = feeding.transcribed(transcriber, paths, opened, options, size=lambda path: path.stat().st_size, on_wait=watch)
        outcomes = list(work)
    assert {outcome.item for outcome in outcomes} == set(paths) and all(outcome.transcript for outcome in outcomes)
    assert most[0] == 1 and 2 <= max(most) <= 8
    assert max(engine.batches) >= 3


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_files(talks: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"""
import sys
sys.path.insert(0, {str(CLIENTS)!r})
import environment, local, transcribe
from whispercore.engines.fake import FakeEngine
from whispercore.serving.transcriber import Transcriber
local.Transcriber = lambda settings: Transcriber(engine=FakeEngine(max_batch=1, delay=0.5))
sys.exit(environment.run(transcribe.main_here))
"""
    command = [sys.executable, "-c", script, *talks, *FAKE, "--output-dir", str(out)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out.is_dir() and list(out.glob("*.txt"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert all(path.suffix == ".txt" and path.read_text().endswith("\n") for path in out.iterdir()) and len(list(out.iterdir())) < 3


@pytest.mark.slow
def test_bars_for_each_recording_and_for_all(talks: list[str]) -> None:
    process, terminal = on_a_terminal(*talks, "--local", *FAKE)
    threading.Thread(target=process.wait, daemon=True).start()
    said = read_until(terminal, "3 of 3 recordings transcribed", 60)
    assert "of 3 recordings" in said and "a.wav" in said
    assert process.wait(30) == 0
    os.close(terminal)
