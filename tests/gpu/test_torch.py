"""Engine torch on a GPU: tokens, graphs, precisions, memory and warm start.

Run it with `pytest tests/gpu -s`: it prints what it finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import scores
from bench.gpu import random_checkpoint
from tests.unit.engines.heldout import HELDOUT
from tests.unit.engines.torch.doubles import ENGLISH, WORDS, Listed, check_equal, windows
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import Checkpoint
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.pytorch.compiling import check_compiler
from whispercore.engines.pytorch.model import load_model
from whispercore.engines.torch import TorchEngine
from whispercore.engines.torch.contest import kernels
from whispercore.engines.torch.device import Cuda
from whispercore.errors import ConfigurationError
from whispercore.types import Decoding, Samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its graphs, precisions and memory are not tested here"),
]


@pytest.fixture
def whole_memory() -> Iterator[None]:
    """Gives the next test all of the GPU's memory again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def words_of(engine: TorchEngine) -> tuple[list[str], list[str]]:
    """The texts of the held-out recordings, and the engine's."""
    listed = json.loads((HELDOUT / "manifest.json").read_text())
    heard = engine.decode(windows([read_samples(HELDOUT / item["file"]) for item in listed]))
    return [item["text"] for item in listed], [one.text for one in heard]


def test_a_gpu_samples_the_same_tokens(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    engine = TorchEngine(nano, device="cuda", dtype=torch.float32, max_batch=8)
    prompt = engine.tokenizer.encode(WORDS)
    cases = (
        ENGLISH,
        Decoding(),
        replace(ENGLISH, prompt=prompt, alignment="all"),
        replace(ENGLISH, beam_size=5),
        replace(ENGLISH, beam_size=3, patience=2.0),
    )
    for decoding in cases:
        for _ in range(3):  # warm-up, capture, replay
            check_equal(engine.decode(windows(recordings, decoding)), reference.decode(windows(recordings, decoding)))
    feed = Listed(windows(recordings * 4), at_most=3)
    engine.decode_feed(feed)
    check_equal([feed.results[id(window)] for window in feed.taken], reference.decode(windows(recordings)) * 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("int8", [False, True], ids=["whole", "int8"])
def test_a_gpu_errs_no_more_in_a_smaller_precision(nano: Checkpoint, dtype: torch.dtype, int8: bool) -> None:
    """Of 211 words it may get four more wrong than in float32 on the CPU; the same window twice is the same tokens."""
    engine = TorchEngine(nano, device="cuda", dtype=dtype, int8=int8)
    said, heard = words_of(engine)
    assert words_of(engine)[1] == heard
    rates = [scores.errors(said, each, "en")["wer"] for each in (heard, words_of(TorchEngine(nano))[1])]
    print(f"{engine.describe()['precision']}: WER {rates[0]:.3f}, float32 on the CPU {rates[1]:.3f}")
    assert rates[0] <= rates[1] + 0.02
    hot = engine.decode(
        windows([read_samples(path) for path in sorted(HELDOUT.glob("*.flac"))[:2]], replace(ENGLISH, temperature=0.8, best_of=3))
    )
    assert all(np.isfinite(one.avg_logprob) for one in hot)


def test_a_gpu_decodes_with_graphs_what_it_decodes_without(
    nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [TorchEngine(nano, device="cuda", dtype=torch.float16, max_batch=8) for _ in range(2)]
    plain = engines[1].device
    monkeypatch.setattr(plain, "run", lambda key, step: step())
    for decoding in (ENGLISH, Decoding(), replace(ENGLISH, beam_size=3), replace(ENGLISH, alignment="all")):
        asked = windows(recordings * 3, decoding)
        for _ in range(3):
            with_graphs, without = (engine.decode(asked) for engine in engines)
            assert [one.tokens for one in with_graphs] == [one.tokens for one in without]
    device = engines[0].device
    assert isinstance(device, Cuda) and not device._refused
    print(f"{sum(graph is not None for graph in device._graphs.values())} graphs")


def test_a_gpu_is_warm_before_the_first_request(nano: Checkpoint, recordings: list[Samples], caplog: pytest.LogCaptureFixture) -> None:
    engine = TorchEngine(nano, device="cuda", dtype=torch.float16, max_batch=16)
    device = engine.device
    assert isinstance(device, Cuda)
    with caplog.at_level("INFO"):
        engine.warm_up(60.0)
    print(caplog.text)
    known = set(device._graphs)
    assert known and all(device._graphs.values()) and not device._refused
    engine.decode(windows(recordings * 2))
    assert set(device._graphs) == known


def test_a_gpu_short_of_memory_encodes_fewer_at_once(recordings: list[Samples], whole_memory: None) -> None:
    engine = TorchEngine(random_checkpoint("base"), device="cuda", dtype=torch.float16, max_batch=8)
    asked = windows(recordings, replace(ENGLISH, max_tokens=8))
    expected = [one.tokens for one in engine.decode(asked)]
    for spare in (512, 256, 128, 96, 64, 48):
        engine.free_memory()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + spare * 2**20) / total)
        assert sum(one.tokens == other for one, other in zip(engine.decode(asked), expected, strict=True)) >= 7
        if engine._encoded_at_once < 8:
            break
    print(f"{spare} MB to spare: {engine._encoded_at_once} windows at once")
    assert engine._encoded_at_once < 8


def test_a_gpu_keeps_8_bits_in_half_the_memory() -> None:
    checkpoint, taken = random_checkpoint("small"), []
    for int8 in (False, True):
        before = torch.cuda.memory_allocated()
        model = load_model(checkpoint, torch.device("cuda"), torch.float16, int8=int8)
        taken.append((torch.cuda.memory_allocated() - before) / 2**20)
        del model
    print(f"small: float16 {taken[0]:.0f} MB, int8 {taken[1]:.0f} MB")
    assert taken[1] < 0.7 * taken[0]  # the embedding stays as it is


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_gpus_kernels_attend_as_pytorch(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """Every implementation must be right and must be captured; which is the fastest, the log tells."""
    with caplog.at_level("INFO"):
        engine = TorchEngine(random_checkpoint("base"), device="cuda", dtype=dtype, max_batch=32)
    print(caplog.text)
    assert "is not computed by" not in caplog.text
    generator = torch.Generator("cuda").manual_seed(0)
    for windows_at_once in (1, 8, 32):  # several parts of the keys for each head, and one
        key, value = torch.randn(2, windows_at_once, 8, 1500, 64, device="cuda", dtype=dtype, generator=generator).unbind(0)
        query = torch.randn(windows_at_once, 8, 1, 64, device="cuda", dtype=dtype, generator=generator)
        expected = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
        for name, attend in kernels().items():
            error = float((attend(query, key, value).float() - expected).norm() / expected.norm())
            print(f"{name}, {windows_at_once} windows: error {error:.1e}")
            assert error < 0.01
    engine.close()


def test_a_gpu_runs_compiled_parts(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    try:
        check_compiler(torch.device("cuda"))
    except ConfigurationError as error:
        pytest.skip(f"no compiled parts: {error.message}")
    engine = TorchEngine(nano, device="cuda", dtype=torch.float16, max_batch=8, compiles=True)
    expected = [one.text for one in reference.decode(windows(recordings))]
    for _ in range(3):
        assert sum(one.text == other for one, other in zip(engine.decode(windows(recordings)), expected, strict=True)) >= 7
    assert isinstance(engine.device, Cuda) and not engine.device._refused
