"""Smaller precisions, weights in 8 bits, compiled parts, and the settings that choose them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from tests.unit.engines.heldout import ROOT
from tests.unit.engines.torch.doubles import ENGLISH, check_equal, windows
from whispercore.checkpoints import Checkpoint
from whispercore.devices import multiplies_bfloat16
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.pytorch import attention as attention_module
from whispercore.engines.pytorch.compiling import check_compiler
from whispercore.engines.pytorch.linear import Int8, Packed, quantized
from whispercore.engines.torch import TorchEngine, load
from whispercore.engines.torch.precision import Precision, resolve_precision
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings
from whispercore.types import Samples


def test_without_packed_weights(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a processor for which oneDNN has no kernels, and on a GPU."""

    def refused(*_: object) -> None:
        raise RuntimeError("could not create a primitive")

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refused)
        engine = TorchEngine(nano, max_batch=2)
    assert not isinstance(engine._model.unembed, Packed)
    asked = windows(recordings[:2], replace(ENGLISH, alignment="all"))
    check_equal(engine.decode(asked), reference.decode(asked))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_hears_the_same_words(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], dtype: torch.dtype
) -> None:
    """8 bits of mantissa leave the text as it is, apart from digits in poor recordings."""
    found = TorchEngine(nano, dtype=dtype, max_batch=4).decode(windows(recordings[4:]))
    expected = reference.decode(windows(recordings[4:]))
    assert sum(one.text == other.text for one, other in zip(found, expected, strict=True)) >= 3
    for one, other in zip(found, expected, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_8_bits_hear_the_same_words(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], dtype: torch.dtype
) -> None:
    found = TorchEngine(nano, dtype=dtype, int8=True, max_batch=4).decode(windows(recordings[4:]))
    expected = reference.decode(windows(recordings[4:]))
    assert sum(one.text == other.text for one, other in zip(found, expected, strict=True)) >= 3
    for one, other in zip(found, expected, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 8, 40])
def test_a_layer_of_8_bits(dtype: torch.dtype, rows: int) -> None:
    """Within half a step of each output's scale, however many rows there are, in a quarter of float32's memory."""
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64) * torch.logspace(-4, 2, 96)[:, None], torch.randn(96)
    weight[7] = 0.0
    layer = quantized(weight, bias, dtype)
    assert layer.weight.dtype == torch.int8
    assert ((layer.weight * layer.scale.float()[:, None] - weight).abs() <= 0.51 * layer.scale.float()[:, None]).all()
    x = torch.randn(2, rows // 2, 64).to(dtype) if rows > 1 else torch.randn(1, 64).to(dtype)
    assert layer.bias is not None
    expected = torch.nn.functional.linear(x.double(), layer.weight.double() * layer.scale.double()[:, None], layer.bias.double())
    assert layer(x).dtype == dtype and layer(x).shape == expected.shape
    error = (layer(x).double() - expected).abs() / (expected.abs() + layer.scale.double() * 127 * 8)
    assert float(error.max()) < {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


def test_what_a_precision_means() -> None:
    assert resolve_precision(Settings(dtype="auto"), "cpu") == Precision(torch.float32)
    assert resolve_precision(Settings(dtype="auto"), "cuda") == Precision(torch.float16)
    assert (
        resolve_precision(Settings(dtype="int8_float16"), "cuda")
        == resolve_precision(Settings(dtype="int8"), "cuda")
        == Precision(torch.float16, int8=True)
    )
    assert str(resolve_precision(Settings(dtype="int8_bfloat16"), "cpu")) == "int8_bfloat16"
    assert resolve_precision(Settings(dtype="int8"), "cpu").dtype == (torch.bfloat16 if multiplies_bfloat16() else torch.float32)
    for asked, device in (("float16", "cpu"), ("int8_float16", "cpu"), ("uint8", "cuda")):
        with pytest.raises(ConfigurationError, match=f"on {device} computes in .*not in {asked}") as caught:
            resolve_precision(Settings(dtype=asked), device)
        assert caught.value.param == "dtype"


def test_an_old_gpu_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    for asked in ("bfloat16", "int8_bfloat16"):
        with pytest.raises(ConfigurationError, match="set dtype to float16"):
            resolve_precision(Settings(dtype=asked), "cuda")
    assert resolve_precision(Settings(dtype="int8"), "cuda").dtype == torch.float16


def test_settings_reach_the_engine(recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(models_dir=str(ROOT / "whisper-models"), device="cpu", dtype="int8_float32", threads=1, batch_size=2)
    engine = load(settings, "cpu")
    assert isinstance(engine, TorchEngine)
    assert engine.describe() | {"precision": "int8_float32", "compiled": False, "batch": 2} == engine.describe()
    assert isinstance(engine._model.decoder[0].qkv, Int8)
    assert engine.decode(windows(recordings[:1]))[0].text

    def lacking(function: object) -> object:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr("whispercore.engines.pytorch.compiling.compiled", lacking)
    with pytest.raises(ConfigurationError, match=r"C\+\+ compiler.*No working.*compile: false") as caught:
        load(replace(settings, compile=True), "cpu")
    assert caught.value.param == "compile"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_attention_of_many_queries_in_bfloat16(count: int) -> None:
    """With the memory layout of the encoder's queries, keys and values: windows one after the other, heads side by side."""
    torch.manual_seed(0)
    query, key, value = torch.randn(count, 1500, 3, 2, 64).bfloat16().permute(2, 0, 3, 1, 4).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention_module.attend(query, key, value), expected, rtol=0, atol=5e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: torch.compile is not tested here")
def test_compiled_parts_sample_the_same_tokens(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    check_compiler(torch.device("cpu"))
    engine = TorchEngine(nano, max_batch=2, compiles=True)
    together = windows(recordings[:2], replace(ENGLISH, max_tokens=12, ignore_eot=True))
    check_equal(engine.decode(together), reference.decode(together))
