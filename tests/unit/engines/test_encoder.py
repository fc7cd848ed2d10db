"""PyTorch's encoder in engine ct2, in bfloat16 or 8 bits: the features of openai-whisper's, the choice, and no decoder in memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import whisper
from whisper.model import ModelDimensions

from tests.unit.engines.heldout import HELDOUT, NANO
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import load_checkpoint, write_random
from whispercore.devices import multiplies_bfloat16
from whispercore.engines import ct2
from whispercore.engines.pytorch import attention, encoder, int8, linear
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings

TINY = ModelDimensions(80, 1500, 64, 2, 2, 51_865, 448, 64, 2, 2)
BASE = NANO.parent / "base"
PRECISIONS = ("bfloat16", "int8")
MULTIPLIED = pytest.mark.skipif(
    not multiplies_bfloat16(), reason="this processor has no bfloat16 instructions, and this encoder is not used"
)
INT8_ERROR = 1.0 if linear.multiplies_int8() else 1.3
"""FBGEMM's weights have 7 bits where the processor has no VNNI."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny-random.pt"
    write_random(TINY, path)
    return path


def features(path: Path, mels: torch.Tensor) -> torch.Tensor:
    """By openai-whisper's encoder in float32."""
    loaded = load_checkpoint(path)
    model = whisper.model.Whisper(loaded.dims)
    model.load_state_dict({name: tensor.float() for name, tensor in loaded.state.items()})
    with torch.inference_mode():
        found: torch.Tensor = model.encoder(mels)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_are_those_of_openai_whisper(checkpoint: Path, precision: str) -> None:
    mels = torch.randn(3, TINY.n_mels, 3000, generator=torch.Generator().manual_seed(1))
    expected = features(checkpoint, mels)
    found = torch.from_numpy(encoder.load_encoder(checkpoint, precision)(mels.numpy()))
    assert found.dtype == torch.float32 and found.shape == expected.shape and found.is_contiguous()
    assert (found - expected).norm() < 0.02 * (INT8_ERROR if precision == "int8" else 1) * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [NANO, pytest.param(BASE, marks=pytest.mark.skipif(not BASE.exists(), reason="no whisper-models/base"))], ids=["nano", "base"]
)
@pytest.mark.parametrize(("precision", "error"), [pytest.param("bfloat16", 0.03, marks=MULTIPLIED), ("int8", 0.06 * INT8_ERROR)])
def test_features_of_speech(path: Path, precision: str, error: float) -> None:
    """Within the error of CTranslate2's encoder in int8, which is 0.056 for base, and 0.073 without VNNI."""
    audio = read_samples(HELDOUT / "digits-26.flac")
    mels = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(audio)), load_checkpoint(path).dims.n_mels)[None]
    expected = features(path, mels)
    found = torch.from_numpy(encoder.load_encoder(path, precision)(mels.numpy()))
    assert (found - expected).norm() < error * expected.norm()


