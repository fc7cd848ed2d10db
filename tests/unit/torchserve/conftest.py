"""What the tests of this folder share: recordings are read on threads, which begin at once."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def reads_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test makes a `Transcriber`, and a process takes a third of a second to start."""
    monkeypatch.setattr("whispercore.serving.transcriber.reads_in_processes", lambda: False)
