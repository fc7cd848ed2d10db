"""Steps and admissions can be CUDA graphs: they wait for nothing, and take what changes from static tensors."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from tests.unit.engines.torch.doubles import (
    ENGLISH,
    WORDS,
    Alone,
    Capturing,
    Forbidding,
    Listed,
    check_equal,
    windows,
)
from whispercore.audio import log_mel
from whispercore.checkpoints import Checkpoint
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.pytorch import model as model_module
from whispercore.engines.pytorch.cache import make_cache
from whispercore.engines.pytorch.model import load_model
from whispercore.engines.torch import TorchEngine
from whispercore.engines.torch.admission import AdmissionShape, admit_windows
from whispercore.engines.torch.buffers import make_buffers
from whispercore.engines.torch.decoding import StepShape, step
from whispercore.engines.torch.logits import Vocabulary
from whispercore.engines.torch.state import make_detections, make_finished_beams, make_rows
from whispercore.tokenizer import Tokenizer
from whispercore.types import Decoding, Samples, Window


def test_nothing_asks_the_device(ours: TorchEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `item`, `tolist`, `nonzero` and the like wait for all queued work, and break the capture of a CUDA graph."""
    from whispercore.engines.torch import admission, slots

    watched: list[str] = []

    def watch(module: ModuleType, name: str) -> None:
        real = getattr(module, name)

        def run(*arguments: object) -> None:
            watched.append(name)
            with Forbidding():
                real(*arguments)

        monkeypatch.setattr(module, name, run)

    watch(slots, "step")
    watch(admission, "admit_windows")
    for decoding in (
        Decoding(),
        replace(ENGLISH, temperature=0.5),
        replace(ENGLISH, no_repeat_ngram_size=2),
        replace(ENGLISH, beam_size=2),
    ):
        assert ours.decode(windows(recordings[:2], replace(decoding, max_tokens=4)))
    assert {"step", "admit_windows"} == set(watched)


@pytest.mark.parametrize("beams", [0, 3])
@pytest.mark.parametrize("int8", [False, True], ids=["whole", "int8"])
def test_a_devices_work_needs_nothing_of_the_hosts(nano: Checkpoint, monkeypatch: pytest.MonkeyPatch, beams: int, int8: bool) -> None:
    """Tensors without values, on device meta: an operand on the host would be a copy for which the GPU waits."""
    meta = torch.device("meta")
    monkeypatch.setattr(log_mel, "mel_filters", lambda device, n_mels: torch.zeros(n_mels, 201, device=device))
    monkeypatch.setattr(model_module, "attend", lambda q, k, v, mask=None: torch.nn.functional.scaled_dot_product_attention(q, k, v, mask))
    model = load_model(nano, meta, torch.float16, int8=int8)
    tokenizer, group = Tokenizer(nano.dims.n_vocab), max(1, beams)
    cache = make_cache(nano.dims, 4, 4 * group, torch.float16, meta)
    rows, detections = make_rows(4 * group, nano.dims.n_vocab, meta), make_detections(4, meta)
    finished = make_finished_beams(4, beams, meta) if beams else None
    languages = torch.zeros(len(tokenizer.languages), dtype=torch.long, device=meta)
    new = make_buffers(2, tokenizer.vocabulary, len(languages), meta, audio=True)
    vocabulary = Vocabulary(tokenizer.eot, tokenizer.timestamp_begin, torch.zeros(2, dtype=torch.long, device=meta))
    with Alone():
        admit_windows(
            model, cache, tokenizer, languages, new, new.number("slot"), rows, detections, AdmissionShape(2, group, 4, True), None
        )
        for sampled in (False, True):
            step(model, cache, rows, finished, vocabulary, StepShape(4, group, 64, sampled, None, beams))


@pytest.mark.slow
def test_graphs_hold_nothing_that_changes(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admissions and steps as CUDA graphs: windows, slots, prompts and languages change in static tensors only."""
    device = Capturing()
    monkeypatch.setattr("whispercore.engines.torch.engine.make_device", lambda *_: device)
    engine = TorchEngine(nano, max_batch=3)
    prompt = engine.tokenizer.encode(WORDS)
    decodings = (
        ENGLISH,
        Decoding(),
        replace(ENGLISH, prompt=prompt[:5]),
        replace(ENGLISH, timestamps=False, max_tokens=9),
        Decoding(max_tokens=4),
    )
    asked = [Window(samples, 0.0, decoding) for samples in recordings[::2] for decoding in decodings]
    feed = Listed(asked, at_most=2)
    engine.decode_feed(feed)
    check_equal([feed.results[id(window)] for window in asked], [reference.decode([window])[0] for window in asked])
    for decoding in (replace(ENGLISH, beam_size=2, max_tokens=12), replace(ENGLISH, temperature=1e-4, max_tokens=12)):
        for some in (recordings[:3], recordings[3:5], recordings[5:8]):
            check_equal(engine.decode(windows(some, decoding)), reference.decode(windows(some, decoding)))
    assert device.replays > 20
    assert {type(key).__name__ for key, graph in device.graphs.items() if graph} == {"AdmissionShape", "StepShape"}


def test_what_comes_often_is_there_before_the_first_request(
    nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Capturing()
    monkeypatch.setattr("whispercore.engines.torch.engine.make_device", lambda *_: device)
    engine, cold = TorchEngine(nano, max_batch=2), TorchEngine(nano, max_batch=2)
    with caplog.at_level("INFO"):
        engine.warm_up(600.0)
    assert "is warm" in caplog.text
    known = set(device.graphs)
    assert {type(key).__name__ for key in known} == {"AdmissionShape", "StepShape"} and all(device.graphs.values())
    asked = windows(recordings[:3], Decoding(max_tokens=6))
    found = engine.decode(asked)
    assert set(device.graphs) == known
    monkeypatch.setattr(device, "graphs", {})
    assert found == cold.decode(asked)
