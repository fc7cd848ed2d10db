"""The watchdog of the worker: it has half a second of sound transcribed, ahead of all requests, when there was no success for a while.

/ping only says that the process runs. A worker that is stopped, whose engine or readers hang, or that fails on everything, is ended here,
and TorchServe starts another.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import signal
import threading
import time
from pathlib import Path

import yaml

from whispercore.serving.watchdog import HEADER, PAUSE_SECONDS, Verdict, Watchdog
from whispercore.settings import Settings
from whispercore.torchserve.handshake import API_VERSION

from .configuration import MODEL_CONFIG, Address, StartError
from .console import say
from .torchserve import TorchServe

LOADING = 4
"""A worker that has been started again may take this many times as long as the first start until it answers."""
VAIN_SECONDS = 15.0
"""After each death TorchServe 0.12 starts one worker in vain: it ends that one after some seconds, and starts another."""
NO_ROOM = (None, 503, 507)
"""Replies that say nothing about the worker: no connection, a full queue, no worker at the moment, too little memory."""
_WORKER = b"model_service_worker"


class WorkerWatchdog:
    """Called again and again by the launcher's loop; nothing here waits."""

    def __init__(self, server: TorchServe, start_seconds: float) -> None:
        """`start_seconds`: how long the server took to start."""
        self._server = server
        self._policy = Watchdog(_interval())
        self._loading_seconds = LOADING * start_seconds
        self._began = time.monotonic()
        self._success = -math.inf
        self._test: _Test | None = None
        self._worker = worker_process(server.process.pid)
        self._worker_began = self._began
        self._was_vain = False
        self._loading = False
        self._said_ready = True

    def look(self) -> None:
        """Notice what has happened, and begin a test when one is due. Raises StartError when starting the worker again does not help."""
        if not self._policy.seconds:
            return
        self._notice_restart()
        now, health = time.monotonic(), self._server.worker_health
        if health.last_success > self._success:
            self._success = health.last_success
            if self._worker and self._success >= self._began:  # an older one proves nothing about the test or the new worker
                self._passed(now)
        if self._test:
            seconds = max(self._policy.deadline(health.longest_batch), self._loading_seconds if self._loading else 0.0)
            if self._test.status == 200:
                self._passed(now)
            elif self._test.status is not None:
                self._failed(now, f"the worker answered its test with {self._test.status}")
            elif now - self._began > seconds:
                self._failed(now, f"the worker did not pass its test within {seconds:.0f} s")
        elif self._worker and self._policy.is_due(now, max(self._success, self._began)):
            self._began = now
            self._test = _Test(self._server.configuration.inference, self._server.watchdog_token)

    def _passed(self, now: float) -> None:
        if not self._said_ready:
            say("ready again")
        self._said_ready = True
        self._policy.note_success(now, now - self._began if self._test and not self._loading else 0.0)
        self._server.show_ready(True)
        self._forget_test()
        self._loading = False

    def _failed(self, now: float, reason: str) -> None:
        self._forget_test()
        self._show_not_ready(reason)
        match self._policy.note_failure(now):
            case Verdict.RESTART if self._worker:
                say("two tests in a row failed: the worker is ended, and TorchServe starts another")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._worker, signal.SIGKILL)
            case Verdict.END:
                self._end()

    def _notice_restart(self) -> None:
        """Notice that the worker has died, and that TorchServe has started another."""
        if self._worker and is_alive(self._worker):
            return
        self._forget_test()
        if self._worker:
            self._show_not_ready("the worker has died")
        self._worker, self._began = worker_process(self._server.process.pid), time.monotonic()
        if not self._worker:
            return
        lived, self._worker_began = self._began - self._worker_began, self._began
        self._was_vain = self._loading and not self._was_vain and lived < VAIN_SECONDS
        self._loading = True
        if not self._was_vain and self._policy.note_restart() is Verdict.END:
            self._end()

    def _forget_test(self) -> None:
        if self._test:
            self._test.forgotten.set()
        self._test = None

    def _show_not_ready(self, reason: str) -> None:
        if self._said_ready:
            say(f"not ready: {reason}; see {self._server.configuration.log_file}")
        self._said_ready = False
        self._server.show_ready(False)

    def _end(self) -> None:
        restarts, log = self._policy.restarts, self._server.configuration.log_file
        raise StartError(f"the worker was started again {restarts} times in a row and transcribes nothing: see {log}")


class _Test(threading.Thread):
    """One test. `status`: the reply's; None while it is awaited. `forgotten`: its result is not awaited any more."""

    def __init__(self, address: Address, token: str) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.status: int | None = None
        self.forgotten = threading.Event()
        self._address, self._token = address, token
        self.start()

    def run(self) -> None:
        """Ask for the transcription, again while there is no room for the request: others may be answered meanwhile.

        There is no limit of time: `WorkerWatchdog.look` forgets a test that takes too long.
        """
        while not self.forgotten.is_set():
            if (status := self._ask()) not in NO_ROOM:
                self.status = status
                return
            self.forgotten.wait(PAUSE_SECONDS)

    def _ask(self) -> int | None:
        connection = http.client.HTTPConnection(self._address.reachable_host, self._address.port)
        try:
            connection.request("GET", f"/predictions/whisper/{API_VERSION}/health/ready", headers={HEADER: self._token})
            response = connection.getresponse()
            has_failed = b'"error"' in response.read()  # perhaps after a status of 200
            return 500 if has_failed and response.status == 200 else response.status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def worker_process(java: int) -> int | None:
    """The process id of the worker, a child of the process `java`; None while there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if _parent(folder) == java and _WORKER in (folder / "cmdline").read_bytes() and is_alive(int(folder.name)):
                return int(folder.name)
    return None


def is_alive(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return _fields(Path(f"/proc/{process}"))[0] not in "ZX"
    except (OSError, IndexError):
        return False


def _parent(folder: Path) -> int:
    return int(_fields(folder)[1])


def _fields(folder: Path) -> list[str]:
    """The fields of /proc/PID/stat after the name, which is in brackets and may hold spaces: the state, the parent, …"""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _interval() -> float:
    """The setting `watchdog_seconds`."""
    return Settings.load(yaml.safe_load(MODEL_CONFIG.read_text(encoding="utf-8")).get("whisper")).watchdog_seconds
