"""Sampling above temperature 0: on every engine a window gives the same tokens in any batch, order and process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.contract.conftest import ENGINES, ROOT, WEIGHTED, having
from whispercore.engines import Engine, load_engine
from whispercore.engines.noise import drawn, gumbel, streams
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Decoding, Samples, Window

HOT = Decoding(language="en", temperature=1.0, ignore_eot=True, max_tokens=16)
"""Random tokens: every one of them depends on the noise."""
SAMPLES = having("temperature", "best_of", "max_new_tokens", among=WEIGHTED)


def tokens(engine: Engine, windows: Sequence[Window]) -> list[tuple[int, ...]]:
    return [decoded.tokens for decoded in engine.decode(windows)]


def hot(recordings: Sequence[Samples], **changes: Any) -> list[Window]:
    return [Window(samples, 0.0, replace(HOT, **changes)) for samples in recordings]


@SAMPLES
@pytest.mark.parametrize("best_of", [None, 3])
def test_the_batch_and_its_order_do_not_matter(engines: dict[str, Engine], speech: list[Samples], name: str, best_of: int | None) -> None:
    engine, windows = engines[name], hot(speech[:3], best_of=best_of)
    together = tokens(engine, windows)
    assert tokens(engine, windows) == together
    assert tokens(engine, windows[::-1]) == together[::-1]
    assert [sampled for window in windows for sampled in tokens(engine, [window])] == together
    assert tokens(engine, [windows[0], windows[1], windows[0]]) == [together[0], together[1], together[0]]


@SAMPLES
def test_the_global_generators_are_not_used(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    windows, samples = hot(speech[:1]), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist()
        samples.append(tokens(engines[name], windows))
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state(legacy=False)["state"]["key"].tolist()
    assert samples[0] == samples[1]


@SAMPLES
def test_windows_and_temperatures_have_separate_noise(engines: dict[str, Engine], name: str) -> None:
    """The model's logits for these sounds are equal, and the temperature is high, so the tokens differ by the noise
    only."""
    random = np.random.default_rng(0)
    sounds = [random.normal(scale=1e-4, size=SAMPLE_RATE).astype(np.float32) for _ in range(4)]
    sampled = tokens(engines[name], hot(sounds, temperature=5.0))
    assert len(set(sampled)) == len(sampled)
    first = Counter(window_tokens[1] for window_tokens in sampled)  # the first token is a timestamp
    assert len(first) > 1
    assert tokens(engines[name], hot(sounds[:1], temperature=4.999))[0] != sampled[0]


@SAMPLES
def test_the_best_of_several_samples_is_better_than_one(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    scores = [[decoded.avg_logprob for decoded in engines[name].decode(hot(speech[:4], best_of=count))] for count in (1, 6)]
    assert np.mean(scores[1]) > np.mean(scores[0])


def test_another_engine_of_the_same_kind_draws_the_same(settings: Settings, engines: dict[str, Engine], speech: list[Samples]) -> None:
    windows = hot(speech[:2])
    for name in ("torch-float32", "ct2-float32"):
        with closing(load_engine(replace(settings, **ENGINES[name]))) as other:
            assert tokens(other, windows) == tokens(engines[name], windows)


IN_A_PROCESS = """
import json, sys
from contextlib import closing
from whispercore.engines import load_engine
from whispercore.settings import Settings
from whispercore.types import Decoding, Window
from whispercore.audio.recording import read_samples

settings, file, decoding = json.load(sys.stdin)
with closing(load_engine(Settings(**settings))) as engine:
    print(json.dumps(engine.decode([Window(read_samples(file), 0.0, Decoding(**decoding))])[0].tokens))
"""


@SAMPLES
def test_another_process_draws_the_same(settings: Settings, engines: dict[str, Engine], name: str) -> None:
    from whispercore.audio.recording import read_samples

    file = str(
        next((ROOT / "tests" / "data" / "heldout").glob("*.flac"), None) or next((ROOT / "tests" / "data" / "heldout").glob("*.wav"))
    )
    decoding = {"language": "en", "temperature": 1.0, "ignore_eot": True, "max_tokens": 12, "best_of": 2}
    stdin = json.dumps([asdict(replace(settings, **ENGINES[name])), file, decoding])
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}  # the core is not installed into the environment
    command = [sys.executable, "-c", IN_A_PROCESS]
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (here,) = tokens(engines[name], [Window(read_samples(file), 0.0, Decoding(**decoding))])
    assert tuple(json.loads(done.stdout.splitlines()[-1])) == here


@having("temperature", "max_new_tokens", among=[name for name in ("torch-float32", "hf-float32", "onnx-float32") if name in ENGINES])
def test_engines_that_sample_with_pytorch_draw_the_same(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    assert tokens(engines[name], hot(speech[:2], best_of=2)) == tokens(engines["openai"], hot(speech[:2], best_of=2))


def test_samples_follow_the_probabilities() -> None:
    """Across rows at one step, and across the steps of one row."""
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf]).repeat(100_000, 1)
    expected = (logits[0] / 0.5).softmax(0).tolist()
    counted = torch.arange(100_000)
    for seeds, steps in ((counted, 3), (torch.full((100_000,), 7), counted)):
        share = torch.bincount(drawn(logits, 0.5, seeds, steps), minlength=4) / 100_000
        assert share.tolist() == pytest.approx(expected, abs=0.006)
        assert share[3] == 0


def test_noise_has_the_gumbel_distribution_and_does_not_repeat() -> None:
    noise = gumbel(streams(torch.tensor([0, 1, 2**62]), 4).flatten(), 0, 60_000)
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.std().item() == pytest.approx(np.pi / 6**0.5, abs=0.01)
    later = gumbel(streams(torch.tensor([0, 1, 2**62]), 4).flatten(), 1, 60_000)
    correlated = np.corrcoef(torch.cat([noise, later]).numpy()) - np.eye(24)
    assert np.abs(correlated).max() < 0.02
    assert torch.equal(noise[5:6], gumbel(streams(torch.tensor([1]), 4)[0, 1:2], torch.tensor([0]), 60_000))


def test_a_seed_depends_on_the_windows_content() -> None:
    samples = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    window = Window(samples, 0.0, replace(HOT, prompt=(1, 2)))
    assert window.seed == Window(samples.copy(), 7.0, replace(HOT, prompt=(1, 2), language=None, best_of=5)).seed
    assert window.seed == Window(np.repeat(samples, 2)[::2], 0.0, window.decoding).seed, "strides do not matter"
    changed = samples.copy()
    changed[500] = np.nextafter(changed[500], np.float32(9))
    others = [
        replace(window, samples=changed),
        replace(window, samples=samples[:-1]),
        *(
            replace(window, decoding=replace(window.decoding, **changes))
            for changes in ({"temperature": 0.8}, {"prompt": (1,)}, {"task": "translate"})
        ),
    ]
    assert len({other.seed for other in (window, *others)}) == 6
    assert all(0 <= other.seed < 2**63 for other in others)
