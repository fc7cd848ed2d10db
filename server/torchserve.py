"""TorchServe as a child process: starts it, watches it, and ends it together with everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from whispercore.torchserve import handshake
from whispercore.torchserve.handshake import OpenRequests, WorkerHealth

from . import ROOT
from .configuration import Configuration, StartError
from .locking import lock_file
from .management import SOCKET_FILE, ManagementGuard

STOP_SECONDS = 20.0
"""How long Java may take to end after SIGTERM."""
KILL_SECONDS = 10.0
"""How long the processes may take to disappear after SIGKILL."""
PREFIX = "whisper-torchserve-"
LOCK_FILE = "lock"
# The worker writes its open requests to the first file, and its last success to the second. It refuses new requests when the
# third exists, and is not ready when the fourth does.
OPEN_REQUESTS, HEALTH, CLOSING, NOT_READY, SPOOL = "open-requests", "health", "closing", "not-ready", "spool"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class TorchServe:
    """The Java front end and its worker, in a session of their own, so that Ctrl-C in the terminal reaches serve.sh only.

    Java is started directly: `torchserve --foreground` leaves Java running on SIGTERM, and exits with 0 when Java dies.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        clear_leftovers(configuration.temporary)
        # For sockets and the unpacked archive. Not in the state folder, whose path may be long: a socket's path is limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=configuration.temporary))
        self._lock = lock_file(self.folder / LOCK_FILE)
        self._guard = self._guarded()
        self._open_requests = OpenRequests()
        self._written, self._written_seen = 0, 0.0
        self.watchdog_token = secrets.token_hex(16)
        environment = _environment(self.folder) | {handshake.WATCHDOG_TOKEN: self.watchdog_token}
        if configuration.gateway:
            environment.setdefault("WHISPER_CLIENT_HEADER", handshake.CLIENT_HEADER)
        if self._guard:
            environment["TS_MANAGEMENT_ADDRESS"] = f"unix:{self.folder / SOCKET_FILE}"
        # The worker is Java's child. If Java dies first, this process becomes its parent and can wait for its end.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.process = subprocess.Popen(
            _command(configuration, self.folder),
            env=environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def __enter__(self) -> TorchServe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _guarded(self) -> ManagementGuard | None:
        """The guard of the management API; None when TorchServe does not take its addresses from the environment."""
        address = self.configuration.management
        if not self.configuration.reads_environment:
            return None
        try:
            return ManagementGuard(address.host, address.port, self.folder / SOCKET_FILE)
        except OSError as error:
            raise StartError(f"cannot listen on {address.host}:{address.port} ({error.strerror}): set {address.variable}") from None

    @property
    def alive(self) -> bool:
        """Whether Java still runs."""
        return self.process.poll() is None

    @property
    def open_requests(self) -> OpenRequests:
        """What the worker last wrote about its open requests; none before the first time."""
        with contextlib.suppress(OSError, ValueError):  # the worker is writing: what it wrote before
            self._open_requests = OpenRequests.parse((self.folder / OPEN_REQUESTS).read_text())
        return self._open_requests

    @property
    def unchanged_seconds(self) -> float:
        """Seconds since this property first saw what the worker last wrote; infinite before that. No jump of the clock changes it."""
        try:
            written = (self.folder / OPEN_REQUESTS).stat().st_mtime_ns
        except OSError:
            return math.inf
        if written != self._written:
            self._written, self._written_seen = written, time.monotonic()
        return time.monotonic() - self._written_seen

    @property
    def worker_health(self) -> WorkerHealth:
        """What the worker last wrote about its health."""
        try:
            return WorkerHealth.parse((self.folder / HEALTH).read_text())
        except (OSError, ValueError):
            return WorkerHealth()

    def show_ready(self, is_ready: bool) -> None:
        """Let the worker's readiness say whether the watchdog's last test passed."""
        if is_ready:
            (self.folder / NOT_READY).unlink(missing_ok=True)
        else:
            (self.folder / NOT_READY).touch()

    @property
    def spool(self) -> Path:
        """The folder of the gateway's uploads, which the worker reads."""
        return self.folder / SPOOL

    def refuse_new_requests(self) -> None:
        """Make the worker answer new requests with 503 from now on. TorchServe itself cannot stop accepting them."""
        (self.folder / CLOSING).touch()

    def stop(self) -> None:
        """End Java, then the rest of its process group, and wait for both."""
        if self.alive:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        _kill_group(self.process)
        if self._guard:
            self._guard.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock:
            self._lock.close()


def clear_leftovers(temporary: Path) -> None:
    """Remove the folders of servers that were killed: their locks are free."""
    for folder in temporary.glob(f"{PREFIX}*"):
        if (folder / LOCK_FILE).is_file() and (lock := lock_file(folder / LOCK_FILE)):
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def end_with_parent() -> None:
    """For `preexec_fn`: let the child get SIGTERM when this process ends, even by kill -9."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _command(configuration: Configuration, folder: Path) -> list[str]:
    """The command line that ts/model_server.py would build."""
    home = _torchserve_home()
    return [
        str(configuration.java),
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile=file://{ROOT / 'config' / 'log4j2.xml'}",
        f"-Djava.io.tmpdir={folder}",
        *configuration.vm_args,
        "-cp",
        f"{home}/ts/frontend/*",
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "--ts-config-file",
        str(configuration.properties_file),
        "--model-store",
        str(configuration.model_store),
        "--no-config-snapshot",
    ]


def _environment(folder: Path) -> dict[str, str]:
    """This process's environment without PYTHONPATH, so that the worker imports the core from whisper.mar only, and without downloads."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment[handshake.OPEN_REQUESTS_FILE] = str(folder / OPEN_REQUESTS)
    environment[handshake.SPOOL_DIR] = str(folder / SPOOL)
    environment[handshake.CLOSING_FILE] = str(folder / CLOSING)
    environment[handshake.HEALTH_FILE] = str(folder / HEALTH)
    environment[handshake.NOT_READY_FILE] = str(folder / NOT_READY)
    environment.setdefault("HF_HUB_OFFLINE", "1")
    environment.setdefault("ORT_DISABLE_TELEMETRY", "1")
    environment.setdefault("TS_METRICS_CONFIG", str(ROOT / "config" / "metrics.yaml"))
    environment["TEMP"] = environment["TMPDIR"] = str(folder)
    # By default torch.compile caches its kernels in the temporary folder, which is removed when the server stops.
    state = os.environ.get("WHISPER_STATE_DIR")
    if state and os.access(state, os.W_OK):
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(state) / "compiled"))
        environment.setdefault("TRITON_CACHE_DIR", str(Path(state) / "compiled" / "triton"))
    return environment


def _torchserve_home() -> Path:
    # Looked up without an import, which would load psutil and more.
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise StartError(
            f"{sys.prefix} has no torchserve: unset WHISPER_VENV, or install requirements.txt and requirements-serve.txt there"
        )
    return Path(spec.origin).parent.parent


def _kill_group(leader: subprocess.Popen[bytes]) -> None:
    """Kill the processes that are left in the group, and wait until they are gone."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(leader.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        leader.poll()
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    """Collect the exit status of adopted children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
