"""What the tests of checkpoints share: a small model's dimensions, and a file cut short."""

from __future__ import annotations

from pathlib import Path

from whisper.model import ModelDimensions

SMALL = ModelDimensions(80, 1500, 64, 2, 2, 51_865, 448, 64, 2, 2)
"""A width that no published model has."""


def truncated(path: Path) -> None:
    """Cut the file to half its size."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
