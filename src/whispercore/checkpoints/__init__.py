"""Checkpoints: OpenAI's .pt files, folders of Hugging Face and CTranslate2, ONNX graphs.

Found, loaded, converted for an engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .locations import choose_model, converted_folder, ct2_folder, exported_folder, is_demonstration, locate, sha256, size
from .preparing import prepare

if TYPE_CHECKING:
    from .loading import Checkpoint, empty_model, load_checkpoint, write_checkpoint
    from .random_weights import dimensions, write_random

__all__ = [
    "Checkpoint",
    "choose_model",
    "converted_folder",
    "ct2_folder",
    "dimensions",
    "empty_model",
    "exported_folder",
    "is_demonstration",
    "load_checkpoint",
    "locate",
    "prepare",
    "sha256",
    "size",
    "write_checkpoint",
    "write_random",
]

_MODULES = {
    **dict.fromkeys(("Checkpoint", "empty_model", "load_checkpoint", "write_checkpoint"), "loading"),
    **dict.fromkeys(("dimensions", "write_random"), "random_weights"),
}


def __getattr__(name: str) -> Any:
    """Import on first use what needs PyTorch. Engine ct2 works without it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
