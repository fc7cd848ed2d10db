"""A clock that jumps, as one does that is set by hand or by NTP: only time.monotonic decides waits and deadlines."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.conftest import Figure, Start
from tests.hostile.load import good_after, under_load
from tests.serve.server import ROOT, wait_for

FOLDERS = ("src", "server", "handler", "gateway")
WALL_CLOCK = {("time", name) for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "strftime")} | {
    *(("datetime", name) for name in ("now", "utcnow", "today", "fromtimestamp")),
    ("date", "today"),
}
ALLOWED = {
    "gateway/jobs/routes.py": "when a job was made",
    "gateway/jobs/runner.py": "when webhooks are due and results expire: kept in the database, where they outlive a restart",
    "gateway/jobs/store.py": "when a job began",
    "gateway/jobs/webhook.py": "the signature of a webhook holds its time",
    "gateway/logs.py": "the time of each line of the log",
    "gateway/usage.py": "limits by the calendar's day",
    "src/whispercore/serving/health.py": "a metric that is a timestamp",
}
"""Files that may read the time of day, and what for."""
JUMPS = (2 * 3600, -3 * 3600, 0)
"""Seconds by which the clock is off, one after the other."""
REQUESTS = 8


def readings(path: Path) -> Iterator[int]:
    """The lines of a file that read the time of day."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in WALL_CLOCK:
                yield node.lineno
        if isinstance(node, ast.ImportFrom) and any((node.module, name.name) in WALL_CLOCK for name in node.names):
            yield node.lineno


def test_nothing_but_what_is_listed_reads_the_time_of_day() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {f"{path.relative_to(ROOT)}:{line}" for path in files for line in readings(path)}
    assert not {place for place in found if place.partition(":")[0] not in ALLOWED}, "use time.monotonic, or list the file and its reason"
    assert len(files) > 100


def test_a_reading_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import time, datetime\nfrom time import time_ns\ntime.monotonic()\ntime.time()\ndatetime.datetime.now()\n")
    assert list(readings(file)) == [2, 4, 5]


SHIFTED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_OFFSET_FILE"), "r");
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    int status = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return status;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""
"""A library that adds the seconds in a file to the time of day of a process, and leaves its other clocks alone."""


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """The compiled library."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("there is no C compiler, so no clock can be made to jump (Debian: apt install gcc libc6-dev)")
    (tmp_path / "shifted.c").write_text(SHIFTED)
    library = tmp_path / "shifted.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "shifted.c", "-ldl"], check=True)
    return library


@pytest.mark.serve
@pytest.mark.slow
def test_requests_and_restarts_while_the_clock_jumps(start: Start, shifted: Path, tmp_path: Path, figure: Figure) -> None:
    """Of all processes, Java's too. Requests are open while the clock jumps, and the worker is restarted after each jump."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    preloaded = {"LD_PRELOAD": str(shifted), "CLOCK_OFFSET_FILE": str(clock)}
    seen = subprocess.run([sys.executable, "-c", "import time; print(time.time())"], env=os.environ | preloaded, capture_output=True)
    assert abs(float(seen.stdout) - time.time()) < 60
    server = start(**preloaded)
    for offset in JUMPS:
        with under_load(server) as load:
            pending = load.send(REQUESTS)
            wait_for(lambda: server.metric("whisper_open_requests") > 0, 60, "requests are open")
            clock.write_text(str(offset))
            answered = sum(request.result().is_good for request in pending)
        (worker,) = server.processes("model_service_worker")
        began = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        good = good_after(server, began)
        figure(
            f"the clock jumps to {offset / 3600:+.0f} h: {answered} of {REQUESTS} open requests answered; "
            f"after a kill -9 of the worker the next good reply after {good:.1f} s"
        )
        assert answered == REQUESTS
    hours = {json.loads(line)["time"][:13] for line in (server.folder / "logs" / "whisper.log").read_text().splitlines()}
    assert len(hours) >= 3, "Java's clock jumped, too"
    assert server.process.poll() is None
    assert server.stop() == 0
