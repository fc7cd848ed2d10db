"""Peak resident memory of the worker and of Java, with a fresh server for each length of recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .load import Connection
from .plan import Plan
from .server import Server, ours, plain
from .work import checkpoint, environment, long_recording

HEADERS = {"Content-Type": "audio/mpeg"}


def measure(plan: Plan, log: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and results by server and seconds of audio.

    The servers run the nano model with their default settings.
    """
    result: dict[str, dict[str, Any]] = {"whisper": {}, "plain": {}}
    for seconds in plan.memory_seconds:
        result["whisper"][str(seconds)] = measure_one(ours(environment("nano", tokens=0)), seconds)
        if seconds in plan.plain_memory_seconds:
            result["plain"][str(seconds)] = measure_one(plain(checkpoint("nano"), tokens=0), seconds)
        lines = (f"{name} {peaks[str(seconds)]['worker_mb']} MB" for name, peaks in result.items() if str(seconds) in peaks)
        log(f"{seconds} s of audio: {', '.join(lines)}")
    return {"model": "nano", "container": "mp3, 16 kHz mono", "unit": "MB of 1,000,000 bytes"}, result


def measure_one(server: Server, seconds: int) -> dict[str, Any]:
    """The peaks of a fresh server after one recording; one second of audio warms it up."""
    recording = long_recording(seconds).read_bytes()
    with server:
        server.wait_until_ready(long_recording(1).read_bytes(), HEADERS)
        ready = server.peak_memory()
        with Connection(server.port, server.model) as connection:
            reply = connection.post(recording, HEADERS)
        peak = server.peak_memory()
    return {
        "megabytes_sent": round(len(recording) / 1e6, 1),
        "seconds": round(reply.seconds, 2),
        "words": len(json.loads(reply.body)["text"].split()),
        "worker_mb": round(peak.worker),
        "jvm_mb": round(peak.jvm),
        "worker_ready_mb": round(ready.worker),
        "jvm_ready_mb": round(ready.jvm),
    }
