"""server/setup.sh where it needs no network: what it decides, refuses and waits for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.doubles import serving

ROOT = Path(__file__).resolve().parents[3]


def run(command: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """A command of bash after setup.sh was read, as serve.sh does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")}
    told = {name: str(value) for name, value in {"ROOT": ROOT, **variables}.items()}
    script = f"set -euo pipefail; source {ROOT}/server/setup.sh; {command}"
    return subprocess.run(["bash", "-c", script, "serve.sh"], env=kept | told, capture_output=True, text=True, timeout=120)


def serve(*arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")}
    told = {name: str(value) for name, value in variables.items()}
    return subprocess.run([ROOT / "serve.sh", *arguments], env=kept | told, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("name", "meant"), [("bse", "base"), ("large-v3-turb", "large-v3-turbo")])
def test_a_misspelt_model_is_refused_before_anything_is_installed(tmp_path: Path, name: str, meant: str) -> None:
    done = serve(WHISPER_MODEL=name, WHISPER_STATE_DIR=tmp_path / "state")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"serve.sh: no model '{name}' ") and f"did you mean {meant}?" in line
    assert list((tmp_path / "state").iterdir()) == []


def test_a_model_of_ones_own_is_no_misspelt_one(tmp_path: Path) -> None:
    (tmp_path / "models" / "my-tuned").mkdir(parents=True)
    told = {"WHISPER_MODELS_DIR": tmp_path / "models", "WHISPER_STATE_DIR": tmp_path}
    assert run("check_model", WHISPER_MODEL="my-tuned", **told).returncode == 0
    assert run("check_model", WHISPER_MODEL="my-tuend", **told).returncode == 1
    assert run("check_model", WHISPER_MODEL="my-tuend", WHISPER_ENGINE="fake", **told).returncode == 0
    assert run("check_model", **told).returncode == 0


