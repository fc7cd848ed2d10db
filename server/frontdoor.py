"""The gateway as a child process: starts it, starts it again when it has died, and stops it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from . import ROOT
from .configuration import Address, Configuration, StartError
from .readiness import answers
from .signals import StopSignals
from .torchserve import end_with_parent

START_SECONDS = 60.0
"""How long the gateway may take until it answers."""
RESTARTS, WITHIN_SECONDS = 5, 300.0
"""So many deaths within this time end the server."""
# `python -m gateway` with the checkout in the place of the current folder, as in serve.sh.
_LAUNCH = "import sys; sys.path[:1] = sys.argv[1:3]; del sys.argv[1:]; from gateway.__main__ import main; sys.exit(main())"


class FrontDoor:
    """The gateway's process. `environment`: variables that tell it about its back end."""

    def __init__(self, address: Address, environment: dict[str, str]) -> None:
        self.address = address
        self._environment = environment
        self._deaths: deque[float] = deque(maxlen=RESTARTS)
        self._process = self._start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait_until_it_answers(self, stop: StopSignals) -> None:
        """Wait until it answers, or for a stop signal. Raises StartError when it does not come up; it has printed the reason."""
        deadline = time.monotonic() + START_SECONDS
        while not stop.requested and not answers(self.address, "/health/live"):
            if not self.alive:
                raise StartError(f"the gateway ended with status {self._process.returncode}: its reason is above")
            if time.monotonic() > deadline:
                raise StartError(f"the gateway does not answer on {self.address.host}:{self.address.port} after {START_SECONDS:g} s")
            stop.wait(0.05)

    def restart(self) -> None:
        """Start it again after it has died. Raises StartError when it dies too often."""
        now = time.monotonic()
        if len(self._deaths) == RESTARTS and now - self._deaths[0] < WITHIN_SECONDS:
            raise StartError(
                f"the gateway died {RESTARTS} times within {now - self._deaths[0]:.0f} s, at last with {self._process.returncode}"
            )
        self._deaths.append(now)
        self._process = self._start()

    def terminate(self) -> None:
        """Let it refuse new connections, answer its open requests and end."""
        if self.alive:
            self._process.terminate()

    def finish(self, seconds: float, stop: StopSignals) -> bool:
        """Let it answer its open requests and end. Returns whether it did within `seconds` and before a second signal."""
        self.terminate()
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline and not stop.immediate:
            time.sleep(0.05)
        finished = not self.alive
        self.kill()
        return finished

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(ROOT), str(ROOT / "src")],
            env=os.environ | self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def before_torchserve(configuration: Configuration, spool: Path) -> dict[str, str]:
    """What tells the gateway that TorchServe is its back end."""
    inference, metrics = configuration.inference, configuration.metrics
    return {
        "WHISPER_TORCHSERVE_URL": f"http://{inference.reachable_host}:{inference.port}",
        "WHISPER_TORCHSERVE_METRICS_URL": f"http://{metrics.reachable_host}:{metrics.port}",
        "WHISPER_SPOOL_DIR": str(spool),
    }
