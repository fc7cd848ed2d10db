"""Readiness: the server is ready when it has transcribed a recording.

TorchServe's /ping is no proof: it reports Healthy before the worker is up, and requests then wait without a limit.
"""

from __future__ import annotations

import http.client
import json
import threading
import time

from whispercore.torchserve.handshake import API_VERSION

from . import ROOT
from .configuration import Address, StartError
from .signals import StopSignals
from .torchserve import TorchServe
from .workerlog import WorkerLog

SAMPLE = ROOT / "samples" / "timer.flac"
POLL_SECONDS = 0.05


def wait_until_ready(server: TorchServe, log: WorkerLog, stop: StopSignals) -> str | None:
    """The text of the first transcription, or None after a stop signal. Raises StartError with the reason when the start fails."""
    probe = Probe(server.configuration.inference)
    while not stop.requested:
        if reason := log.failure():
            raise StartError(reason)
        if not server.alive:
            raise StartError(f"TorchServe ended with status {server.process.returncode}: see {log.path}")
        if probe.answer:
            return probe.text()
        stop.wait(POLL_SECONDS)
    return None


def answers(address: Address, path: str) -> bool:
    """Whether a GET of the path is answered with 200."""
    return _status(address, path) == 200


def healthy(address: Address) -> bool:
    """Whether /ping answers 200: the worker process runs."""
    return _status(address, "/ping") == 200


def wake_worker(address: Address, timeout: float = 10.0) -> None:
    """Send a request that needs no transcription, so that TorchServe calls the worker.

    TorchServe calls the worker only while it holds requests itself. When the last client disconnects, the calls end, and the worker would
    go on with work that is no longer needed.
    """
    _status(address, f"/predictions/whisper/{API_VERSION}/v1/models", timeout)


def _status(address: Address, path: str, timeout: float = 10.0) -> int | None:
    connection = http.client.HTTPConnection(address.reachable_host, address.port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Probe(threading.Thread):
    """Posts the sample as soon as TorchServe accepts connections, and waits for the answer without a time limit."""

    def __init__(self, address: Address) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.answer: tuple[int, bytes] | None = None
        self.start()

    def run(self) -> None:
        """Post until there is an answer."""
        audio = SAMPLE.read_bytes()
        while not self.answer:
            connection = http.client.HTTPConnection(self.address.reachable_host, self.address.port)
            try:
                connection.request("POST", "/predictions/whisper", audio, {"Content-Type": "audio/flac"})
                response = connection.getresponse()
                self.answer = (response.status, response.read())
            except (OSError, http.client.HTTPException):
                time.sleep(POLL_SECONDS)
            finally:
                connection.close()

    def text(self) -> str:
        """The text of the answer. Raises StartError when the transcription failed."""
        status, body = self.answer or (0, b"")
        try:
            content = json.loads(body)
            if status == 200:
                return str(content["text"])
            message = content["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = body.decode(errors="replace")
        raise StartError(f"the first transcription failed with status {status}: {message[:300]}")
