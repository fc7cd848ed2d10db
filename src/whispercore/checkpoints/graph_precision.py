"""The precision in which graphs are exported and served: without the package onnx, which only the export needs."""

from __future__ import annotations

from ..catalogue import GRAPH_PRECISIONS
from ..devices import choose_precision
from ..errors import ConfigurationError
from ..settings import Settings


def precision(settings: Settings, device: str) -> str:
    """The precision of the settings on `device`, for engine onnx or sherpa. Raises ConfigurationError when the device lacks it."""
    name = choose_precision(settings.engine, settings, device, GRAPH_PRECISIONS[device])
    if device == "cuda":
        import onnxruntime  # here: engine sherpa works without it

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ConfigurationError("this ONNX Runtime knows no GPU; run: pip install onnxruntime-gpu, or set device: cpu", param="device")
    return name
