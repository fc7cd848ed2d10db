"""The encoder in bfloat16 that engine ct2 uses on CPUs: the features of openai-whisper's, and no decoder in memory."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
import whisper
from whisper.model import ModelDimensions

from whispercore.checkpoints import write_random
from whispercore.engines import ct2
from whispercore.engines.pytorch import encoder
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings

TINY = ModelDimensions(80, 1500, 64, 2, 2, 51_865, 448, 64, 2, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny-random.pt"
    write_random(TINY, path)
    return path


def test_features_are_those_of_openai_whisper(checkpoint: Path) -> None:
    mels = torch.randn(3, TINY.n_mels, 3000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = whisper.load_model(str(checkpoint), device="cpu").encoder(mels)
    found = torch.from_numpy(encoder.load_encoder(checkpoint)(mels.numpy()))
    assert found.dtype == torch.float32 and found.shape == expected.shape and found.is_contiguous()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_a_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        encoder.load_encoder(tmp_path / "none.pt")


@pytest.mark.parametrize(("dtype", "fast", "used"), [("int8", True, True), ("int8", False, False), ("float32", True, False)])
def test_ct2_uses_it_in_int8_where_the_processor_multiplies_bfloat16(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fast: bool, used: bool
) -> None:
    from whispercore import checkpoints

    monkeypatch.setattr(ct2, "multiplies_bfloat16", lambda: fast)
    settings = Settings(model=str(checkpoint), engine="ct2", device="cpu", dtype=dtype, threads=1, converted_dir=str(tmp_path))
    checkpoints.prepare(settings)
    original = encoder.load_encoder
    made: list[weakref.ref[encoder.Encoder]] = []

    def load_encoder(path: Path) -> encoder.Encoder:
        loaded = original(path)
        made.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr("whispercore.engines.pytorch.encoder.load_encoder", load_encoder)
    engine = ct2.load(settings, "cpu")
    described = engine.describe()
    assert described["encoder"] == ("torch bfloat16" if used else described["precision"])
    assert [each() is not None for each in made] == [True] * used
    engine.close()
    assert [each() for each in made] == [None] * used  # its weights are the engine's, and freed with it
    assert engine.describe() == described
