"""The bundled model in engine torch and in its reference, and recordings."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from tests.unit.engines.heldout import HELDOUT, NANO
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import Checkpoint, load_checkpoint
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.torch import TorchEngine
from whispercore.types import Samples


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def nano() -> Checkpoint:
    return load_checkpoint(NANO)


@pytest.fixture(scope="package")
def ours(nano: Checkpoint) -> Iterator[TorchEngine]:
    engine = TorchEngine(nano, max_batch=8)
    yield engine
    engine.close()


@pytest.fixture(scope="package")
def reference(nano: Checkpoint) -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine(nano)
    yield engine
    engine.close()


@pytest.fixture(scope="package")
def recordings() -> list[Samples]:
    """Spoken digits and synthetic sentences, so that the windows of a batch end at different times."""
    listed = json.loads((HELDOUT / "manifest.json").read_text())
    return [read_samples(HELDOUT / item["file"]) for item in (*listed[:4], *listed[-4:])]
