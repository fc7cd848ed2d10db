"""Whisper as a core: bytes of any recording in, segments out, windows of every open request sharing one device."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import Options
    from .serving.transcriber import Transcriber
    from .settings import Settings

__all__ = ["Options", "Settings", "Transcriber", "__version__"]
__version__ = "0.1.0"

_HOMES = {"Options": "options", "Settings": "settings", "Transcriber": "serving.transcriber"}


def __getattr__(name: str) -> Any:
    """The front door, imported when it is asked for: the version alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
