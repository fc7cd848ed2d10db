"""Our own fast path over openai-whisper's weights: static caches, rules on the device, slots that are refilled, CUDA graphs on a GPU."""

from .engine import TorchEngine, load
from .precision import precisions

__all__ = ["TorchEngine", "load", "precisions"]
