"""The exception tree matches the drawing in its docstring."""

from __future__ import annotations

import re

import pytest

from whispercore import errors
from whispercore.errors import EngineError, InvalidRequest, OutOfMemory, WhisperError

DRAWN = dict(re.findall(r"── (\w+)\s+(\d{3})?", errors.__doc__ or ""))
KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and kind is not WhisperError}


def test_the_drawing_is_complete() -> None:
    assert set(DRAWN) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_status_as_drawn(name: str) -> None:
    kind = KINDS[name]
    assert issubclass(kind, WhisperError)
    assert str(kind.status) == DRAWN[name] or (not DRAWN[name] and kind.status == 500)
    assert kind.kind == ("configuration_error" if name == "ConfigurationError" else _kind(kind.status))


def _kind(status: int) -> str:
    return "invalid_request_error" if status < 499 else "server_error"


def test_what_an_error_carries() -> None:
    error = InvalidRequest("bad", param="task", code="special")
    assert (str(error), error.message, error.param, error.code) == ("bad", "bad", "task", "special")
    assert InvalidRequest("bad").code == "invalid_value"


def test_builtin_bases() -> None:
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(EngineError, RuntimeError)
    assert issubclass(OutOfMemory, EngineError)
