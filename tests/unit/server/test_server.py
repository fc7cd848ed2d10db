"""The launcher without a running server: its configuration, choice of model, log reader, signals and count of connections."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from server import __main__ as launcher
from server import checkpoint, connections, preflight, torchserve, weights
from server.configuration import Address, Configuration, StartError, worker_paths
from server.signals import StopSignals
from server.workerlog import WorkerLog, own_folder
from whispercore.settings import Settings

ROOT = Path(__file__).resolve().parents[3]

ENVIRONMENT = {
    "JAVA_HOME": "/java",
    "TS_MODEL_STORE": "/store",
    "LOG_LOCATION": "/logs",
    "TEMP": "/temporary",
    "WHISPER_STATE_DIR": "/state",
}


def test_the_configuration_is_config_properties() -> None:
    configuration = Configuration.load(ENVIRONMENT)
    addresses = (configuration.inference, configuration.management, configuration.metrics)
    assert [(address.host, address.port) for address in addresses] == [("127.0.0.1", port) for port in (8080, 8081, 8082)]
    assert configuration.properties_file == ROOT / "config" / "config.properties"
    assert any(argument.startswith("-XX:MaxRAMPercentage") for argument in configuration.vm_args)
    assert configuration.grace_seconds == 60


@pytest.mark.parametrize(
    "file",
    [
        *("models/nano.pt", "models/tuned/model.safetensors", "models/owner/name/model.bin", "converted/nano-0-int8/model.bin"),
        *("converted/nano-0-float32-onnx/decoder.onnx", "own/config.json", "own/model-00001-of-00002.safetensors"),
        *("own/tuned.pt", "own/tuned/model.bin"),
    ],
)
def test_a_checkpoint_is_looked_at_again_when_any_of_its_files_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    for name, folder in (("MODELS_DIR", "models"), ("CONVERTED_DIR", "converted"), ("MODEL", "own")):
        monkeypatch.setenv(f"WHISPER_{name}", str(tmp_path / folder))
    (tmp_path / "whisper.mar.sources").write_text("sources")
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    fingerprints = [checkpoint._fingerprint(tmp_path)]
    for content in ("one", "another"):
        path.write_text(content)
        fingerprints += [checkpoint._fingerprint(tmp_path), checkpoint._fingerprint(tmp_path)]
    empty, first, same_first, second, same_second = fingerprints
    assert first == same_first and second == same_second and len({empty, first, second}) == 3


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_ends_the_start(tmp_path: Path) -> None:
    def check(folder: Path) -> None:
        folder.mkdir(parents=True)
        any_ports = {f"TS_{name}_ADDRESS": f"http://127.0.0.1:{port}" for name, port in free_ports().items()}
        preflight.check(
            Configuration.load(
                ENVIRONMENT | any_ports | {"LOG_LOCATION": str(tmp_path), "TEMP": str(folder), "WHISPER_GATEWAY_ADDRESS": "off"}
            )
        )

    with tempfile.TemporaryDirectory() as short:
        check(Path(short, "a" * (preflight.LONGEST_TEMP - len(short) - 1)))
        with pytest.raises(StartError, match=r"too long a path for sockets: set TEMP to .* at most 63 bytes"):
            check(Path(short, "a" * (preflight.LONGEST_TEMP - len(short))))


def free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        names = ("INFERENCE", "MANAGEMENT", "METRICS")
        return {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for name in names}


def test_a_misspelt_variable_ends_the_start() -> None:
    with pytest.raises(StartError, match=r"WHISPER_MODLE: did you mean WHISPER_MODEL\?"):
        preflight.check_variables({"WHISPER_MODLE": "base"})
    assert preflight.check_variables({"WHISPER_MODEL": "base", "WHISPER_COLOUR": "red"}) == ("WHISPER_COLOUR",)


def test_the_environment_overrides_it() -> None:
    configuration = Configuration.load(ENVIRONMENT | {"TS_INFERENCE_ADDRESS": "http://0.0.0.0:80", "WHISPER_GRACE_SECONDS": "2.5"})
    assert configuration.inference == Address("0.0.0.0", 80, "TS_INFERENCE_ADDRESS")
    assert configuration.inference.reachable_host == "127.0.0.1"
    assert configuration.grace_seconds == 2.5


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TS_METRICS_ADDRESS", "8082"),
        ("TS_METRICS_ADDRESS", "http://here:port"),
        ("WHISPER_GRACE_SECONDS", "-1"),
        ("WHISPER_GRACE_SECONDS", "soon"),
        ("WHISPER_GRACE_SECONDS", "nan"),
        ("TS_CONFIG_FILE", "/nowhere"),
    ],
)
def test_a_bad_value_is_named(variable: str, value: str) -> None:
    with pytest.raises(StartError, match=variable):
        Configuration.load(ENVIRONMENT | {variable: value})


def test_paths_are_absolute_for_a_worker_that_runs_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert worker_paths(ENVIRONMENT) == {"WHISPER_MODELS_DIR": str(ROOT / "whisper-models"), "WHISPER_CONVERTED_DIR": "/state/models"}
    paths = worker_paths(ENVIRONMENT | {"WHISPER_MODELS_DIR": "mine", "WHISPER_MODEL": "mine/own.pt"})
    assert (paths["WHISPER_MODELS_DIR"], paths["WHISPER_MODEL"]) == (str(tmp_path / "mine"), str(tmp_path / "mine" / "own.pt"))
    assert "WHISPER_MODEL" not in worker_paths(ENVIRONMENT | {"WHISPER_MODEL": "large-v3"})
    assert "WHISPER_MODEL" not in worker_paths(ENVIRONMENT | {"WHISPER_MODEL": "Systran/faster-whisper-base"}), "a name of the Hub"
    (tmp_path / "Systran" / "faster-whisper-base").mkdir(parents=True)
    paths = worker_paths(ENVIRONMENT | {"WHISPER_MODEL": "Systran/faster-whisper-base"})
    assert paths["WHISPER_MODEL"] == str(tmp_path / "Systran" / "faster-whisper-base"), "unless there is such a path"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models, and no reachable source."""
    (tmp_path / "models").mkdir()
    nowhere = "http://127.0.0.1:9"
    variables = {"WHISPER_MODELS_DIR": tmp_path / "models", "WHISPER_STATE_DIR": tmp_path / "state", "WHISPER_DEVICE": "cpu"}
    variables |= {"WHISPER_DOWNLOAD_URL": nowhere, "HF_ENDPOINT": nowhere, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": tmp_path}
    for name, value in (variables | {"PIP_CONFIG_FILE": "/dev/null", "WHISPER_MODEL": "", "WHISPER_ENGINE": ""}).items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "models"


def provided() -> tuple[str, str]:
    """The model and the folder of models that the worker gets."""
    assert weights.provide(StopSignals())
    return os.environ["WHISPER_MODEL"], os.environ["WHISPER_MODELS_DIR"]


def test_the_model_that_is_there_is_served(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "base").mkdir()
    (models / "base" / "model.bin").touch()
    assert provided() == ("base", str(models)) and not weights.warning()
    (models / "small.pt").touch()
    monkeypatch.setenv("WHISPER_MODEL", "small")
    assert provided() == ("small", str(models))
    (models / "Owner" / "Name").mkdir(parents=True)
    (models / "Owner" / "Name" / "model.safetensors").touch()
    monkeypatch.setenv("WHISPER_MODEL", "Owner/Name")
    assert provided() == ("Owner/Name", str(models))


def test_a_model_in_the_state_folder_is_found(models: Path) -> None:
    state = models.parent / "state" / "weights"
    (state / "Systran" / "faster-whisper-base").mkdir(parents=True)
    (state / "Systran" / "faster-whisper-base" / "model.bin").touch()
    assert provided() == ("base", str(state))


def test_without_a_network_the_bundled_model_is_served_and_called_a_demonstration(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert provided() == ("nano", str(models))
    sources = [line.partition(":")[0] for line in capfd.readouterr().err.splitlines()]
    assert [sources[0], sources[1], sources[-2], sources[-1]] == ["OpenAI's files", "the Hugging Face Hub", "the package index", "error"]
    assert "demonstration model of a few sentences" in weights.warning() and "python3 clients/download_model.py base" in weights.warning()


def test_nano_fetches_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_MODEL", "nano")
    monkeypatch.setattr(weights.subprocess, "Popen", None)
    with pytest.raises(StartError, match=r"no nano\.pt"):
        weights.provide(StopSignals())
    (models / "nano.pt").touch()
    assert provided()[0] == "nano" and "demonstration" in weights.warning()
    for name, warned in (("nano.pt", True), ("nano", True), ("my-nano.pt", False)):
        monkeypatch.setenv("WHISPER_MODEL", str(models / name))
        assert bool(weights.warning()) == warned


def test_a_gpu_gets_the_large_model_where_it_can_be_fetched(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setenv("WHISPER_DEVICE", "cuda")
    monkeypatch.setattr(weights, "_fetch", lambda name, stop: fetched.append(name) or (models if name == "base" else None))
    assert provided() == ("base", str(models)) and fetched == ["large-v3-turbo", "base"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("small", r"no checkpoint at .*small\.pt, and it cannot be fetched \(see above\): run python3 clients/download_model\.py small"),
        ("Owner/Name", r"no checkpoint at .*Owner/Name, and it cannot be fetched"),
        ("bse", "did you mean base"),
    ],
)
def test_a_model_that_cannot_be_fetched_ends_the_start(models: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str) -> None:
    monkeypatch.setenv("WHISPER_MODEL", model)
    with pytest.raises(StartError, match=message):
        weights.provide(StopSignals())
    assert list(models.iterdir()) == []


def test_an_incomplete_folder_of_that_name_ends_the_start(models: Path) -> None:
    (models / "base").mkdir()
    (models / "base" / "config.json").touch()
    with pytest.raises(StartError, match="'base' cannot be put into "):
        weights.provide(StopSignals())


def test_several_models_are_fetched_and_the_first_is_the_default(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, fetched = models.parent / "state" / "weights", list[str]()
    for file in (models / "base" / "model.bin", state / "small" / "model.bin", models / "own.pt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def fetch(name: str, stop: StopSignals) -> Path:
        fetched.append(name)
        (models / f"{name}.pt").touch()
        return models

    monkeypatch.setattr(weights, "_fetch", fetch)
    monkeypatch.setenv("WHISPER_MODELS", f"base, small,tiny.en ,{models / 'own.pt'},base")
    assert provided() == ("base", str(models)) and fetched == ["tiny.en"]
    assert os.environ["WHISPER_MODELS"].split(",") == [str(state / "small"), "tiny.en", str(models / "own.pt")]
    settings = Settings.load()
    assert (settings.model, settings.other_models) == ("base", (str(state / "small"), "tiny.en", str(models / "own.pt")))


def test_a_model_of_the_list_that_cannot_be_fetched_ends_the_start(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "nano.pt").touch()
    monkeypatch.setenv("WHISPER_MODELS", "nano,small")
    with pytest.raises(StartError, match=r"no checkpoint at .*small\.pt"):
        weights.provide(StopSignals())


def test_paths_in_the_list_of_models_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = worker_paths(ENVIRONMENT | {"WHISPER_MODELS": "base, mine/own.pt,Systran/faster-whisper-tiny"})
    assert paths["WHISPER_MODELS"] == f"base,{tmp_path / 'mine' / 'own.pt'},Systran/faster-whisper-tiny"


def test_a_path_is_left_to_the_worker(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_MODEL", str(models / "my.pt"))
    assert provided() == (str(models / "my.pt"), str(models))


def write(log: Path, *messages: str) -> None:
    with log.open("a") as file:
        file.writelines(json.dumps({"time": "now", "message": message}) + "\n" for message in messages)


def test_the_log_shows_what_the_worker_serves(tmp_path: Path) -> None:
    path = tmp_path / "whisper.log"
    write(path, "whispercore 1.0 serves engine openai, as the last time")
    log = WorkerLog(path)
    write(path, "Model server started.", "whispercore 1.0 serves engine ct2, precision int8", "and more")
    assert log.failure() is None
    assert log.engine_description == "engine ct2, precision int8"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["whisper cannot start: no checkpoint at x.pt"], "whisper cannot start: no checkpoint at x.pt"),
        (["Backend worker process died.", "Traceback", '  File "a.py", line 1', "ImportError: no av"], "ImportError: no av"),
        (["Backend worker process died.", "Traceback", "torch.OutOfMemoryError: CUDA"], "torch.OutOfMemoryError: CUDA"),
        (["Torch worker started.", "Retry worker: 9000 in 1 seconds."], "too little memory"),
        (["Failed to load model: whisper.mar"], "cannot load whisper.mar"),
    ],
)
def test_the_log_shows_why_the_worker_could_not_start(tmp_path: Path, messages: list[str], reason: str) -> None:
    path = tmp_path / "whisper.log"
    write(path, "whisper cannot start: that was the last time")
    log = WorkerLog(path)
    assert log.failure() is None
    write(path, "Model server started.", "ValueError: a line of another program, before the worker died")
    assert log.failure() is None
    write(path, *messages)
    assert reason in (log.failure() or "")


def test_half_a_line_is_read_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "whisper.log"
    log = WorkerLog(path)
    assert log.failure() is None
    path.write_text('{"message":"whisper cannot start')
    assert log.failure() is None
    path.write_text('{"message":"whisper cannot start: x"}\n')
    assert log.failure() == "whisper cannot start: x"


def test_the_folders_of_killed_servers_are_removed(tmp_path: Path) -> None:
    killed, running, foreign = (tmp_path / name for name in ("whisper-torchserve-killed", "whisper-torchserve-running", "another"))
    for folder in (killed, running, foreign):
        folder.mkdir()
        (folder / torchserve.LOCK_FILE).touch()
    with (running / torchserve.LOCK_FILE).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torchserve.clear_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {running, foreign}
    torchserve.clear_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {foreign}


def test_signals_that_come_while_it_waits_never_hang_it() -> None:
    """A signal handler can run at any line of the waiting thread; here it runs at each of them."""
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}]
from server.signals import StopSignals
stop = StopSignals()
def trace(frame, event, argument):
    os.kill(os.getpid(), signal.SIGINT)
    return trace
