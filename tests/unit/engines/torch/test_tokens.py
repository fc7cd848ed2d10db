"""Engine torch samples the tokens of engine openai, with any options and in any company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from whisper.model import ModelDimensions

from tests.unit.engines.torch.doubles import (
    ENGLISH,
    WORDS,
    check_equal,
    windows,
)
from whispercore.checkpoints import dimensions, load_checkpoint, write_random
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.torch import TorchEngine
from whispercore.engines.torch.logits import penalise
from whispercore.engines.torch.state import make_rows
from whispercore.types import SAMPLE_RATE, Decoding, Samples, Window


@pytest.mark.parametrize(
    "decoding",
    [
        ENGLISH,
        Decoding(),
        Decoding(timestamps=False),
        Decoding(language="en", task="translate"),
        Decoding(language="en", beam_size=2),
        Decoding(language="en", beam_size=5, patience=2.0),
        Decoding(language="en", beam_size=4, patience=0.5),
        Decoding(language="en", beam_size=3, length_penalty=0.6),
        Decoding(language="en", suppress_tokens=(), suppress_blank=False),
        Decoding(language="en", suppress_tokens=(-1, 2, 11, 13)),
        Decoding(language="en", max_initial_timestamp=None),
        Decoding(language="en", max_initial_timestamp=0.0),
        Decoding(language="en", max_tokens=5),
        Decoding(language="en", max_tokens=40, ignore_eot=True),
        Decoding(language="en", alignment="all"),
        Decoding(language="en", alignment="complete", beam_size=2),
    ],
    ids=lambda decoding: "-".join(
        f"{name}={getattr(decoding, name)}" for name in Decoding.__dataclass_fields__ if getattr(decoding, name) != getattr(ENGLISH, name)
    ),
)
def test_the_tokens_are_engine_openais(ours: TorchEngine, reference: OpenAIEngine, recordings: list[Samples], decoding: Decoding) -> None:
    asked = windows(recordings[::2], decoding)
    # with patience below 1 live beams count, and engine openai's go on until the last window of a batch is done
    expected = [reference.decode([window])[0] for window in asked] if (decoding.patience or 1) < 1 else reference.decode(asked)
    check_equal(ours.decode(asked), expected)


def test_neighbours_may_differ_in_everything_but_their_rows(ours: TorchEngine, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    prompt = ours.tokenizer.encode(WORDS)
    decodings = [
        ENGLISH,
        replace(ENGLISH, prompt=prompt),
        Decoding(),
        replace(ENGLISH, prompt=prompt * 30),
        replace(ENGLISH, timestamps=False, prompt=prompt[:3]),
        replace(ENGLISH, task="translate", max_tokens=7),
        replace(ENGLISH, alignment="all", suppress_tokens=(-1, 13)),
        replace(ENGLISH, ignore_eot=True, max_tokens=120),
    ]
    mixed = [Window(samples, 0.0, decoding) for samples, decoding in zip(recordings, decodings, strict=True)]
    assert len({ours.batch_key(window.decoding) for window in mixed}) == 1
    check_equal(ours.decode(mixed), [reference.decode([window])[0] for window in mixed])


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_random_weights_of_real_shapes(tmp_path: Path, recordings: list[Samples], size: str) -> None:
    path = tmp_path / f"{size}.pt"
    write_random(dimensions(size), path)
    checkpoint = load_checkpoint(path)
    found, expected = TorchEngine(checkpoint, max_batch=3), OpenAIEngine(checkpoint)
    for decoding in (Decoding(max_tokens=12), Decoding(language="en", max_tokens=5, prompt=(400, 500, 600), beam_size=2)):
        asked = windows(recordings[3:5], decoding)
        check_equal(found.decode(asked), expected.decode(asked))


@pytest.mark.parametrize(("mels", "vocabulary"), [(80, 51_864), (128, 51_866)], ids=["english-only", "large-v3"])
def test_other_vocabularies(tmp_path: Path, recordings: list[Samples], mels: int, vocabulary: int) -> None:
    path = tmp_path / "narrow.pt"
    write_random(ModelDimensions(mels, 1500, 64, 2, 2, vocabulary, 448, 64, 2, 2), path, dtype=torch.float32)
    checkpoint = load_checkpoint(path)
    found, expected = TorchEngine(checkpoint, max_batch=2), OpenAIEngine(checkpoint)
    whole = replace(ENGLISH, prompt=(7,) * 223, ignore_eot=True)
    german = Decoding(max_tokens=9, language="de")
    for decoding in (Decoding(max_tokens=9), german, replace(german, timestamps=False, prompt=(5, 6), alignment="all"), whole):
        asked = windows(recordings[:2], decoding)
        check_equal(found.decode(asked), expected.decode(asked))


def test_samples_of_a_temperature(ours: TorchEngine, recordings: list[Samples]) -> None:
    """Cold samples are the likeliest tokens, hot ones are not, and a hot neighbour leaves a cold row alone."""
    greedy = ours.decode(windows(recordings[:2]))
    cold = ours.decode(windows(recordings[:2], replace(ENGLISH, temperature=1e-4)))
    assert [one.tokens for one in cold] == [one.tokens for one in greedy]
    hot, other = windows(recordings[:2], replace(ENGLISH, temperature=1.0, ignore_eot=True, max_tokens=60))
    together = ours.decode([hot, *windows(recordings[:2]), other])
    assert [one.tokens for one in together[1:3]] == [one.tokens for one in greedy]
    assert together[0].tokens != together[3].tokens
    assert together[0].avg_logprob < greedy[0].avg_logprob


def test_the_best_of_several_samples(ours: TorchEngine, recordings: list[Samples]) -> None:
    best = ours.decode(windows(recordings[:2] * 3, replace(ENGLISH, temperature=1.0, best_of=8)))
    single = ours.decode(windows(recordings[:2] * 3, replace(ENGLISH, temperature=1.0)))
    assert np.mean([one.avg_logprob for one in best]) > np.mean([one.avg_logprob for one in single])


def test_no_ngram_comes_twice(ours: TorchEngine, recordings: list[Samples]) -> None:
    forced = replace(ENGLISH, ignore_eot=True, max_tokens=100, timestamps=False)

    def repeats(decoding: Decoding, size: int) -> int:
        tokens = ours.decode(windows(recordings[:1], decoding))[0].tokens
        grams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
        return len(grams) - len(set(grams))

    assert repeats(forced, 3) > 0
    assert repeats(replace(forced, no_repeat_ngram_size=3), 3) == 0
    assert repeats(replace(forced, no_repeat_ngram_size=1), 1) == 0
    assert repeats(replace(forced, repetition_penalty=5.0), 3) < repeats(forced, 3)


def test_penalties_are_each_rows_own() -> None:
    rows = make_rows(3, 10, torch.device("cpu"))
    rows.tokens[:, :7] = torch.tensor([9, 1, 2, 3, 1, 2, 3])
    rows.length.fill_(6)  # the 3 at the end is of nobody's
    rows.begin.fill_(1)
    rows.penalty.copy_(torch.tensor([2.0, 1.0, 1.0]))
    rows.ngram.copy_(torch.tensor([0, 3, 2]))
    logits = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).repeat(3, 1)
    penalise(logits, rows, 3)
    assert logits[0].tolist() == [1.0, 0.5, -2.0, 0.5, *[1.0] * 6]
    assert [int(row) for row in (logits[1:] == -torch.inf).nonzero()[:, 1]] == [3, 3]
    rows.tokens[:, 1:6] = torch.tensor([1, 4, 1, 5, 1])
    logits.zero_()
    penalise(logits, rows, 3)
    assert (logits == -torch.inf).nonzero().tolist() == [[2, 4], [2, 5]]


def test_a_window_of_one_sample(ours: TorchEngine) -> None:
    (found,) = ours.decode([Window(np.zeros(1, np.float32), 0.0, replace(ENGLISH, alignment="all"))])
    assert len(found.token_times) == len(found.token_probs) + bool(found.token_probs)
    assert ours.decode([]) == []
    assert SAMPLE_RATE == 16_000
