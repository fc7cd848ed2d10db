"""OpenAI's base and real speech: what both hear together. Without one of them the tests are skipped, and say what is missing."""

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

Hear = Callable[..., Transcript]


@pytest.fixture(scope="session")
def hear() -> Iterator[Hear]:
    """Transcribe a file by base in the server's default precision; options as keywords. Each number is asked once."""
    try:
        checkpoints.locate(MODEL.located)
    except ConfigurationError as error:
        pytest.skip(f"the model base is needed: {error}")
    with Transcriber(MODEL.settings("ct2", "int8")) as transcriber:

        @cache
        def once(path: Path, number: int = 1, **options: object) -> Transcript:
            return transcriber.submit(path, Options(**options)).result()  # type: ignore[arg-type]

        yield once


@pytest.fixture(scope="session")
def speech() -> Callable[[str], datasets.Set]:
    """A set of real speech by its name."""
    try:
        datasets.named("test-clean")
    except ConfigurationError as error:
        pytest.skip(f"real speech is needed: {error}")
    return datasets.named


def _folder(name: str) -> Path:
    """Beside the recordings of real speech."""
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
