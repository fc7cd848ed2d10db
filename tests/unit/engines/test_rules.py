"""The messages of runtimes' errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import pytest
import torch

from whispercore.engines.rules import engine_error, first_line, lacks_memory
from whispercore.errors import EngineError, OutOfMemory


def zeros(size: int) -> torch.Tensor:
    return torch.zeros(size)


@pytest.fixture(scope="module")
def allocate() -> Callable[[int], torch.Tensor]:
    """`zeros` in TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return cast(Callable[[int], torch.Tensor], torch.jit.script(zeros))


def test_an_error_in_torchscript_is_its_last_line(allocate: Callable[[int], torch.Tensor]) -> None:
    with pytest.raises(RuntimeError) as raised:
        allocate(-5)
    assert "negative" in first_line(raised.value) and not lacks_memory(raised.value)
    assert "negative" in engine_error(raised.value, "CTranslate2", 2).message


def test_torchscript_without_memory_is_out_of_memory(allocate: Callable[[int], torch.Tensor]) -> None:
    with pytest.raises(RuntimeError) as raised:
        allocate(1 << 60)
    error = engine_error(raised.value, "CTranslate2", 4)
    assert isinstance(error, OutOfMemory) and "4 windows" in error.message


@pytest.mark.parametrize(("error", "line"), [(RuntimeError("one\ntwo"), "one"), (RuntimeError(""), "RuntimeError"), (KeyError("x"), "'x'")])
def test_other_errors_are_their_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line and type(engine_error(error, "x", 1)) is EngineError
