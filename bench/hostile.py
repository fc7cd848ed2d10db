"""Attacks on a server beside an innocent client: `python -m bench hostile`.

Damaged recordings and requests with odd options come four at once, while one client sends a good clip every second and compares the text.
Then processes are killed and stopped under load. No attack may be answered with a 5xx, end the worker, or cost the innocent client a
request. The requests that the server did not stand are kept as files: `nc 127.0.0.1 PORT < FILE` sends one again.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from . import mutations, odd_requests, results
from .odd_requests import OddRequest
from .report import hostile as report
from .server import Front, Server, ours
from .work import SCRATCH, environment

MEDIA, OPTIONS, TOGETHER, KILLS, STOPS = 10_000, 10_000, 4, 3, 1
FAILURES = SCRATCH / "hostile"
TIMEOUT_SECONDS = 120.0
"""For an attack. The most expensive options take half a minute on two busy cores."""
PATIENCE_SECONDS = 60.0
"""After this time the innocent client's request is lost."""
BEAT_SECONDS = 1.0
INNOCENT_ADDRESS = "127.0.0.2"
"""The innocent client is not the attacker: it has another address."""
RECOVERY_SECONDS = 240.0
"""The most that is waited for a good reply after a kill."""
IN_FLIGHT = 8
CLIP = mutations.SAMPLES / "timer.flac"

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request: its status and body, or, with status 0, why there is none. `seconds`: from the first byte sent."""

    status: int
    body: bytes
    seconds: float

    @property
    def fault(self) -> str:
        """What is wrong with the answer: no answer in time, none at all, a 5xx, or an error of the server in a reply that had begun."""
        if not self.status:
            return "timeout" if self.body == b"timeout" else "no answer"
        if self.status >= 500:
            return "5xx"
        return "error after 200" if self.status == 200 and b'"type":"server_error"' in self.body.replace(b": ", b":") else ""

    @property
    def is_clear(self) -> bool:
        """Whether a refusal says why."""
        if self.status < 400:
            return True
        try:
            content = json.loads(self.body)
            return bool(content["error"]["message"] if "error" in content else content["message"])
        except (ValueError, KeyError, TypeError):
            return False

    @property
    def text(self) -> str:
        """The transcript of a JSON reply; empty when there is none."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(self.body)["text"]).strip()
        return ""


def send(port: int, request: bytes, timeout: float = TIMEOUT_SECONDS, *, address: str = "127.0.0.1") -> Answer:
    """Send these bytes over a connection of their own, and read the answer. `address`: the client's, which the gateway tells apart."""
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout, (address, 0)) as connection:
            with contextlib.suppress(ConnectionError):  # a server may answer, and close, before it has read everything
                connection.sendall(request)
            response = http.client.HTTPResponse(connection, method=request[:4].decode().strip())
            response.begin()
            body = response.read()
            return Answer(response.status, body, time.monotonic() - began)
    except TimeoutError:
        return Answer(0, b"timeout", time.monotonic() - began)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, f"{type(error).__name__}: {error}".encode(), time.monotonic() - began)


class Innocent(threading.Thread):
    """A client that sends a good clip every second, the next one when the last is answered, and compares the text.

    `seconds`: of every answered request. `lost`: what came instead of the text. `workers`: process ids of all workers seen.
    """

    def __init__(self, server: Server, role: str, request: bytes, text: str) -> None:
        """`role`: of the process that transcribes."""
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self.lost: list[str] = []
        self.workers: set[int] = set()
        self._server, self._role, self._request, self._text = server, role, request, text
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(BEAT_SECONDS):
            self._note_workers()
            answer = send(self._server.port, self._request, PATIENCE_SECONDS, address=INNOCENT_ADDRESS)
            if answer.status == 200 and answer.text == self._text:
                self.seconds.append(answer.seconds)
            else:
                self.lost.append(f"status {answer.status} after {answer.seconds:.1f} s: {answer.body[:200].decode(errors='replace')}")

    def stop(self) -> None:
        """Wait for the last answer."""
        self._over.set()
        self.join()
        self._note_workers()

    def _note_workers(self) -> None:
        self.workers |= {process.pid for process in self._server.processes().get(self._role, ())}


