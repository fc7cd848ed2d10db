"""Test doubles that several unit tests share."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import numpy as np
import soundfile

from whispercore.engines.fake import FakeEngine
from whispercore.options import Options
from whispercore.types import SAMPLE_RATE, Decoded, Window

PATIENCE = 20.0
WHOLE = Options(vad_filter=False)
"""Decode everything, with or without speech."""


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Serve on a thread; stop and close the server at the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wav(seconds: float, seed: int = 0) -> bytes:
    """A WAV file of noise that never repeats, so that equal words mean equal samples."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


class Recorder(FakeEngine):
    """Records the windows it decodes, and waits while `gate` is closed."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)
        self.windows: list[Window] = []
        self.gate = threading.Event()
        self.gate.set()

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        assert self.gate.wait(PATIENCE)
        self.windows += windows
        return super().decode(windows)
