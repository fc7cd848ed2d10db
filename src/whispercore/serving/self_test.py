"""The watchdog of a process that serves without a launcher above it: it transcribes half a second of sound ahead of all requests."""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import threading
import time
import wave
from array import array
from collections.abc import Callable
from typing import Any

from ..catalogue import ENGINES
from ..errors import WhisperError
from ..options import Options
from ..types import SAMPLE_RATE
from .backlog import WATCHDOG
from .health import Health
from .watchdog import Verdict, Watchdog

logger = logging.getLogger(__name__)

SOUND_SECONDS, PITCH, LOUDNESS = 0.5, 220.0, 8000
"""Of the tone: its length, its frequency in Hz and its peak as a 16-bit number."""
POLL_SECONDS = 1.0


def recording() -> bytes:
    """A WAV file of a tone: one window."""
    count = round(SOUND_SECONDS * SAMPLE_RATE)
    samples = array("h", (round(LOUDNESS * math.sin(2 * math.pi * PITCH * at / SAMPLE_RATE)) for at in range(count)))
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(samples.itemsize)
        written.setframerate(SAMPLE_RATE)
        written.writeframes(samples.tobytes())
    return file.getvalue()


def options(engine: str) -> Options:
    """Decode it once, to few tokens, as far as the engine can be told so."""
    wanted: dict[str, Any] = {"temperature": (0.0,), "max_new_tokens": 4}
    known = {name: value for name, value in wanted.items() if name not in ENGINES[engine].unsupported}
    return Options(vad_filter=False, without_timestamps=True, **known)


def end_process(reason: str) -> None:
    """End this process at once, with one line and status 1: what supervises it starts another."""
    print(f"whisper ends: {reason}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(1)  # threads that hang would keep an ordinary exit waiting


class SelfTest:
    """Tests the engine and the readers of `health.transcriber` by the policy of `Watchdog`, on a thread of its own.

    After the first failure `health` is not ready until there is a success; after the second `on_failure` is called with
    the reason. Not needed behind TorchServe, whose launcher tests the worker.
    """

    def __init__(self, health: Health, on_failure: Callable[[str], None] = end_process) -> None:
        self._health = health
        self._transcriber = health.transcriber
        self._on_failure = on_failure
        self._policy = Watchdog(self._transcriber.settings.watchdog_seconds)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="self-test", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop testing."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        poll = min(POLL_SECONDS, self._policy.seconds / 10)
        while self._policy.seconds and not self._closing.wait(poll):
            if self._policy.is_due(time.monotonic(), max(began, self._last_success)):
                self._test(poll)

    @property
    def _last_success(self) -> float:
        success = self._transcriber.scheduler.last_success
        return -math.inf if success is None else success

    def _test(self, poll: float) -> None:
        began = time.monotonic()
        reason = self._failure(poll)
        now = time.monotonic()
        if self._last_success >= began:  # of whichever request: then the engine works
            self._policy.note_success(now, now - began)
            self._health.watchdog_failed = False
        elif not self._closing.is_set():
            self._health.watchdog_failed = True
            logger.error("the watchdog's recording was not transcribed: %s", reason)
            if self._policy.note_failure(now) is not Verdict.TEST_AGAIN:
                self._on_failure(f"two tests in a row transcribed nothing: {reason}")

    def _failure(self, poll: float) -> str:
        """Transcribe the recording, until the deadline or another one's success. Returns why there was no transcript."""
        began = time.monotonic()
        try:
            job = self._transcriber.submit(recording(), options(self._transcriber.engine.name), client=WATCHDOG)
        except WhisperError as error:
            return error.message
        try:
            while (
                time.monotonic() - began < self._policy.deadline(self._health.longest_seconds)
                and self._last_success < began
                and not self._closing.is_set()
            ):
                try:
                    job.result(poll)
                    return ""
                except TimeoutError:
                    continue
            return f"no result after {time.monotonic() - began:.0f} s"
        except WhisperError as error:
            return error.message
        finally:
            job.cancel()
