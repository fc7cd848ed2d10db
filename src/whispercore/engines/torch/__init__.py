"""A fast path over openai-whisper's weights: static caches, rules on the device, continuous batching, CUDA graphs on a GPU."""

from .engine import TorchEngine, load
from .precision import precisions

__all__ = ["TorchEngine", "load", "precisions"]
