from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from whispercore.checkpoints import Checkpoint
from whispercore.engines.pytorch.attention import Attention, attend
from whispercore.engines.pytorch.cache import make_cache
from whispercore.engines.torch.contest import fastest, fastest_attention
from whispercore.engines.torch.device import Host


def right(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value)


def wrong(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value) * 1.1


def wrong_at_the_end(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    result = attend(query, key, value)
    result[-1] = 0.0
    return result


def wrong_for_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value) * (2.0 if len(query) == 1 else 1.0)


def undefined(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.full_like(query, torch.nan)


def failing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    raise FileNotFoundError("no C compiler\nmore")


@pytest.fixture
def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(8, 2, 1, 16), torch.randn(8, 2, 50, 16), torch.randn(8, 2, 50, 16)


def taking(**seconds: float) -> Callable[[Callable[[], object]], float]:
    """A timer by the names of the functions that it is given."""

    def timer(work: Callable[[], object]) -> float:
        assert isinstance(work, partial)
        return seconds[work.func.__name__]

    return timer


def test_the_fastest_right_implementation_wins(inputs: tuple[Tensor, ...], caplog: pytest.LogCaptureFixture) -> None:
    wrong_ones = {"bad": wrong, "worse": wrong_at_the_end, "worst": undefined, "one": wrong_for_one, "Triton": failing}
    candidates = {"PyTorch": attend, "cuDNN": right, **wrong_ones}
    timer = taking(attend=2e-3, right=1e-3, wrong=1e-4, wrong_at_the_end=1e-4, undefined=1e-4, wrong_for_one=1e-4)
    with caplog.at_level("INFO"):
        assert fastest("the encoder", candidates, inputs, timer) is right
    assert "attention of the encoder by cuDNN (PyTorch 2.00 ms, cuDNN 1.00 ms, one 0.10 ms)" in caplog.text
    assert "bad: its results for 8 windows are wrong by 10.0%" in caplog.text
    assert "one: its results for 1 windows are wrong by 100.0%" in caplog.text
    assert "not computed by worse" in caplog.text and "worst: its results for 8 windows are wrong by nan%" in caplog.text
    assert "not computed by Triton: no C compiler" in caplog.text


def test_a_slower_implementation_is_not_taken(inputs: tuple[Tensor, ...]) -> None:
    assert fastest("the encoder", {"PyTorch": attend, "cuDNN": right}, inputs, taking(attend=1e-3, right=2e-3)) is attend


def test_without_any_time_the_first_is_taken(inputs: tuple[Tensor, ...]) -> None:
    def timer(work: Callable[[], object]) -> float:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert fastest("the encoder", {"PyTorch": attend, "cuDNN": right}, inputs, timer) is attend


def test_a_cpu_holds_no_contest(nano: Checkpoint) -> None:
    cache = make_cache(nano.dims, 2, 2, torch.float32, torch.device("cpu"))
    assert fastest_attention(Host(), nano.dims, cache, 2) == Attention()
