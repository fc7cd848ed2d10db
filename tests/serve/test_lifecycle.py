"""serve.sh from start to stop: its messages, its files, its exit status and its processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, repeat, words
from tests.serve.server import ROOT, Server, wait_for

Start = Callable[..., Server]

TIMER = (SAMPLES / "timer.flac").read_bytes()
EXPECTED = words(TRANSCRIPTS["timer.flac"])


def refusal(server: Server) -> str:
    """The last line of a serve.sh that cannot start."""
    assert server.wait_until_over() == 1, server.output
    assert not server.processes()
    return server.output.splitlines()[-1]


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Starting


def test_a_second_start_sets_up_nothing(start: Start, state: Path) -> None:
    assert start().wait_until_ready().stop() == 0  # other tests share the folder, so this may be the first start with this engine
    before = snapshot(state)
    server = start().wait_until_ready()
    assert server.output.count("\n") == 1, "the ready line is the only output"
    assert snapshot(state) == before
    assert server.stop() == 0
    assert not server.processes()
    assert server.output.splitlines()[-1].endswith("stopped")


def test_a_port_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(start(TS_METRICS_ADDRESS=f"http://127.0.0.1:{port}"))
    assert f"127.0.0.1:{port}" in line
    assert "TS_METRICS_ADDRESS" in line


def test_an_invalid_address(start: Start) -> None:
    assert "TS_INFERENCE_ADDRESS must look like" in refusal(start(TS_INFERENCE_ADDRESS="localhost:8080"))


OFFLINE = {
    **dict.fromkeys(("WHISPER_DOWNLOAD_URL", "HF_ENDPOINT"), "http://127.0.0.1:9"),
    **{"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull},
}
"""Variables with which no source of weights can be reached."""


def test_an_unknown_model(start: Start, tmp_path: Path) -> None:
    line = refusal(start(WHISPER_MODEL="large-v3-turbo", WHISPER_MODELS_DIR=str(tmp_path), **OFFLINE))
    assert "large-v3-turbo.pt" in line
    assert "download_model.py" in line


def test_a_misspelt_model(start: Start) -> None:
    server = start(WHISPER_MODEL="bse")
    assert "did you mean base?" in refusal(server)
    assert server.output.count("\n") == 1


def test_without_a_network_it_serves_the_demonstration_model_and_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "nano.pt").symlink_to(ROOT / "whisper-models" / "nano.pt")
    server = start(WHISPER_MODEL="", WHISPER_MODELS_DIR=str(tmp_path), PIP_FIND_LINKS=str(SAMPLES), **OFFLINE).wait_until_ready()
    assert words(requests.post(server.url, data=TIMER, timeout=120).json()["text"]) == EXPECTED
    sources, ready = server.output.splitlines()[:-1], server.output.splitlines()[-1]
    for source in ("OpenAI's files: ", "the Hugging Face Hub: ", "the package index: "):
        assert sum(line.startswith(source) for line in sources) == 1, server.output
    assert "model nano" in ready and "demonstration model of a few sentences" in ready and "python3 clients/download_model.py base" in ready
    assert server.stop() == 0


def test_a_broken_checkpoint(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes((ROOT / "whisper-models" / "nano.pt").read_bytes()[:1_000_000])
    assert f"{broken} cannot be read" in refusal(start(WHISPER_MODEL=str(broken)))


def test_an_unknown_choice_of_a_setting(start: Start) -> None:
    assert "setting 'engine' must be one of" in refusal(start(WHISPER_ENGINE="steam"))


def test_a_misspelt_variable(start: Start) -> None:
    assert "WHISPER_MODLE: did you mean WHISPER_MODEL?" in refusal(start(WHISPER_MODLE="base"))


def test_an_old_java(start: Start, tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    line = refusal(start(JAVA_HOME=str(tmp_path)))
    assert f"JAVA_HOME={tmp_path} is not Java 17" in line


def test_no_python(start: Start, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "cat", "sed", "head", "readlink", "basename", "sha256sum"):
        (tools / name).symlink_to(str(shutil.which(name)))
    assert "no Python 3.10 or later" in refusal(start(WHISPER_VENV="", PATH=str(tools), state=tmp_path / "new"))


def test_too_little_disk(start: Start, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size=50m tmpfs {small} && exec "$@"'
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("mounting in a user namespace is not allowed, so there is no small file system to test with")
    line = refusal(start(prefix=prefix, TEMP=str(small)))
    assert "MB are needed" in line
    assert "set TEMP" in line


def test_a_worker_that_cannot_start(start: Start, state: Path, tmp_path: Path) -> None:
    """serve.sh prints the reason and ends. TorchServe alone would leave requests waiting forever."""
    handler = (
        "class Handler:\n def initialize(self, context):\n  raise OSError('no such device')\n def handle(self, data, context):\n  pass\n"
    )
    (tmp_path / "whisper_handler.py").write_text(handler)
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(state / "model-store" / "whisper.mar.sources", store)
    archiver = Path(os.environ.get("WHISPER_VENV", sys.prefix)) / "bin" / "torch-model-archiver"
    archive: list[str | Path] = [archiver, "--model-name", "whisper", "--version", "1.0", "--handler", tmp_path / "whisper_handler.py"]
    subprocess.run(
        [*archive, "--config-file", ROOT / "config" / "model-config.yaml", "--export-path", store], check=True, capture_output=True
    )
    line = refusal(start(TS_MODEL_STORE=str(store)))
    assert "OSError: no such device" in line


def test_a_read_only_checkout_and_a_user_who_is_not_root(start: Start, state: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in (
        "serve.sh",
        "clients",
        "server",
        "config",
        "gateway",
        "handler",
        "model-archiver",
        "src",
        "samples",
        "requirements.txt",
        "requirements-gateway.txt",
        "requirements-serve.txt",
    ):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, checkout / name)
    (checkout / "whisper-models").mkdir()
    shutil.copy(ROOT / "whisper-models" / "nano.pt", checkout / "whisper-models")
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        # Another user may not have access to an environment under /root. Root in a user namespace, with another uid, has.
        prefix = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
        if subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("the tests run as root, and user namespaces are not allowed, so there is no other user to test with")
    before = snapshot(checkout)
    for path in [checkout, *checkout.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        server = start(
            root=checkout,
            prefix=prefix,
            state=tmp_path / "new",
            WHISPER_STATE_DIR="",
            XDG_STATE_HOME=str(tmp_path / "home"),
            LOG_LOCATION="",
        )
        assert words(requests.post(server.wait_until_ready().url, data=TIMER, timeout=120).json()["text"]) == EXPECTED
        assert server.stop() == 0
    finally:
        for path in [checkout, *checkout.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
    assert snapshot(checkout) == before
    assert (tmp_path / "home" / "whisper-torchserve" / "logs" / "whisper.log").is_file()


# Stopping


def test_sigterm_answers_open_requests(start: Start, tmp_path: Path) -> None:
    """Open are requests in the worker, one of them with a started reply, and one request that is still being sent."""
    server = start(WHISPER_GRACE_SECONDS="300").wait_until_ready()
    long = repeat("home.flac", 2, tmp_path / "long.wav").read_bytes()
    upload = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    upload.putrequest("POST", "/predictions/whisper")
    upload.putheader("Content-Length", str(len(TIMER)))
    upload.endheaders(TIMER[:1000])
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(requests.post, server.url, data=long, timeout=300) for _ in range(3)]
        wait_for(lambda: server.metric("whisper_open_requests") == 3, 60, "three requests are open")
        server.process.send_signal(signal.SIGTERM)
        piece = 1000
        for begin in range(1000, len(TIMER), piece):
            upload.send(TIMER[begin : begin + piece])
            time.sleep(0.05)
        replies = [reply.result() for reply in pending]
    reply = upload.getresponse()
    assert (reply.status, b"timer" in reply.read()) == (200, True)
    assert [reply.status_code for reply in replies] == [200] * 3
    assert all(len(words(reply.json()["text"])) > 1.5 * len(words(TRANSCRIPTS["home.flac"])) for reply in replies)
    assert server.wait_until_over() == 0, server.output
    assert not server.processes()
    assert "stopping when all is answered" in server.output


def test_a_stream_of_requests_does_not_delay_the_end(start: Start) -> None:
    """Requests are answered for half of the grace period, then refused with a 503 and the reason."""
    server = start(WHISPER_GRACE_SECONDS="20").wait_until_ready()
    replies: list[requests.Response] = []

    def stream() -> None:
        with contextlib.suppress(requests.ConnectionError):  # the end: the port is closed
            while True:
                replies.append(requests.post(server.url, data=TIMER, timeout=120))

    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream) for _ in range(4)]
        wait_for(lambda: len(replies) >= 8, 60, "requests stream in")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_until_over(60) == 0, server.output
        for future in streams:
            future.result()
    answered, refused = ([reply for reply in replies if reply.status_code == status] for status in (200, 503))
    assert len(answered) + len(refused) == len(replies)
    assert refused
    assert {reply.json()["error"]["code"] for reply in refused} == {"stopping"}


def test_a_second_signal_stops_at_once(start: Start, tmp_path: Path) -> None:
    server = start().wait_until_ready()
    long = repeat("home.flac", 40, tmp_path / "long.wav").read_bytes()
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(requests.post, server.url, data=long, timeout=300)
        wait_for(lambda: server.metric("whisper_open_requests") == 1, 60, "the file is open")
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping when all is answered" in server.output, 60, "the first signal is taken")
        server.process.send_signal(signal.SIGINT)
        assert server.wait_until_over(60) == 130
        with pytest.raises(requests.RequestException):
            lost.result()
    assert not server.processes()


def test_the_grace_period_ends(start: Start, tmp_path: Path) -> None:
    server = start(WHISPER_GRACE_SECONDS="0.2").wait_until_ready()
    long = repeat("home.flac", 40, tmp_path / "long.wav").read_bytes()
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(requests.post, server.url, data=long, timeout=300)
        wait_for(lambda: server.metric("whisper_open_requests") == 1, 60, "the file is open")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_until_over(60) == 1
        with pytest.raises(requests.RequestException):
            lost.result()
    assert "unanswered: 1 open" in server.output


def test_a_killed_java_is_an_error_and_leaves_no_worker(start: Start) -> None:
    server = start().wait_until_ready()
    [java] = server.processes("org.pytorch.serve.ModelServer")
    os.kill(java, signal.SIGKILL)
    assert server.wait_until_over(60) == 1
    assert "ended by itself" in server.output
    assert not server.processes()


def test_kill_minus_nine_leaves_nothing_running(start: Start) -> None:
    server = start().wait_until_ready()
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not server.processes(), 60, "Java and the worker end")


def test_two_servers_with_one_log_folder_keep_their_lines_apart(start: Start, tmp_path: Path) -> None:
    logs = str(tmp_path / "logs")
    first = start(LOG_LOCATION=logs).wait_until_ready()
    second = start(LOG_LOCATION=logs)
    wait_for(lambda: "the log of this one is in" in second.output, 120, "the second log's folder is named")
    (worker,) = first.processes("model_service_worker")
    os.kill(worker, signal.SIGKILL)  # of the first server, while the second one starts
    second.wait_until_ready()
    assert str(second.port) in second.output.splitlines()[0]
    assert (tmp_path / "logs" / str(second.port) / "whisper.log").is_file()
    assert second.stop() == 0 and first.stop() == 0
