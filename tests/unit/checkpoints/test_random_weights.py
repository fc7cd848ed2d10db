"""Random weights have the shapes of OpenAI's models, and repeat with their seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.checkpoints.doubles import SMALL
from whispercore import checkpoints
from whispercore.checkpoints import (
    dimensions,
    load_checkpoint,
    write_random,
)


@pytest.mark.parametrize("size", ["tiny", "base", "small", "medium", "large-v2", "large-v3", "turbo"])
def test_sizes_have_the_published_number_of_weights(size: str) -> None:
    millions = {"tiny": 37.8, "base": 72.6, "small": 240.6, "medium": 762.3, "large-v2": 1541.4, "large-v3": 1541.6, "turbo": 807.0}
    state = checkpoints.empty_model(dimensions(size)).state_dict()
    assert sum(map(torch.numel, state.values())) / 1e6 == pytest.approx(millions[size], rel=0.005)


def test_random_checkpoints_decode_to_finite_scores_and_repeat(tmp_path: Path) -> None:
    for name, dtype in (("one", torch.float16), ("two", torch.float16)):
        write_random(SMALL, tmp_path / f"{name}.pt", dtype=dtype)
    one, two = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert all(tensor.dtype == torch.float16 and torch.equal(tensor, two.state[name]) for name, tensor in one.state.items())
