"""Engine onnx: what the contract suite cannot see, that is the export, its check, precisions, and Whisper's decoding to the token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="engine onnx is not installed: pip install -r requirements-onnx.txt")

import numpy as np
import onnx
import torch
from whisper.model import ModelDimensions

from tests.unit.engines.heldout import HELDOUT, NANO, SYNTHETIC
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import Checkpoint, converted_folder, load_checkpoint, onnx_export, prepare, write_random
from whispercore.engines import load_engine
from whispercore.engines.onnx import OnnxEngine
from whispercore.engines.onnx.model import Model
from whispercore.engines.openai import OpenAIEngine
from whispercore.errors import ConfigurationError, EngineError, OutOfMemory
from whispercore.settings import Settings
from whispercore.types import Decoding, Window

FILES = SYNTHETIC[:3]
TINY = ModelDimensions(
    n_mels=80, n_audio_ctx=1500, n_audio_state=64, n_audio_head=4, n_audio_layer=1, n_vocab=51_864, n_text_ctx=448, n_text_state=64,
    n_text_head=2, n_text_layer=3,
)  # fmt: skip
ENGLISH = Decoding(language="en")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("converted")
    section = {"engine": "onnx", "dtype": "float32", "device": "cpu", "threads": 1, "model": str(NANO), "converted_dir": str(folder)}
    return Settings.load(section, environ={})


@pytest.fixture(scope="module")
def engine(settings: Settings) -> OnnxEngine:
    prepare(settings)
    loaded = load_engine(settings)
    assert isinstance(loaded, OnnxEngine)
    return loaded


@pytest.fixture(scope="module")
def reference() -> OpenAIEngine:
    return OpenAIEngine(load_checkpoint(NANO))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """English only, with fewer heads in the decoder than in the encoder."""
    path = tmp_path_factory.mktemp("random") / "tiny.pt"
    write_random(TINY, path, dtype=torch.float32)
    return load_checkpoint(path)


def windows(decoding: Decoding = ENGLISH, count: int = 3) -> list[Window]:
    return [Window(read_samples(HELDOUT / file), 0.0, decoding) for file in FILES[:count]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": None},
        {"beam_size": 3, "patience": 1.5, "length_penalty": 0.6},
        {"timestamps": False, "suppress_blank": False, "suppress_tokens": (-1, 220, 440)},
        {"prompt": (220,) * 223, "max_tokens": 20},
        {"alignment": "all", "max_initial_timestamp": 0.2},
    ],
    ids=str,
)
def test_it_decodes_as_engine_openai(engine: OnnxEngine, reference: OpenAIEngine, options: dict[str, Any]) -> None:
    decoding = replace(ENGLISH, **options)
    for ours, theirs in zip(engine.decode(windows(decoding)), reference.decode(windows(decoding)), strict=True):
        assert (ours.tokens, ours.token_times) == (theirs.tokens, theirs.token_times)
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-5)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=1e-5)
        assert ours.language_probability == pytest.approx(theirs.language_probability, abs=1e-5)
        assert ours.token_probs == pytest.approx(theirs.token_probs, abs=1e-5)


def test_samples_are_engine_openais(engine: OnnxEngine, reference: OpenAIEngine) -> None:
    decoding = replace(ENGLISH, temperature=0.8, best_of=4)
    assert [each.tokens for each in engine.decode(windows(decoding))] == [each.tokens for each in reference.decode(windows(decoding))]


def test_the_export_is_kept_and_used_again(settings: Settings, engine: OnnxEngine) -> None:
    folder = converted_folder(settings, NANO, "float32-onnx")
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path.name for path in written} == {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data", "origin.txt"}
    assert prepare(settings) == f"{folder} is ready for engine 'onnx'"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    for name in ("encoder", "decoder"):
        onnx.checker.check_model(str(folder / f"{name}.onnx"))


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("float16", 0.02), ("int8", 0.3), ("uint8", 0.3)])
def test_every_precision_is_near_pytorch(tmp_path: Path, tiny: Checkpoint, dtype: str, limit: float) -> None:
    difference = onnx_export.export(tiny.dims, tiny.state, tmp_path / dtype, dtype, alignment_heads=tiny.alignment_heads)
    assert difference <= limit
    assert (difference > 1e-4) == (dtype != "float32")
    size = {path.name: path.stat().st_size for path in (tmp_path / dtype).iterdir()}
    assert size["decoder.onnx.data"] <= {"float32": 1.1, "float16": 0.55}.get(dtype, 0.85) * 4 * TINY.n_vocab * TINY.n_text_state


@pytest.mark.parametrize("dtype", onnx_export.QUANTIZED)
def test_eight_bits_come_back_within_half_a_step(dtype: str) -> None:
    matrix = torch.randn(6, 96, generator=torch.Generator().manual_seed(0)).numpy()
    matrix[0], matrix[1, :32], matrix[2] = 0.0, 5.0, abs(matrix[2])
    integers, scale, zero = onnx_export.quantized(matrix, dtype)
    assert integers.shape == (6, 3, onnx_export.BLOCK) and scale.shape == zero.shape == (6, 3)
    back = ((integers.astype(np.float32) - zero[..., None]) * scale[..., None]).reshape(matrix.shape)
    assert (abs(back - matrix).reshape(6, 3, -1).max(axis=2) <= 0.51 * scale).all()
    assert (back[0] == 0).all()


@pytest.mark.parametrize("dtype", onnx_export.QUANTIZED)
def test_eight_bits_are_each_windows_own(tmp_path: Path, dtype: str) -> None:
    """A loud neighbour, whose activations are large, changes nothing."""
    chosen = Settings.load(
        {"engine": "onnx", "dtype": dtype, "device": "cpu", "threads": 1, "model": str(NANO), "converted_dir": str(tmp_path)}, environ={}
    )
    prepare(chosen)
    eight = load_engine(chosen)
    asked = windows(replace(ENGLISH, alignment="all"))
    noise = Window(np.random.default_rng(0).uniform(-1, 1, 480_000).astype(np.float32), 0.0, asked[0].decoding)
    for window in asked:
        (alone,), (beside, _) = eight.decode([window]), eight.decode([window, noise])
        assert (alone.tokens, alone.token_times) == (beside.tokens, beside.token_times)
        assert alone.avg_logprob == pytest.approx(beside.avg_logprob, abs=1e-4)


def test_eight_bits_that_hear_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano, right = load_checkpoint(NANO), onnx_export.quantized
    monkeypatch.setattr(onnx_export, "quantized", lambda matrix, dtype: right(matrix[::-1] if len(matrix) > 50_000 else matrix, dtype))
    with pytest.raises(ConfigurationError, match="nats: choose another dtype"):
        onnx_export.export(nano.dims, nano.state, tmp_path / "wrong", "int8", alignment_heads=nano.alignment_heads)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_another_model_is_refused(tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = onnx_export.Graph.norm
    monkeypatch.setattr(onnx_export.Graph, "norm", lambda graph, x, name: x if name.endswith("cross_attn_ln") else norm(graph, x, name))
    with pytest.raises(ConfigurationError, match="standard deviations off"):
        onnx_export.export(tiny.dims, tiny.state, tmp_path / "wrong", "float32", alignment_heads=tiny.alignment_heads)
    assert list(tmp_path.iterdir()) == []


def test_an_english_model_with_fewer_heads_that_follow_the_sound(tmp_path: Path, tiny: Checkpoint, settings: Settings) -> None:
    chosen = replace(settings, model=str(tiny.path), converted_dir=str(tmp_path))
    assert "standard deviations" in prepare(chosen)
    decoding = Decoding(max_tokens=30, alignment="all", timestamps=False, ignore_eot=True)
    ours = load_engine(chosen).decode(windows(decoding, 2))
    for one, other in zip(ours, OpenAIEngine(tiny).decode(windows(decoding, 2)), strict=True):
        assert (one.tokens, one.token_times, one.language) == (other.tokens, other.token_times, "en")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8_float16"])
def test_a_precision_the_processor_lacks(settings: Settings, dtype: str) -> None:
    for refuse in (prepare, load_engine):
        with pytest.raises(ConfigurationError, match="computes in float32, int8, uint8") as caught:
            refuse(replace(settings, dtype=dtype))
        assert caught.value.param == "dtype"


def test_a_gpu_that_onnx_runtime_does_not_know(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="onnxruntime-gpu"):
        onnx_export.precision(settings, "cuda")


def test_an_export_is_served_without_its_checkpoint(settings: Settings, engine: OnnxEngine, tiny: Checkpoint, tmp_path: Path) -> None:
    folder = converted_folder(settings, NANO, "float32-onnx")
    for named in ({"model": str(folder)}, {"model": folder.name, "models_dir": str(folder.parent)}):
        alone = replace(settings, dtype="auto", converted_dir=str(tmp_path), **named)
        assert prepare(alone) == f"{folder} is ready for engine 'onnx'"
        loaded = load_engine(alone)
        assert loaded.describe()["precision"] == "float32" and loaded.describe()["model"] == folder.name
        assert loaded.decode(windows()) == engine.decode(windows())
    with pytest.raises(ConfigurationError, match="is exported in float32; not in int8") as caught:
        load_engine(replace(settings, model=str(folder), dtype="int8"))
    assert caught.value.param == "dtype"
    half = tmp_path / "half"
    onnx_export.export(tiny.dims, tiny.state, half, "float16", alignment_heads=tiny.alignment_heads)
    with pytest.raises(ConfigurationError, match="computes in float32, int8, uint8; not in float16"):
        load_engine(replace(settings, model=str(half), dtype="auto"))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_whose_libraries_are_missing_is_not_the_cpu(settings: Settings, engine: OnnxEngine) -> None:
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider"):
        Model(converted_folder(settings, NANO, "float32-onnx"), device="cuda", threads=1)


def test_not_exported_and_broken(tmp_path: Path, settings: Settings, engine: OnnxEngine) -> None:
    elsewhere = replace(settings, converted_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match="prepare"):
        load_engine(elsewhere)
    folder = converted_folder(elsewhere, NANO, "float32-onnx")
    folder.mkdir(parents=True)
    for path in converted_folder(settings, NANO, "float32-onnx").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigurationError, match=r"encoder.onnx cannot be read, it may be cut short .*delete it when it lies in conv"):
        load_engine(elsewhere)
    for name in ("encoder.onnx", "decoder.onnx"):
        (folder / name).write_bytes((converted_folder(settings, NANO, "float32-onnx") / name).read_bytes())
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_engine(elsewhere)


def test_errors_are_ours(settings: Settings, engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for reason, kind in (("Failed to allocate memory for requested buffer of size 1", OutOfMemory), ("Non-zero status code", EngineError)):
        monkeypatch.setattr(engine.model, "encode", lambda mel, reason=reason: (_ for _ in ()).throw(RuntimeError(reason)))
        with pytest.raises(kind, match="1 windows"):
            engine.decode(windows(count=1))
    closed = load_engine(settings)
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.decode(windows(count=1))
