"""A small checkpoint with random weights, and settings that name it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.checkpoints.doubles import SMALL
from whispercore.checkpoints import write_random
from whispercore.settings import Settings


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a width no published model has, with random weights."""
    path = tmp_path_factory.mktemp("models") / "small-random.pt"
    write_random(SMALL, path, dtype=torch.float32)
    return path


@pytest.fixture
def settings(small: Path, tmp_path: Path) -> Settings:
    section = {"model": "small-random", "models_dir": str(small.parent), "converted_dir": str(tmp_path / "converted"), "device": "cpu"}
    return Settings.load(section, environ={})
