"""Whisper as a library: audio bytes in, segments out. The windows of all open requests share batches on one device."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import Options
    from .serving.transcriber import Transcriber
    from .settings import Settings

__all__ = ["Options", "Settings", "Transcriber", "__version__"]
__version__ = "0.1.0"

_MODULES = {"Options": "options", "Settings": "settings", "Transcriber": "serving.transcriber"}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that reading the version imports nothing else."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
