"""Checkpoints: OpenAI's .pt files, folders of Hugging Face and CTranslate2, ONNX graphs.

Found, loaded, converted for an engine.
"""

from .loading import Checkpoint, empty_model, load_checkpoint, write_checkpoint
from .locations import choose_model, converted_folder, ct2_folder, exported_folder, is_demonstration, locate, sha256, size
from .preparing import prepare
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