@dataclass(slots=True)
class Tally:
    """What came of the attacks of one kind. Threads add to it under the lock of `Attacks`."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    unclear: int = 0
    slowest: tuple[float, str] = (0.0, "")

    def add(self, request: OddRequest, answer: Answer) -> None:
        """Count an answer."""
        self.statuses[answer.status] += 1
        self.faults.update([answer.fault] if answer.fault else [])
        self.unclear += not answer.is_clear
        self.slowest = max(self.slowest, (round(answer.seconds, 2), request.what))

    def figures(self) -> dict[str, Any]:
        """For the result file."""
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        slowest = {"seconds": self.slowest[0], "what": self.slowest[1].encode("unicode_escape").decode()[:300]}
        counts = {"sent": self.statuses.total(), "statuses": statuses, "faults": dict(self.faults), "without_a_reason": self.unclear}
        return counts | {"slowest": slowest}


class Attacks:
    """Sends attacks, counts their answers by kind, and keeps the requests that the server did not stand."""

    def __init__(self, port: int, failures: Path, until: float, log: Log) -> None:
        self.tallies: dict[str, Tally] = {}
        self._port, self._failures, self._until, self._log = port, failures, until, log
        self._lock = threading.Lock()

    def send_all(self, attacks: Iterator[tuple[str, OddRequest]], together: int) -> None:
        """Send each attack once, `together` of them at once, as long as there is time."""
        with ThreadPoolExecutor(together) as pool:
            for client in [pool.submit(self._client, attacks) for _ in range(together)]:
                client.result()

    def _client(self, attacks: Iterator[tuple[str, OddRequest]]) -> None:
        while time.monotonic() < self._until:
            with self._lock:
                kind, request = next(attacks, ("", None))
            if request is None:
                return
            answer = send(self._port, request.data)
            with self._lock:
                self._count(kind, request, answer)

    def _count(self, kind: str, request: OddRequest, answer: Answer) -> None:
        self.tallies.setdefault(kind, Tally()).add(request, answer)
        if answer.fault or not answer.is_clear:
            self._keep(f"{kind}-{answer.fault or 'no reason'}", request, answer)
        if (sent := sum(tally.statuses.total() for tally in self.tallies.values())) % 500 == 0:
            self._log(f"{sent} attacks, {sum(tally.faults.total() for tally in self.tallies.values())} faults")

    def _keep(self, name: str, request: OddRequest, answer: Answer) -> None:
        self._failures.mkdir(parents=True, exist_ok=True)
        path = self._failures / f"{name.replace(' ', '-')}-{len(list(self._failures.iterdir()))}.http"
        path.write_bytes(request.data)
        self._log(f"{path.name}: {request.what!r:.200}: {answer.status} {answer.body[:200]!r} after {answer.seconds:.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when the server did not stand the attacks. Measures, saves the result and writes the tables."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    folder, origin = arguments.results or results.RESULTS, results.provenance()
    failures = FAILURES / time.strftime("%Y%m%d-%H%M%S")
    with ours(environment("nano", tokens=0), arguments.front) as server:
        server.wait_until_ready(CLIP.read_bytes(), {"Content-Type": "audio/flac"})
        result = measure(server, arguments, failures, lambda line: console.print(f"hostile: {line}", markup=False))
    settings = {name: getattr(arguments, name) for name in ("front", "media", "options", "seed", "together")}
    settings |= {"model": "nano", "formats": len(mutations.originals()), "beat_seconds": BEAT_SECONDS}
    path = results.save(folder, "hostile", origin, settings, result)
    print(report.table(folder))
    if folder == results.RESULTS:
        report.update()
        report.update_readme()
    console.print(f"hostile: the result is in {path}" + (f", what failed in {failures}" if failures.exists() else ""))
    return 0 if report.stood(result) else 1


def measure(server: Server, arguments: argparse.Namespace, failures: Path, log: Log) -> dict[str, Any]:
    """The attacks beside the innocent client, then kills and stops."""
    clip, role = CLIP.read_bytes(), "gateway" if arguments.front == "inprocess" else "worker"
    paths = [path for path in odd_requests.PATHS if send(server.port, odd_requests.good(path, clip)).status == 200]
    request = odd_requests.good(paths[0], clip)
    expected = send(server.port, request).text
    before, began = server.memory(), time.monotonic()
    attacks = Attacks(server.port, failures, began + 60 * arguments.minutes, log)
    innocent = Innocent(server, role, request, expected)
    innocent.start()
    attacks.send_all(interleaved(arguments.seed, arguments.media, arguments.options, paths), arguments.together)
    innocent.stop()
    minutes, after = (time.monotonic() - began) / 60, server.memory()
    return {
        "minutes": round(minutes, 2),
        "paths": paths,
        "attacks": {kind: tally.figures() for kind, tally in sorted(attacks.tallies.items())},
        "dead_workers": len(innocent.workers) - 1,
        "innocent": latencies(innocent.seconds) | {"lost": len(innocent.lost), "instead": innocent.lost[:20]},
        "memory_mb": {role: {"start": before[role], "end": after.get(role)} for role in before},
        "kills": [kill(server, victim, number, request, expected, log) for victim, number in killed(arguments)],
    }


def interleaved(seed: int, media: int, options: int, paths: Sequence[str]) -> Iterator[tuple[str, OddRequest]]:
    """The attacks of both kinds in turn, made as they are needed."""
    made = (_made("media", odd_requests.media, seed, media, paths), _made("options", odd_requests.options, seed, options, paths))
    return (attack for pair in zip_longest(*made) for attack in pair if attack)


def _made(kind: str, make: Callable[[int, int, Sequence[str]], OddRequest], seed: int, count: int, paths: Sequence[str]) -> Iterator[Any]:
    return ((kind, make(seed, number, paths)) for number in range(count))


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """Number, median, 95th percentile and the longest."""
    ordered = sorted(seconds) or [math.nan]
    p95 = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    figures = {"p50": statistics.median(ordered), "p95": p95, "max": ordered[-1]}
    return {"answered": len(seconds)} | {name: round(value, 3) for name, value in figures.items()}


def killed(arguments: argparse.Namespace) -> list[tuple[str, signal.Signals]]:
    """The roles of the processes that get a signal, one after the other. Where there is no worker, the gateway is the only one."""
    roles = {"torchserve": ["worker"], "gateway": ["worker", "gateway"], "inprocess": ["gateway"]}[arguments.front]
    kills = [(role, signal.SIGKILL) for role in roles for _ in range(arguments.kills)]
    return kills + [("worker", signal.SIGSTOP) for _ in range(arguments.stops) if "worker" in roles]


def kill(server: Server, role: str, number: signal.Signals, request: bytes, text: str, log: Log) -> dict[str, Any]:
    """Send the signal to the process while requests are open, and others right after it; what becomes of both.

    Seconds count from the signal. `good_seconds`: until another client has a good reply.
    """
    (process,) = server.processes()[role]
    busy = server.processes().get("worker", [process])[0]

    def ask() -> tuple[Answer, float]:
        return send(server.port, request, RECOVERY_SECONDS), time.monotonic()

    with ThreadPoolExecutor(2 * IN_FLIGHT + 1) as pool:
        open_ones = [pool.submit(ask) for _ in range(IN_FLIGHT)]
        wait_until_used(busy, 0.2)
        began = time.monotonic()
        os.kill(process.pid, number)
        later = [pool.submit(ask) for _ in range(IN_FLIGHT)]
        good = pool.submit(_good_after, ask, text, began)
        answers, queued = [[future.result() for future in futures] for futures in (open_ones, later)]
        failed = [at - began for answer, at in answers if answer.fault]
        figures = {
            "process": role,
            "signal": number.name,
            "open": IN_FLIGHT,
            "open_failed": len(failed),
            "open_failed_within_seconds": round(max(failed, default=0.0), 2),
            "sent_after": IN_FLIGHT,
            "sent_after_answered": sum(answer.text == text for answer, _ in queued),
            "good_seconds": round(good.result(), 2),
        }
    log(f"the {role} got {number.name}: {figures}")
    return figures


def wait_until_used(process: Any, seconds: float) -> None:
    """Wait until the process has used this much more processor time: it works on what has been sent."""
    limit, deadline = sum(process.cpu_times()[:2]) + seconds, time.monotonic() + 10
    while sum(process.cpu_times()[:2]) < limit and time.monotonic() < deadline:
        time.sleep(0.01)


def _good_after(ask: Callable[[], tuple[Answer, float]], text: str, began: float) -> float:
    """Seconds from `began` until one request after the other has led to the text. Raises TimeoutError when none does."""
    while time.monotonic() - began < RECOVERY_SECONDS:
        answer, at = ask()
        if answer.text == text:
            return at - began
        time.sleep(0.1)
    raise TimeoutError(f"no good reply within {RECOVERY_SECONDS:g} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--front", choices=get_args(Front), default="gateway", help="what the attacks reach; default: %(default)s")
    parser.add_argument("--media", type=int, default=MEDIA, metavar="N", help="damaged recordings; default: %(default)s")
    parser.add_argument("--options", type=int, default=OPTIONS, metavar="N", help="requests with odd options; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other attacks; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="stop the attacks after this time; default: never")
    parser.add_argument("--together", type=int, default=TOGETHER, metavar="N", help="attacks at once; default: %(default)s")
    parser.add_argument(
        "--kills", type=int, default=KILLS, metavar="N", help="kill -9 of the worker and of the gateway; default: %(default)s"
    )
    parser.add_argument("--stops", type=int, default=STOPS, metavar="N", help="SIGSTOP of the worker, a minute each; default: %(default)s")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results, from which docs/measured.md is generated")
    return parser


if __name__ == "__main__":
    sys.exit(main())
