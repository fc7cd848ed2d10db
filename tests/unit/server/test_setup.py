"""server/setup.sh and serve.sh without a network: what they decide, refuse and wait for."""

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
from whispercore.catalogue import EXTRAS

ROOT = Path(__file__).resolve().parents[3]


def run(command: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a command of bash after setup.sh has been sourced, as in serve.sh."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")}
    added = {name: str(value) for name, value in {"ROOT": ROOT, **variables}.items()}
    script = f"set -euo pipefail; source {ROOT}/server/setup.sh; {command}"
    return subprocess.run(["bash", "-c", script, "serve.sh"], env=kept | added, capture_output=True, text=True, timeout=120)


def serve(*arguments: str, folder: Path = ROOT, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run serve.sh with `folder` as the current one. A relative PYTHONPATH of the tests would lead into it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "PYTHONPATH"))}
    added = {name: str(value) for name, value in variables.items()}
    command = [ROOT / "serve.sh", *arguments]
    return subprocess.run(command, cwd=folder, env=kept | added, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("name", "meant"), [("bse", "base"), ("large-v3-turb", "large-v3-turbo")])
def test_a_misspelt_model_is_refused_before_anything_is_installed(tmp_path: Path, name: str, meant: str) -> None:
    done = serve(WHISPER_MODEL=name, WHISPER_STATE_DIR=tmp_path / "state")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"serve.sh: no model '{name}' ") and f"did you mean {meant}?" in line
    assert list((tmp_path / "state").iterdir()) == []


def test_the_help_names_the_variables() -> None:
    done = serve("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Serves Whisper on TorchServe") and "\n  WHISPER_STATE_DIR " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120 and "set -euo" not in done.stdout