sys.settrace(trace)
stop.wait(0.01)
sys.settrace(None)
print(stop.requested)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_shows_which_connections_are_busy(family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    with listener:
        port = listener.getsockname()[1]
        with socket.create_connection((host, port)) as client, listener.accept()[0] as served:
            monkeypatch.setattr(connections, "RECENT_MILLISECONDS", 0)
            assert connections.busy_connections(port) == 0
            client.send(b"half a request")
            assert connections.busy_connections(port) == 1, "unread bytes"
            served.recv(100)
            assert connections.busy_connections(port) == 0
            monkeypatch.setattr(connections, "RECENT_MILLISECONDS", 60_000)
            assert connections.busy_connections(port) == 1, "bytes received a moment ago"
            monkeypatch.setattr(connections, "RECENT_MILLISECONDS", 0)
            served.setblocking(False)
            deadline = time.monotonic() + 30
            while connections.busy_connections(port) == 0 and time.monotonic() < deadline:
                try:
                    served.send(bytes(1 << 20))
                except BlockingIOError:
                    assert connections.busy_connections(port) == 1, "a reply that the client does not take"
            assert connections.busy_connections(port) == 1
        assert connections.busy_connections(port) == 0


def test_a_log_folder_belongs_to_one_server(tmp_path: Path) -> None:
    first, lock = own_folder(tmp_path / "logs", 8080)
    second, other = own_folder(tmp_path / "logs", 9090)
    assert (first, second) == (tmp_path / "logs", tmp_path / "logs" / "9090") and lock and other
    lock.close()
    again, third = own_folder(tmp_path / "logs", 9090)
    assert again == tmp_path / "logs" and third
    other.close()
    third.close()


def test_a_taken_default_port_of_the_gateway_does_not_keep_torchserve_from_serving(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1], "WHISPER_GATEWAY_ADDRESS")
        configuration = replace(Configuration.load(ENVIRONMENT), gateway=address)
        monkeypatch.delenv("WHISPER_GATEWAY_ADDRESS", raising=False)
        assert launcher.with_free_gateway(configuration).gateway is None
        assert "TorchServe serves alone" in capsys.readouterr().err
        monkeypatch.setenv("WHISPER_GATEWAY_ADDRESS", f"http://127.0.0.1:{address.port}")
        assert launcher.with_free_gateway(configuration).gateway == address
    assert launcher.with_free_gateway(replace(configuration, gateway=None)).gateway is None