def test_smoothing_changes_no_feature(checkpoint: Path) -> None:
    """In float32 the factors cancel out, also for a channel whose normalisation is zero."""
    loaded = load_checkpoint(checkpoint)
    state = dict(loaded.state)
    norm = "encoder.blocks.0.attn_ln"
    state[f"{norm}.weight"] = torch.linspace(0, 30, TINY.n_audio_state)
    state[f"{norm}.bias"] = state[f"{norm}.bias"].clone()
    state[f"{norm}.bias"][0] = 0.0
    smooth = encoder.smoothed(state, TINY.n_audio_layer)
    x = torch.randn(5, TINY.n_audio_state, generator=torch.Generator().manual_seed(1))
    for name, product in (("attn_ln", "attn.key"), ("mlp_ln", "mlp.0")):
        layers = [
            [each[f"encoder.blocks.0.{part}"].float() for part in (f"{name}.weight", f"{name}.bias", f"{product}.weight")]
            for each in (state, smooth)
        ]
        expected, found = ((x * weight + bias) @ matrix.T for weight, bias, matrix in layers)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    ranges = [smooth[f"{norm}.weight"].abs().max() / smooth[f"{norm}.weight"].abs().median(), state[f"{norm}.weight"].max() / 15]
    assert ranges[0] < ranges[1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_missing_checkpoint_says_so(tmp_path: Path, precision: str) -> None:
    with pytest.raises(ConfigurationError):
        encoder.load_encoder(tmp_path / "none.pt", precision)


@pytest.mark.parametrize(
    ("bfloat16", "onednn", "fbgemm", "expected"),
    [
        (True, True, True, "bfloat16"),
        (True, False, False, "bfloat16"),
        (False, True, False, "int8"),
        (False, False, True, "int8"),
        (False, False, False, None),
    ],
)
def test_the_precision_is_the_processors(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, onednn: bool, fbgemm: bool, expected: str | None
) -> None:
    monkeypatch.setattr(encoder, "multiplies_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(encoder, "multiplies_int8", lambda: onednn)
    monkeypatch.setattr(int8, "is_available", lambda: fbgemm)
    assert encoder.fastest_precision() == expected


@pytest.mark.skipif(not int8.is_available(), reason="this PyTorch has no FBGEMM, or none for this processor")
@pytest.mark.parametrize("vnni", [True, False])
def test_without_vnni_the_encoder_is_fbgemms(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, vnni: bool) -> None:
    monkeypatch.setattr(encoder, "multiplies_int8", lambda: vnni)
    layer = encoder.load_encoder(checkpoint, "int8").model.encoder[0].qkv
    assert isinstance(layer, linear.Int8Product if vnni else int8.RowwiseInt8)


@pytest.mark.parametrize(("capability", "by_head"), [("AVX512", (True, True)), ("AVX2", (True, False)), ("DEFAULT", (True, False))])
def test_attention_by_head_in_float32_needs_avx512(monkeypatch: pytest.MonkeyPatch, capability: str, by_head: tuple[bool, bool]) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    attention._is_faster_by_head.cache_clear()
    try:
        assert (attention._is_faster_by_head(torch.bfloat16), attention._is_faster_by_head(torch.float32)) == by_head
    finally:
        attention._is_faster_by_head.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "precision"), [("int8", "bfloat16"), ("int8", "int8"), ("int8", None), ("float32", "bfloat16"), ("float32", "int8")]
)
def test_ct2_uses_it_in_int8_where_it_is_faster(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, precision: str | None
) -> None:
    from whispercore import checkpoints

    monkeypatch.setattr(encoder, "fastest_precision", lambda: precision)
    settings = Settings(model=str(checkpoint), engine="ct2", device="cpu", dtype=dtype, threads=1, converted_dir=str(tmp_path))
    checkpoints.prepare(settings)
    original = encoder.load_encoder
    made: list[weakref.ref[encoder.Encoder]] = []

    def load_encoder(path: Path, precision: str) -> encoder.Encoder:
        loaded = original(path, precision)
        made.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(encoder, "load_encoder", load_encoder)
    engine = ct2.load(settings, "cpu")
    described = engine.describe()
    used = dtype == "int8" and precision is not None
    assert described["encoder"] == (f"torch {precision}" if used else described["precision"])
    assert [each() is not None for each in made] == [True] * used
    engine.close()
    assert [each() for each in made] == [None] * used  # its weights are the engine's, and freed with it
    assert engine.describe() == described


EXACT = pytest.param(linear.int8_product, marks=pytest.mark.skipif(not linear.multiplies_int8(), reason="this processor has no VNNI"))
ROWWISE = pytest.param(int8.rowwise_int8, marks=pytest.mark.skipif(not int8.is_available(), reason="this PyTorch has no FBGEMM"))


@pytest.mark.parametrize("make", [EXACT, ROWWISE])
def test_a_layer_of_products_in_8_bits(make: Callable[[torch.Tensor, torch.Tensor], linear.Projection]) -> None:
    """Each row and each output has its own scale, so that neither large nor tiny neighbours cost precision."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator) * torch.logspace(-4, 2, 96)[:, None]
    weight[7] = 0.0
    x = torch.randn(2, 20, 64, generator=generator) * torch.logspace(-3, 3, 20)[:, None]
    x[1, 3] = 0.0
    bias, residual = torch.randn(96, generator=generator), torch.randn(2, 20, 96, generator=generator)
    layer = make(weight, bias)
    product = torch.nn.functional.linear(x, weight)
    size = x.norm(dim=-1, keepdim=True) * weight.norm(dim=-1)
    assert ((layer(x) - bias - product).abs() <= 0.02 * size + 1e-4).all()
    assert ((layer.plus(residual, x) - residual - bias - product).abs() <= 0.02 * size + 1e-4).all()
    assert torch.equal(layer.gelu(x), torch.nn.functional.gelu(layer(x)))
    assert torch.equal(layer(x)[1, 3], bias) and torch.equal(layer(x)[..., 7], bias[7].expand(2, 20))


def test_products_in_8_bits_need_a_fast_processor_and_operators_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert linear.multiplies_int8() or not torch.cpu._is_vnni_supported()  # without VNNI oneDNN's sums overflow

    def refused(*_: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    def wrong(x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.zeros(len(x), 16)

    for broken in (refused, wrong):
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops.onednn, "qlinear_pointwise", broken)
            assert not linear.multiplies_int8()
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "onednn", object())  # PyTorch without these operators
        assert not linear.multiplies_int8()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not linear.multiplies_int8()


def test_attention_head_by_head_is_attention_without_onednn_too() -> None:
    query, key, value = torch.randn(3, 2, 4, 50, 16).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert linear.has_onednn()
    for queries in (7, 50, 64):
        for by_onednn in (True, False):
            attended = attention.attend_by_head(query, key, value, queries, by_onednn)
            assert torch.allclose(attended, expected, atol=1e-5)
            assert torch.allclose(attention._by_head()(query, key, value, queries, by_onednn), attended, atol=1e-6)
