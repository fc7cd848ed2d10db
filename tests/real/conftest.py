"""OpenAI's base on recordings of real speech.

Without the model or the recordings the tests are skipped with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from bench import datasets
from bench.peers import Setup
from whispercore import checkpoints
from whispercore.errors import ConfigurationError
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.types import Transcript

MODEL = Setup(model="base", device="cpu", threads=2)

Transcribe = Callable[..., Transcript]


@pytest.fixture(scope="session")
def transcribe() -> Iterator[Transcribe]:
    """Transcribe a file with base in the server's default precision.

    Equal calls share a result unless `number` differs.
    """
    try:
        checkpoints.locate(MODEL.located)
    except ConfigurationError as error:
        pytest.skip(f"the model base is needed: {error}")
    with Transcriber(MODEL.settings("ct2", "int8")) as transcriber:

        @cache
        def cached(path: Path, number: int = 1, **options: object) -> Transcript:
            return transcriber.submit(path, Options(**options)).result()

        yield cached


@pytest.fixture(scope="session")
def speech() -> Callable[[str], datasets.Set]:
    """A set of real speech by its name."""
    try:
        datasets.named("test-clean")
    except ConfigurationError as error:
        pytest.skip(f"real speech is needed: {error}")
    return datasets.named


def _folder(name: str) -> Path:
    """A folder beside the recordings of real speech."""
    folder = datasets.speech_folder().parent / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; WHISPER_SPEECH_DATA names the folder beside it")
    return folder


@pytest.fixture(scope="session")
def cases() -> Path:
    """Recordings that were once transcribed wrongly."""
    return _folder("cases")


@pytest.fixture(scope="session")
def audio() -> Path:
    """A few recordings of other projects' tests."""
    return _folder("audio")
