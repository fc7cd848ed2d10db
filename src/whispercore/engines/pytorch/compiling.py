"""torch.compile for parts of the model: operators between two products become one kernel. Products and attention are not compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar, cast

import torch

from ...errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")

_MOST_VARIANTS = 128
"""Of one function: a first size, any size, and size one, on each GPU. Beyond its limit of 8 PyTorch would silently not compile."""


@cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, compiled at its first call with new sizes.

    In mode default: the engine makes its own CUDA graphs (torch/device.py), which capture compiled kernels as any others.
    """
    config = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # PyTorch's names for it, the second before 2.6
        if hasattr(config, name):
            setattr(config, name, _MOST_VARIANTS)
            break
    return cast("Callable[P, R]", torch.compile(function))


def check_compiler(device: torch.device) -> None:
    """Compile a small function. Raises ConfigurationError where PyTorch finds no compiler."""
    try:
        compiled(_probe)(torch.ones(16, device=device))
    except Exception as error:  # of the compiler, the linker or PyTorch
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        needs = "a C compiler, Python's headers and Triton" if device.type == "cuda" else "a C++ compiler (g++)"
        message = (
            f"setting 'compile' needs {needs}, with which PyTorch could not compile: {reason[:200]}; install them, or set compile: false"
        )
        raise ConfigurationError(message, param="compile") from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.relu() + 1
