"""TorchScript: many short operators in one call, which needs Python's lock once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import torch

logger = logging.getLogger(__name__)

_Code = TypeVar("_Code", bound=Callable[..., object])


def scripted(code: _Code) -> _Code:
    """A function or a module in TorchScript; as it is where this PyTorch has no TorchScript."""
    try:
        with warnings.catch_warnings():  # deprecated in favour of torch.compile, which needs a C++ compiler on the machine
            warnings.simplefilter("ignore", DeprecationWarning)
            return cast(_Code, torch.jit.script(code))
    except (AttributeError, OSError, RuntimeError) as error:  # OSError: the installation has no source files
        logger.warning("%s runs without TorchScript, and several cores gain less: %s", getattr(code, "__name__", "the decoder"), error)
        return code
