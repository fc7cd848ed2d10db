"""`serve.sh --inprocess`: the gateway transcribes in its own process. No Java, no TorchServe."""

from __future__ import annotations

import os
import time

from . import checkpoint, preflight, weights
from .configuration import StartError, gateway_address, worker_paths
from .console import say
from .frontdoor import FrontDoor
from .readiness import Probe
from .signals import StopSignals

ALIVE_SECONDS = 0.5
"""How often to check that the gateway runs."""


def main(stop: StopSignals, *, setup_only: bool) -> int:
    """Prepare the model and serve it. Returns the exit status of the launcher."""
    try:
        for name in preflight.check_variables():
            say(f"the environment variable {name} has no meaning here and is ignored: ./serve.sh --help names those that have")
        address = gateway_address()
        if address is None:
            raise StartError("--inprocess is the gateway alone: WHISPER_GATEWAY_ADDRESS cannot be off")
        if not setup_only:
            preflight.check_free(address)
        os.environ.update(worker_paths())
        if not weights.provide(stop):
            return 0
        if not checkpoint.prepare(None, stop):
            return 0 if stop.requested else 1
        if setup_only:
            return 0
        began, door = time.monotonic(), FrontDoor(address, {"WHISPER_TORCHSERVE_URL": ""})
        try:
            return _serve(door, began, stop)
        finally:
            door.kill()
    except StartError as error:
        say(str(error))
        return 1


def _serve(door: FrontDoor, began: float, stop: StopSignals) -> int:
    probe = Probe(door.address)
    while not (probe.answer or stop.requested):
        if not door.alive:
            raise StartError("the gateway could not start: its reason is above")
        stop.wait(ALIVE_SECONDS / 10)
    if probe.answer:
        url = f"http://{door.address.reachable_host}:{door.address.port}/predictions/whisper"
        heard, seconds = probe.text().strip(), time.monotonic() - began
        say(f"ready after {seconds:.1f} s, in process; heard “{heard}”. Try: curl -T samples/timer.flac {url}{weights.warning()}")
    while not stop.requested:
        if not door.alive:
            say("the gateway has died: it is started again")
            door.restart()
        stop.wait(ALIVE_SECONDS)
    grace = float(os.environ.get("WHISPER_GRACE_SECONDS") or 60.0)
    if door.finish(grace, stop):
        say("stopped")
        return 0
    say("stopped with requests unanswered")
    return 130 if stop.immediate else 1
