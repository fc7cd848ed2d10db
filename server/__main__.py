"""Runs TorchServe in the foreground: checks, starts, says when it is ready, drains and stops. serve.sh becomes this process.

Exit status: 0 after a clean stop, 1 when it could not start, died or had to drop requests, 130 after a second signal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import checkpoint
import preflight
import weights
from configuration import Configuration, StartError, worker_paths
from draining import drain, unfinished
from readiness import healthy, wait_until_ready, wake_worker
from signals import StopSignals
from torchserve import TorchServe
from workerlog import WorkerLog

ALIVE_SECONDS, HEALTH_SECONDS = 0.5, 5.0
# Longer than maxRetryTimeoutInSec of config/model-config.yaml, in which TorchServe tries to bring the worker back.
UNHEALTHY_SECONDS = 180.0


def main(arguments: Sequence[str]) -> int:
    """The exit status. With --setup: get everything ready, and serve nothing."""
    stop, setup_only = StopSignals(), "--setup" in arguments
    try:
        for name in preflight.check_variables():
            say(f"the environment variable {name} has no meaning here and is ignored: ./serve.sh --help names those that have")
        configuration = Configuration.load()
        if not setup_only:
            preflight.check(configuration)
        os.environ.update(worker_paths())
        if not weights.provide(stop):
            return 0
        if not checkpoint.prepare(configuration.model_store, stop):
            return 0 if stop.requested else 1
        if setup_only:
            return 0
        log = WorkerLog(configuration.log_file)
        with TorchServe(configuration) as server:
            return serve(server, log, stop)
    except StartError as error:
        say(str(error))
        return 1


def say(line: str) -> None:
    """One line to the person who started this; standard error, for standard output is the log's."""
    print(f"serve.sh: {line}", file=sys.stderr, flush=True)


def serve(server: TorchServe, log: WorkerLog, stop: StopSignals) -> int:
    """Until a signal comes; the exit status. Raises StartError when the server dies by itself."""
    began = time.monotonic()
    text = wait_until_ready(server, log, stop)
    if text is None:
        # Told to stop before the probe was answered; clients may have been quicker than the probe.
        return finish(server, stop) if unfinished(server).open > 1 else 0
    inference = server.configuration.inference
    url = f"http://{inference.reachable_host}:{inference.port}/predictions/whisper"
    log.failure()  # the worker's last lines: the probe may have been quicker
    told = f"ready after {time.monotonic() - began:.1f} s: {log.serves}; heard “{text.strip()}”. Try: curl -T samples/timer.flac {url}"
    say(f"{told}{weights.warning()}")
    watch(server, stop)
    return finish(server, stop)


def watch(server: TorchServe, stop: StopSignals) -> None:
    """Return at the first signal. Raises StartError when Java has ended or the worker does not come back."""
    log = server.configuration.log_file
    healthy_at = asked_at = time.monotonic()
    while not stop.requested:
        if not server.alive:
            raise StartError(f"TorchServe ended by itself with status {server.process.returncode}: see {log}")
        now = time.monotonic()
        if now - asked_at >= HEALTH_SECONDS:
            asked_at = now
            healthy_at = now if healthy(server.configuration.inference) else healthy_at
            if server.open_requests and server.unchanged_seconds >= HEALTH_SECONDS:
                wake_worker(server.configuration.inference)
        if now - healthy_at > UNHEALTHY_SECONDS:
            raise StartError(f"the worker died and cannot be started again: see {log}")
        stop.wait(ALIVE_SECONDS)


def finish(server: TorchServe, stop: StopSignals) -> int:
    """Drain; the exit status."""
    if (work := unfinished(server)).any:
        say(f"stopping when all is answered: {work}; at most {server.configuration.grace_seconds:g} s, a second signal stops at once")
    dropped = drain(server, stop)
    if dropped is None:
        say("stopped")
        return 0
    say(f"stopped with requests unanswered: {dropped}")
    return 130 if stop.impatient else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