def test_a_second_set_up_waits_for_the_first(tmp_path: Path) -> None:
    first = subprocess.Popen(
        ["bash", "-c", f"source {ROOT}/server/setup.sh; lock_setup; echo locked; read -r; unlock_setup; read -r", "serve.sh"],
        env=os.environ | {"ROOT": str(ROOT), "WHISPER_STATE_DIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdin and first.stdout
    try:
        assert first.stdout.readline() == "locked\n"
        found: list[Any] = []
        second = threading.Thread(target=lambda: found.append(run("lock_setup; echo mine", WHISPER_STATE_DIR=tmp_path)))
        second.start()
        second.join(1)
        assert not found, "it waits"
        first.stdin.write("\n")
        first.stdin.flush()
        second.join(60)
        assert found and found[0].stdout == "mine\n", "the first goes on without the lock"
        assert found[0].stderr == f"serve.sh: another set-up is at work in {tmp_path}: waiting for it\n"
    finally:
        first.kill()
        first.wait()


def test_a_killed_set_up_leaves_no_lock(tmp_path: Path) -> None:
    assert run("lock_setup; kill -9 $$", WHISPER_STATE_DIR=tmp_path).returncode
    done = run("lock_setup; echo mine", WHISPER_STATE_DIR=tmp_path)
    assert (done.stdout, done.stderr) == ("mine\n", "")


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body: bytes = self.server.body  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def index() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.body = b'<a href="torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl">'
    with serving(server):
        yield server


def test_an_index_is_used_when_it_answers_with_wheels(index: Any) -> None:
    url = f"http://127.0.0.1:{index.server_port}/whl/cpu/torch/"
    assert run(f"has_wheels {sys.executable} {url}").returncode == 0
    index.body = b"<html>Please log in</html>"
    assert run(f"has_wheels {sys.executable} {url}").returncode
    assert run(f"has_wheels {sys.executable} http://127.0.0.1:9/").returncode
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert run(f"has_wheels {sys.executable} http://127.0.0.1:{silent.getsockname()[1]}/").returncode
        assert time.monotonic() - began < 8


def test_pytorch_comes_from_where_it_can_be_had(index: Any, tmp_path: Path) -> None:
    """WHISPER_TORCH first; a CPU's build from its index; else, or when that fails, the index in use, and the disk it takes is asked for."""
    pip = 'pip_try() { echo "pip $*"; [[ $* != *extra-index* || ${BROKEN:-} != yes ]]; }; pip_install() { echo "pip $*"; }'
    checks = 'brings_cuda() { [[ ${CUDA:-} == yes ]]; }; check_disk() { echo "disk $2"; }'
    url = f"http://127.0.0.1:{index.server_port}"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)

    def chosen(device: str, where: str = url, **variables: str) -> list[str]:
        script = f"{pip}; {checks}; TORCH_CPU_INDEX={where}; install_torch {tmp_path} {device}"
        return run(script, **variables).stdout.replace(f"{tmp_path} ", "").splitlines()

    extra = f"pip PyTorch for CPUs --extra-index-url {url} torch==2.13.0"
    assert chosen("cpu") == [extra]
    assert chosen("cpu", BROKEN="yes") == [extra, "pip PyTorch torch==2.13.0"]
    assert chosen("cpu", "http://127.0.0.1:9") == ["pip PyTorch torch==2.13.0"]
    assert chosen("cpu", "http://127.0.0.1:9", CUDA="yes") == ["disk 10", "pip PyTorch torch==2.13.0"]
    assert chosen("gpu") == ["pip PyTorch torch==2.13.0"]
    mine = "torch==2.12 --index-url https://mirror.example"
    assert chosen("cpu", WHISPER_TORCH=mine) == [f"pip {mine} {mine}"]


@pytest.mark.parametrize(
    ("made_for", "device", "installed", "stays"),
    [("gpu", "cpu", "gpu", True), ("cpu", "cpu", "cpu", True), ("cpu", "cuda", "gpu", False), (None, "cuda", "gpu", True)],
)
def test_an_environment_is_made_anew_for_a_gpu_only(tmp_path: Path, made_for: str | None, device: str, installed: str, stays: bool) -> None:
    """PyTorch for a CPU would satisfy pip on a GPU; PyTorch for a GPU runs on a CPU."""
    environment = tmp_path / "venv"
    packages = environment / "lib" / "python3.11" / "site-packages"
    for folder in (environment / "bin", packages / "torch" / "bin", packages / "torch" / "test"):
        folder.mkdir(parents=True)
    for file in (packages / "torch" / "bin" / "test_api", packages / "torch" / "test" / "a", packages / "torch" / "bin" / "protoc"):
        file.touch()
    (environment / "mine").touch()
    if made_for:
        (environment / ".device").write_text(f"{made_for}\n")
    steps = 'install_torch() { echo "torch for $2"; }; pip_install() { echo "pip ${*:2}"; }; check_disk() { :; }'
    steps += "; make_environment() { mkdir -p $2/bin $2/lib/python3/site-packages; ln -sf $(type -P true) $2/bin/python; }"
    done = run(f"{steps}; update_environment {environment} {ROOT}/requirements.txt", WHISPER_DEVICE=device, JAVA_HOME="/java")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"torch for {installed}"
    assert (environment / "mine").exists() == stays
    assert "openai-whisper==" not in (environment / "requirements.txt").read_text()
    assert any(line.startswith("pip openai-whisper --no-deps openai-whisper==") for line in done.stdout.splitlines())
    if stays:
        assert [path.name for path in (packages / "torch").rglob("*")] == ["bin", "protoc"], "tests of packages go"
    again = run(f"{steps}; update_environment {environment} {ROOT}/requirements.txt", WHISPER_DEVICE=device, JAVA_HOME="/java")
    assert again.stdout == "" and again.returncode == 0, "nothing is done twice"


def test_the_device_can_be_told() -> None:
    assert run("has_gpu", WHISPER_DEVICE="cuda").returncode == 0
    assert run("has_gpu", WHISPER_DEVICE="cpu").returncode == 1
    there = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/usr/lib/wsl/lib/libcuda.so.1").exists()
    assert run("has_gpu").returncode == (0 if there else 1)


def test_a_full_disk_is_told_before(tmp_path: Path) -> None:
    done = run(f"check_disk {tmp_path} 1000000")
    assert done.returncode == 1 and "need 1000000 GB: free some, or set WHISPER_STATE_DIR" in done.stderr


def test_what_pip_prints_is_told_where_it_is_large() -> None:
    printed = "Collecting a\\n  Downloading a-1.whl (526.6 MB)\\n  Downloading b-1.whl.metadata (29 kB)\\n  Downloading c-1.whl (9.9 MB)\\n"
    done = run(f"printf '{printed}Installing collected packages: a, b, c\\n' | large_steps")
    assert done.stdout == "serve.sh:   downloading a-1.whl (526.6 MB)\nserve.sh:   unpacking 3 packages\n"


def test_requirements_install_openai_whisper_without_what_it_asks_for() -> None:
    """Everything it needs but triton is named by requirements.txt: setup.sh installs it with --no-deps."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    named = {Requirement(line).name for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"}
    needed = [Requirement(each) for each in requires("openai-whisper") or []]
    assert {each.name for each in needed if each.marker is None or "extra" not in str(each.marker)} - named == {"triton"}
