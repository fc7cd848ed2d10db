"""torch.compile for parts of the model: operators between two products become one kernel. Products and attention stay PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar, cast

import torch

from ...errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")

_MOST_VARIANTS = 128
"""Of one function: a first size, any size, size one, on each GPU. PyTorch's limit of 8 would silently leave the rest uncompiled."""


@cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, compiled at its first call for sizes that nothing was compiled for yet.

    Mode default: CUDA graphs are this engine's own (device.py), which capture the compiled kernels as any others.
    """
    config = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # PyTorch's names for it, the second before 2.6
        if hasattr(config, name):
            setattr(config, name, _MOST_VARIANTS)
            break
    return cast("Callable[P, R]", torch.compile(function))


def check_compiler(device: torch.device) -> None:
    """Compile a trifle. Raises ConfigurationError where PyTorch finds no compiler."""
    try:
        compiled(_trifle)(torch.ones(16, device=device))
    except Exception as error:  # whatever the compiler, its linker or PyTorch says
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        needs = "a C compiler, Python's headers and Triton" if device.type == "cuda" else "a C++ compiler (g++)"
        message = (
            f"setting 'compile' needs {needs}, with which PyTorch could not compile: {reason[:200]}; install them, or set compile: false"
        )
        raise ConfigurationError(message, param="compile") from error


def _trifle(x: torch.Tensor) -> torch.Tensor:
    return x.relu() + 1
