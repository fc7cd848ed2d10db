"""Runs TorchServe and the gateway in the foreground: checks, starts them, reports when they are ready, drains and stops them.

serve.sh execs this module, so signals reach it directly.

Exit status: 0 after a clean stop; 1 when the server could not start, died or had to drop requests; 130 after a second signal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from . import checkpoint, inprocess, preflight, weights
from .configuration import Configuration, StartError, worker_paths
from .console import say
from .draining import drain, pending_requests
from .frontdoor import FrontDoor, before_torchserve
from .readiness import healthy, wait_until_ready, wake_worker
from .signals import StopSignals
from .torchserve import TorchServe
from .watchdog import WorkerWatchdog
from .workerlog import WorkerLog, own_folder

ALIVE_SECONDS, HEALTH_SECONDS = 0.5, 5.0
"""How often to check that Java runs and what the watchdog says, and to ask /ping."""
# Longer than maxRetryTimeoutInSec of config/model-config.yaml, the time in which TorchServe tries to restart the worker.
UNHEALTHY_SECONDS = 180.0


def main(arguments: Sequence[str]) -> int:
    """Run the server and return the exit status.

    With --setup: prepare everything, but do not serve. With --inprocess: the gateway transcribes by itself, without TorchServe.
    """
    stop, setup_only = StopSignals(), "--setup" in arguments
    if "--inprocess" in arguments:
        return inprocess.main(stop, setup_only=setup_only)
    try:
        for name in preflight.check_variables():
            say(f"the environment variable {name} has no meaning here and is ignored: ./serve.sh --help names those that have")
        configuration = Configuration.load()
        if not setup_only:
            configuration = with_free_gateway(configuration)
            preflight.check(configuration)
        os.environ.update(worker_paths())
        if not weights.provide(stop):
            return 0
        if not checkpoint.prepare(configuration.model_store, stop):
            return 0 if stop.requested else 1
        if setup_only:
            return 0
        logs, lock = own_folder(configuration.logs, configuration.inference.port)
        if logs != configuration.logs:
            say(f"another server writes its log into {configuration.logs}: the log of this one is in {logs}")
            configuration = replace(configuration, logs=logs)
            os.environ["LOG_LOCATION"] = str(logs)
        log = WorkerLog(configuration.log_file)
        with lock or contextlib.nullcontext(), TorchServe(configuration) as server, front_door(server) as door:
            return serve(server, door, log, stop)
    except StartError as error:
        say(str(error))
        return 1


def with_free_gateway(configuration: Configuration) -> Configuration:
    """The configuration without the gateway when its default port is taken: that must not keep TorchServe from serving.

    With an address of its own choosing the user gets the error.
    """
    if not configuration.gateway or os.environ.get(configuration.gateway.variable):
        return configuration
    try:
        preflight.check_free(configuration.gateway)
    except StartError as error:
        say(f"the gateway is not started, TorchServe serves alone: {error}")
        return replace(configuration, gateway=None)
    return configuration


@contextlib.contextmanager
def front_door(server: TorchServe) -> Iterator[FrontDoor | None]:
    """The gateway in front of TorchServe; None when the configuration has none."""
    configuration = server.configuration
    if not configuration.gateway:
        yield None
        return
    door = FrontDoor(configuration.gateway, before_torchserve(configuration, server.spool))
    try:
        yield door
    finally:
        door.kill()


def serve(server: TorchServe, door: FrontDoor | None, log: WorkerLog, stop: StopSignals) -> int:
    """Serve until a signal arrives, then drain. Returns the exit status. Raises StartError when the server dies by itself."""
    began = time.monotonic()
    text = wait_until_ready(server, log, stop)
    if text is None:
        # The signal arrived before the probe's answer. Clients may have sent requests by then; the probe itself is one request.
        return finish(server, door, stop) if pending_requests(server).in_worker > 1 else 0
    if door:
        door.wait_until_it_answers(stop)
    address = door.address if door else server.configuration.inference
    url = f"http://{address.reachable_host}:{address.port}/predictions/whisper"
    log.failure()  # reads the new lines: the probe's answer can arrive before the line that sets `engine_description`
    seconds, heard = time.monotonic() - began, text.strip()
    announcement = f"ready after {seconds:.1f} s: {log.engine_description}; heard “{heard}”. Try: curl -T samples/timer.flac {url}"
    say(f"{announcement}{weights.warning()}")
    watch(server, door, WorkerWatchdog(server, seconds), stop)
    return finish(server, door, stop)


def watch(server: TorchServe, door: FrontDoor | None, watchdog: WorkerWatchdog, stop: StopSignals) -> None:
    """Return at the first signal. Raises StartError when Java has ended, or no worker comes back that transcribes."""
    log = server.configuration.log_file
    healthy_at = checked_at = time.monotonic()
    while not stop.requested:
        if not server.alive:
            raise StartError(f"TorchServe ended by itself with status {server.process.returncode}: see {log}")
        if door and not door.alive:
            say("the gateway has died: it is started again")
            door.restart()
        now = time.monotonic()
        if now - checked_at >= HEALTH_SECONDS:
            checked_at = now
            healthy_at = now if healthy(server.configuration.inference) else healthy_at
            if server.open_requests.number and server.unchanged_seconds >= HEALTH_SECONDS:
                wake_worker(server.configuration.inference)
        watchdog.look()
        if now - healthy_at > UNHEALTHY_SECONDS:
            raise StartError(f"the worker died and cannot be started again: see {log}")
        stop.wait(ALIVE_SECONDS)


def finish(server: TorchServe, door: FrontDoor | None, stop: StopSignals) -> int:
    """Wait until the pending requests are answered, first those of the gateway. Returns the exit status."""
    pending = pending_requests(server)
    if pending.total:
        grace = server.configuration.grace_seconds
        say(f"stopping when all is answered: {pending}; at most {grace:g} s, a second signal stops at once")
    dropped = drain(server, door, stop)
    if dropped is None:
        say("stopped")
        return 0
    say(f"stopped with requests unanswered: {dropped}")
    return 130 if stop.immediate else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