def test_it_starts_from_a_folder_that_has_a_package_of_the_same_name(tmp_path: Path) -> None:
    """The launcher is the package `server` of the checkout; the current folder stays, but nothing is imported from it."""
    for name in ("server/__init__.py", "server/__main__.py", "yaml.py", "whispercore.py", "zipfile.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported from the current folder')\n")
    java = tmp_path / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\" 2021-10-19' >&2\n")
    java.chmod(0o755)
    variables = {
        "WHISPER_VENV": sys.prefix,
        "WHISPER_STATE_DIR": tmp_path / "state",
        "WHISPER_MODEL": "nano",
        "JAVA_HOME": tmp_path / "java",
    }
    done = serve("--setup", folder=tmp_path, WHISPER_MODLE="base", **variables)
    assert "WHISPER_MODLE: did you mean WHISPER_MODEL?" in done.stderr.splitlines()[-1], done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("files", "model", "served"),
    [
        ([], "the-images-own", "the-images-own"),
        (["code/inference.py"], "the-images-own", "the-images-own"),
        (["tuned.pt"], "the-images-own", "ml/model"),
        (["tuned.pt"], "", "ml/model"),
        (["a.pt", "b.pt"], "ml/model/b.pt", "ml/model/b.pt"),
    ],
)
def test_weights_in_sagemakers_folder_replace_the_images_own(tmp_path: Path, files: list[str], model: str, served: str) -> None:
    for file in files:
        (tmp_path / "ml" / "model" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ml" / "model" / file).write_bytes(b"x")
    named = tmp_path / model if model else ""
    done = run('use_sagemaker_model; echo "$WHISPER_MODEL"', SAGEMAKER_BASE_DIR=tmp_path / "ml", WHISPER_MODEL=named)
    assert (done.stdout, done.stderr) == (f"{tmp_path / served}\n", "")


def test_the_engines_with_packages_of_their_own_are_the_catalogues() -> None:
    """setup.sh runs before there is a Python to import the catalogue with, and in the image without src/."""
    assert run('echo "${EXTRA_ENGINES[@]}"').stdout.split() == list(EXTRAS)


def test_the_python_is_the_one_asked_for_or_the_first_on_the_path(tmp_path: Path) -> None:
    """A virtual environment, or the Python that a CI job has chosen, comes first on the PATH."""
    for name in ("first/python3", "named/python3.12"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(sys.executable)
    path = f"{tmp_path / 'first'}:{os.environ['PATH']}"
    assert run("find_python", PATH=path).stdout == f"{tmp_path}/first/python3\n"
    named = tmp_path / "named" / "python3.12"
    assert run("find_python", PATH=path, WHISPER_PYTHON=named).stdout == f"{named}\n"
    old = tmp_path / "first" / "python3"
    old.unlink()
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    assert run("find_python", PATH=f"{old.parent}:{named.parent}:/usr/bin:/bin").stdout == f"{named}\n", "one before 3.10 is passed over"


def test_a_model_of_ones_own_is_no_misspelt_one(tmp_path: Path) -> None:
    (tmp_path / "models" / "my-tuned").mkdir(parents=True)
    folders = {"WHISPER_MODELS_DIR": tmp_path / "models", "WHISPER_STATE_DIR": tmp_path}
    assert run("check_model", WHISPER_MODEL="my-tuned", **folders).returncode == 0
    assert run("check_model", WHISPER_MODEL="my-tuend", **folders).returncode == 1
    assert run("check_model", WHISPER_MODEL="my-tuend", WHISPER_ENGINE="fake", **folders).returncode == 0
    assert run("check_model", **folders).returncode == 0


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
        finished: list[Any] = []
        second = threading.Thread(target=lambda: finished.append(run("lock_setup; echo mine", WHISPER_STATE_DIR=tmp_path)))
        second.start()
        second.join(0.3)
        assert not finished, "it waits"
        first.stdin.write("\n")
        first.stdin.flush()
        second.join(60)
        assert finished and finished[0].stdout == "mine\n", "the first goes on without the lock"
        assert finished[0].stderr == f"serve.sh: another set-up is at work in {tmp_path}: waiting for it\n"
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
        """Print nothing."""


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
        assert run(f"INDEX_SECONDS=1; has_wheels {sys.executable} http://127.0.0.1:{silent.getsockname()[1]}/").returncode
        assert time.monotonic() - began < 8


def test_pytorch_comes_from_an_index_that_can_be_reached(index: Any, tmp_path: Path) -> None:
    """From WHISPER_TORCH; else, for a CPU, from the index of CPU builds; else from the index in use, after a check of the disk."""
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
    """pip would keep a CPU build of PyTorch on a GPU. A build for GPUs also runs on a CPU."""
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


def test_the_device_can_be_set() -> None:
    assert run("has_gpu", WHISPER_DEVICE="cuda").returncode == 0
    assert run("has_gpu", WHISPER_DEVICE="cpu").returncode == 1
    gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/usr/lib/wsl/lib/libcuda.so.1").exists()
    assert run("has_gpu").returncode == (0 if gpu else 1)


def test_a_full_disk_ends_the_set_up(tmp_path: Path) -> None:
    done = run(f"check_disk {tmp_path} 1000000")
    assert done.returncode == 1 and "need 1000000 GB: free some, or set WHISPER_STATE_DIR" in done.stderr


def test_large_downloads_are_printed() -> None:
    printed = "Collecting a\\n  Downloading a-1.whl (526.6 MB)\\n  Downloading b-1.whl.metadata (29 kB)\\n  Downloading c-1.whl (9.9 MB)\\n"
    done = run(f"printf '{printed}Installing collected packages: a, b, c\\n' | large_steps")
    assert done.stdout == "serve.sh:   downloading a-1.whl (526.6 MB)\nserve.sh:   unpacking 3 packages\n"


def test_requirements_name_what_openai_whisper_needs() -> None:
    """setup.sh installs it with --no-deps, so requirements.txt names all of its requirements except triton."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    named = {Requirement(line).name for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"}
    needed = [Requirement(line) for line in requires("openai-whisper") or []]
    assert {requirement.name for requirement in needed if requirement.marker is None or "extra" not in str(requirement.marker)} - named == {
        "triton"
    }


def test_bytecode_is_kept_in_an_environment_of_ours_only(tmp_path: Path) -> None:
    """Without it each process compiles PyTorch's sources anew. Containers often set PYTHONDONTWRITEBYTECODE."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    stubs = "choose_java() { JAVA_HOME=/usr; }; update_environment() { :; }"
    command = f"{stubs}; use_environment requirements.txt; echo ${{PYTHONDONTWRITEBYTECODE:-unset}}"
    ours = run(command, WHISPER_STATE_DIR=tmp_path, PYTHONDONTWRITEBYTECODE=1)
    theirs = run(command, WHISPER_STATE_DIR=tmp_path, PYTHONDONTWRITEBYTECODE=1, WHISPER_VENV=tmp_path / "venv")
    assert (ours.stdout, theirs.stdout) == ("unset\n", "1\n"), ours.stderr + theirs.stderr
