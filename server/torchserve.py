"""TorchServe as a child process: started, watched, ended with everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from configuration import ROOT, Configuration, StartError

STOP_SECONDS = 20.0
KILL_SECONDS = 10.0
PREFIX = "whisper-torchserve-"
LOCK_FILE = "lock"
# Between the worker and this process, in the server's own folder.
OPEN_REQUESTS_FILE, CLOSING_FILE = "open-requests", "closing"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class TorchServe:
    """The Java front end and its worker, in a session of their own: Ctrl-C in the terminal reaches serve.sh only.

    Java is run directly, for `torchserve --foreground` leaves it running on SIGTERM, and reports success when it dies.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        # Sockets and the unpacked archive. Short, and not in the state folder: a socket's path has 107 bytes at most.
        clear_leftovers(configuration.temporary)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=configuration.temporary))
        self._lock = _locked(self.folder / LOCK_FILE)
        # The worker is Java's child; should Java die first, it becomes ours, so that its end can be waited for.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.process = subprocess.Popen(
            _command(configuration, self.folder),
            env=_environment(self.folder),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def __enter__(self) -> TorchServe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether Java still runs."""
        return self.process.poll() is None

    @property
    def open_requests(self) -> int:
        """Requests open in the worker, as it last wrote them; 0 before it did."""
        try:
            return int((self.folder / OPEN_REQUESTS_FILE).read_text() or 0)
        except (OSError, ValueError):
            return 0

    @property
    def unchanged_seconds(self) -> float:
        """How long ago the worker last wrote how many requests are open; 0 before it did."""
        try:
            return time.time() - (self.folder / OPEN_REQUESTS_FILE).stat().st_mtime
        except OSError:
            return 0.0

    def refuse_new_requests(self) -> None:
        """From now on the worker answers new requests with 503: TorchServe itself cannot stop accepting them."""
        (self.folder / CLOSING_FILE).touch()

    def stop(self) -> None:
        """End Java, then whatever is left of its session, and wait for both."""
        if self.alive:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        _kill_group(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock:
            self._lock.close()


def clear_leftovers(temporary: Path) -> None:
    """Remove the folders of servers that were killed: nobody holds their lock any more."""
    for folder in temporary.glob(f"{PREFIX}*"):
        if (folder / LOCK_FILE).is_file() and (lock := _locked(folder / LOCK_FILE)):
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def _locked(path: Path) -> IO[str] | None:
    """The file, locked until it is closed or this process ends; None when somebody else holds it, or it is not ours."""
    try:
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return file


def end_with_parent() -> None:
    """In a child before it becomes another program: get SIGTERM when this process goes away, even by kill -9."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _command(configuration: Configuration, folder: Path) -> list[str]:
    """As ts/model_server.py puts it together."""
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
    """This process's, but the worker finds the core in whisper.mar only, and downloads nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["WHISPER_OPEN_REQUESTS_FILE"] = str(folder / OPEN_REQUESTS_FILE)
    environment["WHISPER_CLOSING_FILE"] = str(folder / CLOSING_FILE)
    environment.setdefault("HF_HUB_OFFLINE", "1")
    environment.setdefault("ORT_DISABLE_TELEMETRY", "1")
    environment.setdefault("TS_METRICS_CONFIG", str(ROOT / "config" / "metrics.yaml"))
    environment["TEMP"] = environment["TMPDIR"] = str(folder)
    # torch.compile keeps its kernels in the temporary folder, which goes with the server
    state = os.environ.get("WHISPER_STATE_DIR")
    if state and os.access(state, os.W_OK):
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(state) / "compiled"))
    return environment


def _torchserve_home() -> Path:
    # Found, not imported: that would load psutil and more.
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise StartError(
            f"{sys.prefix} has no torchserve: unset WHISPER_VENV, or install requirements.txt and requirements-serve.txt there"
        )
    return Path(spec.origin).parent.parent


def _kill_group(leader: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group and wait until it is gone."""
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
    """Collect orphans that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
