"""Attention to keys in bfloat16 and in 8 bits is near attention to floats, for any windows, groups and lengths of texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from whispercore.engines.pytorch import cached_attention
from whispercore.engines.pytorch.cached_attention import AudioKeys, attend_audio, attend_audio_long, audio_scores, room_for_audio

WINDOWS, HEADS, POSITIONS = 4, 3, 1500
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.int8: 0.03}


def _kept(dtype: torch.dtype, size: int = 64) -> tuple[AudioKeys, Tensor, Tensor]:
    """Keys of two layers, and those of the second in float32: positions of very different size, one of them zeros."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(WINDOWS, POSITIONS, 2, HEADS, size, generator=generator)
    both *= torch.logspace(-2, 0.5, POSITIONS)[:, None, None, None]
    both[:, 7] = 0.0
    audio = room_for_audio(WINDOWS, 2, HEADS, POSITIONS, size, dtype)
    for window in range(WINDOWS):
        audio.store(0, window, torch.ones(POSITIONS, 2, HEADS, size))
        audio.store(1, window, both[window].clone())
    keys, values = both.permute(2, 0, 3, 1, 4)
    return audio, keys, values


def _queries(windows: int, length: int, size: int = 64) -> Tensor:
    return torch.randn(windows, HEADS, length, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "error"), DTYPES.items(), ids=str)
@pytest.mark.parametrize("windows", [[0, 1, 2, 3], [1, 2], [3, 0], [2]], ids=str)
@pytest.mark.parametrize("length", [1, 5])
def test_a_step_attends_to_the_windows_asked_for(dtype: torch.dtype, error: float, windows: list[int], length: int) -> None:
    audio, keys, values = _kept(dtype)
    query = _queries(len(windows), length)
    expected = F.scaled_dot_product_attention(query, keys[windows], values[windows])
    found = attend_audio(query, audio.layers[1], windows)
    assert found.dtype == torch.float32 and (found - expected).norm() < error * expected.norm()


@pytest.mark.parametrize(("dtype", "error"), DTYPES.items(), ids=str)
@pytest.mark.parametrize(("length", "size"), [(1, 64), (8, 64), (9, 64), (40, 64), (40, 32)])
def test_texts_of_any_length_attend_to_their_windows(dtype: torch.dtype, error: float, length: int, size: int) -> None:
    audio, keys, values = _kept(dtype, size)
    query = _queries(WINDOWS, length, size)
    expected = F.scaled_dot_product_attention(query, keys, values)
    assert (attend_audio_long(query, audio.layers[1]) - expected).norm() < error * expected.norm()


@pytest.mark.parametrize(("dtype", "error"), DTYPES.items(), ids=str)
def test_scores_are_of_the_heads_asked_for(dtype: torch.dtype, error: float) -> None:
    audio, keys, _ = _kept(dtype)
    query = _queries(1, 12)[0, [2, 0]]
    expected = query @ keys[1, [2, 0]].mT * 64**-0.5
    assert (audio_scores(query, audio.layers[1], 1, [2, 0]) - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_window_gives_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    audio, _, _ = _kept(dtype)
    query = _queries(2, 1)
    some = audio.of([3, 1])
    assert some.windows == 2
    together = attend_audio(query, some.layers[1], [0, 1])
    alone = torch.cat([attend_audio(query[i : i + 1], audio.layers[1], [window]) for i, window in enumerate((3, 1))])
    assert torch.equal(together, alone)


def test_no_number_of_8_bits_overflows() -> None:
    audio = room_for_audio(1, 1, HEADS, POSITIONS, 64, torch.int8)
    both = torch.logspace(-38, 38, POSITIONS).clamp(max=1e38)[:, None, None, None].expand(POSITIONS, 2, HEADS, 64).clone()
    both[::2] *= -1
    audio.store(0, 0, both.clone())
    keys, _, scales, _ = audio.layers[0]
    widened = keys[0].float() * scales[0].float()[..., None]
    expected = both[:, 0].transpose(0, 1)
    large = expected.abs() > 1e-30
    assert torch.allclose(widened[large], expected[large], rtol=0.01)


@pytest.mark.parametrize(
    ("bfloat16", "size", "expected"),
    [(True, 64, torch.bfloat16), (False, 64, torch.int8), (False, 32, torch.int8), (False, 20, torch.float32)],
)
def test_the_dtype_is_the_processors(monkeypatch: pytest.MonkeyPatch, bfloat16: bool, size: int, expected: torch.dtype) -> None:
    monkeypatch.setattr(cached_attention, "multiplies_bfloat16", lambda: bfloat16)
    assert cached_attention.fastest_dtype(size) == expected


def test_without_the_kernel_keys_are_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_attention, "multiplies_bfloat16", lambda: False)

    def refused(*_: object) -> Tensor:
        raise RuntimeError("not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "_weight_int8pack_mm", refused)
        assert cached_attention.fastest_dtype(64) == torch.float32
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    assert cached_attention.fastest_dtype(64) == torch.float32
