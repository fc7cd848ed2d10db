"""Whisper as a library: audio bytes in, segments out. The windows of all open requests share batches on one device."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import Options
    from .serving.transcriber import Transcriber
    from .settings import Settings

__all__ = ["Options", "Settings", "Transcriber", "__version__"]
__version__ = "0.1.0"

# OpenMP's threads wait for each other at every operator. GNU's library lets them spin for milliseconds, which on a busy machine keeps the
# core from the thread that is waited for. So they spin for microseconds and then sleep: on two cores a clip at the in-process server takes
# 0.76 s instead of 1.5 beside two processes that compute, and 0.35 s instead of 3.9 beside programs with OpenMP; on idle cores both take
# 0.22 s (AMD EPYC with AVX2, nano). The library reads this when PyTorch or CTranslate2 loads it:
# https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

_MODULES = {"Options": "options", "Settings": "settings", "Transcriber": "serving.transcriber"}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that reading the version imports nothing else."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
