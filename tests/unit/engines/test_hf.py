"""Engine hf: what the contract suite cannot see, that is folders of Hugging Face's layout, precisions, penalties, missing packages."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="engine hf is not installed: pip install -r requirements-hf.txt")

from transformers import GenerationConfig

from tests.unit.engines.heldout import HELDOUT, NANO, SYNTHETIC
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import Checkpoint, dimensions, load_checkpoint, write_random
from whispercore.engines import load_engine
from whispercore.engines.hf import HuggingFaceEngine, Rules, _quantize
from whispercore.engines.openai import OpenAIEngine
from whispercore.errors import ConfigurationError, EngineError, InvalidRequest, OutOfMemory
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.tokenizer import Tokenizer
from whispercore.types import SAMPLE_RATE, Decoded, Decoding, Window

FILES = SYNTHETIC[:2]
ENGLISH = Decoding(language="en")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return load_checkpoint(NANO)


@pytest.fixture(scope="module")
def engine(nano: Checkpoint) -> HuggingFaceEngine:
    return HuggingFaceEngine(nano)


def windows(decoding: Decoding = ENGLISH) -> list[Window]:
    return [Window(read_samples(HELDOUT / file), 0.0, decoding) for file in FILES]


def texts(found: list[Decoded]) -> list[str]:
    return [one.text for one in found]


def settings(model: Path | str, **others: object) -> Settings:
    return replace(Settings(engine="hf", device="cpu", threads=1, models_dir=str(NANO.parent), model=str(model)), **others)


@pytest.fixture(scope="module")
def folder(engine: HuggingFaceEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as transformers saves it, with a generation_config.json that would leave half of the words out."""
    made = tmp_path_factory.mktemp("fine-tuned") / "household"
    assert engine.model is not None
    (plain,) = engine.decode(windows()[:1])
    engine.model.save_pretrained(made)
    said = [token for token in plain.tokens if token < engine.tokenizer.eot]
    GenerationConfig(suppress_tokens=said, begin_suppress_tokens=[220], max_length=9, num_beams=4).save_pretrained(made)
    return made


def test_a_folder_of_hugging_faces_says_the_same_as_the_pt_file(folder: Path, engine: HuggingFaceEngine) -> None:
    assert (folder / "model.safetensors").is_file() and (folder / "config.json").is_file()
    loaded = load_engine(settings(folder))
    assert [one.tokens for one in loaded.decode(windows())] == [one.tokens for one in engine.decode(windows())]
    assert loaded.describe()["model"] == "household"
    loaded.close()


def test_a_folder_cut_short_is_told(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        whole = file.read_bytes()
        (tmp_path / file.name).write_bytes(whole[: len(whole) // 2] if file.suffix == ".safetensors" else whole)
    with pytest.raises(ConfigurationError, match="cut short"):
        load_engine(settings(tmp_path))


@pytest.mark.parametrize("decoding", [Decoding(), replace(ENGLISH, beam_size=3, length_penalty=0.6)], ids=["detected", "beams"])
def test_tokens_and_scores_are_openai_whispers(nano: Checkpoint, engine: HuggingFaceEngine, decoding: Decoding) -> None:
    for ours, theirs in zip(engine.decode(windows(decoding)), OpenAIEngine(nano).decode(windows(decoding)), strict=True):
        assert ours.tokens == theirs.tokens and ours.language == theirs.language
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-3)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=1e-3)


def test_random_weights_wander_as_openai_whispers_do(tmp_path: Path) -> None:
    """Nonsense of tiny's shape, 30 tokens of it: rules and scores where nothing is certain."""
    write_random(dimensions("tiny"), tmp_path / "tiny.pt", dtype=torch.float32)
    checkpoint, long = load_checkpoint(tmp_path / "tiny.pt"), replace(ENGLISH, ignore_eot=True, max_tokens=30)
    ours, theirs = (made.decode(windows(long)) for made in (HuggingFaceEngine(checkpoint), OpenAIEngine(checkpoint)))
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert [one.avg_logprob for one in ours] == pytest.approx([one.avg_logprob for one in theirs], abs=1e-3)


def test_bfloat16_hears_the_same_words(nano: Checkpoint, engine: HuggingFaceEngine) -> None:
    half = HuggingFaceEngine(nano, dtype="bfloat16")
    found = half.decode(windows())
    assert texts(found) == texts(engine.decode(windows()))
    assert all(math.isfinite(one.avg_logprob) for one in found) and half.describe()["precision"] == "bfloat16"


def test_int8_by_torchao_hears_the_same_words(nano: Checkpoint, engine: HuggingFaceEngine) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed, which makes int8 for engine hf: pip install -r requirements-hf.txt")
    quantized = HuggingFaceEngine(nano, dtype="int8")
    found = quantized.decode(windows())
    assert texts(found) == texts(engine.decode(windows()))
    assert quantized.describe()["precision"] == "int8"


def test_int8_without_torchao_names_it(engine: HuggingFaceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert engine.model is not None
    with pytest.raises(ConfigurationError, match=r"torchao for int8.*requirements-hf\.txt"):
        _quantize(engine.model)


def test_a_precision_the_device_lacks_is_told() -> None:
    with pytest.raises(ConfigurationError, match="float16") as refused:
        load_engine(settings("nano", dtype="float16"))
    assert refused.value.param == "dtype"


def test_without_transformers_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "whispercore.engines.hf", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"transformers.*requirements-hf.txt, or pip install '.\[hf\]'"):
        load_engine(settings("nano"))


def test_repetition_is_penalised(engine: HuggingFaceEngine) -> None:
    long = replace(ENGLISH, ignore_eot=True, max_tokens=60, timestamps=False)
    plain, penalised, once = (
        engine.decode(windows(decoding)[:1])[0].tokens
        for decoding in (long, replace(long, repetition_penalty=5.0), replace(long, no_repeat_ngram_size=2))
    )
    pairs = list(itertools.pairwise(once))
    assert len(set(pairs)) == len(pairs)
    assert len(set(penalised)) > len(set(plain))


def test_a_prompts_tokens_are_not_repetitions() -> None:
    rules = Rules(Tokenizer(51_865), replace(ENGLISH, repetition_penalty=2.0, timestamps=False), begin=3)
    scores = rules(torch.tensor([[50_361, 1000, 50_258, 1001]]), torch.ones(1, 51_865))
    assert (scores[0, 1000], scores[0, 1001]) == (1.0, 0.5)


def test_patience_is_refused(nano: Checkpoint, engine: HuggingFaceEngine) -> None:
    with Transcriber(Settings(), engine=HuggingFaceEngine(nano)) as transcriber, pytest.raises(InvalidRequest, match="patience"):
        transcriber.submit(b"", Options(beam_size=2, patience=2.0))


def test_out_of_memory_is_told_apart(engine: HuggingFaceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(engine, "_decode", full)
    with pytest.raises(OutOfMemory, match="batch of 2"):
        engine.decode(windows())


def test_a_closed_engine_says_so(nano: Checkpoint) -> None:
    closed = HuggingFaceEngine(nano)
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.decode([Window(read_samples(HELDOUT / FILES[0])[:SAMPLE_RATE], 0.0, ENGLISH)])
