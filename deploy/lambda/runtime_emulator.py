#!/usr/bin/env python3
"""Lambda's Runtime API on the loopback, to run the function without AWS. Needs only the standard library.

    echo '{"audio": "'$(base64 -w0 samples/timer.flac)'"}' |
      PYTHONPATH=src:deploy/lambda python3 deploy/lambda/runtime_emulator.py python3 -m awslambdaric lambda_function.lambda_handler

Reads events from standard input, one JSON object a line, and prints what became of each, one JSON object a line:
{"result": …} or {"error": …}, with seconds, processor_seconds of all cores together, and peak_mb of memory; and before
them {"init_seconds": …}. As on Lambda, an invocation that takes longer than the timeout ends the process, and a result
beyond 6 MB is an error. within_limit tells whether the start took at most ten seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CORE_MEGABYTES = 1769
MAX_PAYLOAD = 6_291_456
MAX_RESULT = 6_291_556
INIT_SECONDS = 10.0
_PATH = "/2018-06-01/runtime/"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an event: its result or an error, and the seconds that it took."""

    seconds: float
    result: Any = None
    error: Mapping[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """For the command's output."""
        return {**({"error": self.error} if self.error else {"result": self.result}), "seconds": round(self.seconds, 3)}


class RuntimeApi:
    """A process that takes its events from this Runtime API. Use it as a context manager."""

    def __init__(
        self, command: Sequence[str], *, timeout: float = 900.0, memory: int = 10_240, environ: Mapping[str, str] = os.environ
    ) -> None:
        """`timeout`: seconds of an invocation. `memory`: the function's, in MB, which decides its number of cores."""
        self._command, self._timeout, self._memory, self._environ = list(command), timeout, memory, dict(environ)
        self._events: queue.Queue[tuple[str, bytes, float]] = queue.Queue()
        self._outcomes: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._ready = threading.Event()
        self.init_seconds = math.nan
        """From the start of the process until it asks for an event: Lambda's init."""

    def __enter__(self) -> RuntimeApi:
        api = self

        class Handler(_Handler):
            runtime = api

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        cores = sorted(os.sched_getaffinity(0))[: math.ceil(self._memory / CORE_MEGABYTES)]
        environ = {
            **self._environ,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self._memory),
            "AWS_LAMBDA_FUNCTION_NAME": "whisper",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_LOG_GROUP_NAME": "whisper",
            "AWS_LAMBDA_LOG_STREAM_NAME": "emulator",
            "AWS_REGION": self._environ.get("AWS_REGION", "eu-central-1"),
        }
        self._began = time.monotonic()
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *self._command]
        self._process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()

    def wait_until_ready(self) -> float:
        """The seconds of init. Raises RuntimeError when the process ends before it asks for an event."""
        while not self._ready.wait(0.05):
            if self._process.poll() is not None:
                raise RuntimeError(f"the function ended with status {self._process.returncode} while it started")
            if not self._outcomes.empty():
                raise RuntimeError(f"the function cannot start: {self._outcomes.get()[1].decode()}")
        return self.init_seconds

    def invoke(self, event: Any) -> Outcome:
        """Deliver one event and wait for its outcome."""
        body, request_id = json.dumps(event).encode(), str(uuid.uuid4())
        if len(body) > MAX_PAYLOAD:
            return Outcome(0.0, error={"errorMessage": f"{len(body)} byte payload is too large for the limit {MAX_PAYLOAD}"})
        self.wait_until_ready()
        began = time.monotonic()
        self._events.put((request_id, body, time.time() + self._timeout))
        while (left := began + self._timeout - time.monotonic()) > 0:
            try:
                kind, payload = self._outcomes.get(timeout=min(left, 0.2))
            except queue.Empty:
                if self._process.poll() is not None:
                    return Outcome(time.monotonic() - began, error={"errorMessage": f"the process ended: {self._process.returncode}"})
                continue
            seconds = time.monotonic() - began
            if kind == "error":
                return Outcome(seconds, error=json.loads(payload))
            if len(payload) > MAX_RESULT:
                message = f"Response payload size ({len(payload)} bytes) exceeded maximum allowed payload size ({MAX_RESULT} bytes)."
                return Outcome(seconds, error={"errorType": "Function.ResponseSizeTooLarge", "errorMessage": message})
            return Outcome(seconds, result=json.loads(payload))
        self._process.kill()
        return Outcome(self._timeout, error={"errorMessage": f"Task timed out after {self._timeout:.2f} seconds"})

    @property
    def peak_megabytes(self) -> float:
        """The most memory that the process has had."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)  # 0: it has ended

    @property
    def processor_seconds(self) -> float:
        """What the process has used of all cores together."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def next_event(self) -> tuple[str, bytes, float]:
        """Wait for an event, for the process that asks for it: its id, its body and its deadline, in seconds since 1970."""
        if not self._ready.is_set():
            self.init_seconds = time.monotonic() - self._began
            self._ready.set()
        return self._events.get()

    def take(self, kind: str, payload: bytes) -> None:
        """Take what the process posts: a `response` or an `error`."""
        self._outcomes.put((kind, payload))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a process that is ended breaks its connection off."""


class _Handler(BaseHTTPRequestHandler):
    """Lambda's Runtime API, version 2018-06-01."""

    protocol_version = "HTTP/1.1"
    runtime: RuntimeApi

    def do_GET(self) -> None:
        """/invocation/next."""
        if self.path != f"{_PATH}invocation/next":
            return self.send_error(404)
        request_id, body, deadline = self.runtime.next_event()
        self.send_response(200)
        for name, value in {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:123456789012:function:whisper",
            "Lambda-Runtime-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """/invocation/ID/response, /invocation/ID/error, /init/error."""
        self.runtime.take(self.path.rpartition("/")[2], self._body())
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the function's own lines are enough."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: exit status 0, or 1 when the function does not start."""
    parser = argparse.ArgumentParser(description="Run a Lambda function on events from standard input, one JSON object a line.")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds of an invocation (default: 900)")
    parser.add_argument("--memory", type=int, default=10_240, help="the function's memory in MB, which decides its cores (default: 10240)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the runtime interface client, such as python3 -m awslambdaric …")
    parsed = parser.parse_args(arguments)
    with RuntimeApi(parsed.command, timeout=parsed.timeout, memory=parsed.memory) as api:
        try:
            init = api.wait_until_ready()
        except RuntimeError as error:
            print(json.dumps({"error": {"errorMessage": str(error)}}), flush=True)
            return 1
        used = api.processor_seconds
        started = {"init_seconds": round(init, 3), "within_limit": init <= INIT_SECONDS}
        print(json.dumps({**started, "processor_seconds": round(used, 2)}), flush=True)
        for line in sys.stdin:
            outcome = api.invoke(json.loads(line))
            before, used = used, api.processor_seconds
            usage = {"processor_seconds": round(used - before, 2), "peak_mb": round(api.peak_megabytes)}
            print(json.dumps({**outcome.told(), **usage}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
