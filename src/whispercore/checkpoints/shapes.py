"""What the dimensions of all Whisper models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigurationError

_ALLOWED = {"n_mels": (80, 128), "n_audio_ctx": (1500,), "n_vocab": (51_864, 51_865, 51_866), "n_text_ctx": (448,)}
"""Timestamps are the last tokens of the vocabulary, so an added token would be read as one."""


def check_dimensions(path: Path, dimensions: Mapping[str, int]) -> None:
    """Raise ConfigurationError when no Whisper model has the dimensions that the checkpoint at `path` names.

    `dimensions`: by the names of openai-whisper's `ModelDimensions`, all of them.
    """
    shares = [(dimensions[f"n_{side}_state"], dimensions[f"n_{side}_head"]) for side in ("audio", "text")]
    uneven = any(not heads or width % heads for width, heads in shares)
    wrong = [
        f"{name} is {dimensions[name]}, not {' or '.join(map(str, allowed))}"
        for name, allowed in _ALLOWED.items()
        if dimensions[name] not in allowed
    ]
    if wrong or uneven:
        message = f"{path} has other dimensions than a Whisper model's: {wrong[0] if wrong else 'its heads do not share its width evenly'}"
        raise ConfigurationError(message, param="model")
