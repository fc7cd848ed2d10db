"""Tokens of the three vocabularies, and the starts and scores that every engine shares."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.decoding import ApplyTimestampRules, DecodingOptions, DecodingTask
from whisper.model import ModelDimensions

from whispercore.engines.openai import BatchedTimestampRules
from whispercore.engines.rules import batch_key, compression_ratio, decoded, sampled_length, start_tokens, suppressed_tokens
from whispercore.errors import EngineError
from whispercore.tokenizer import Tokenizer
from whispercore.types import Decoding

VOCABULARIES = (51_864, 51_865, 51_866)
EVERY = pytest.mark.parametrize("vocabulary", VOCABULARIES)


def task(vocabulary: int, **options: object) -> DecodingTask:
    """openai-whisper's own decoding, on a model with next to no weights."""
    model = whisper.model.Whisper(ModelDimensions(80, 10, 4, 1, 0, vocabulary, 448, 4, 1, 1))
    return DecodingTask(model, DecodingOptions(fp16=False, **options))


@EVERY
def test_languages_and_special_tokens(vocabulary: int) -> None:
    tokenizer = Tokenizer(vocabulary)
    assert tokenizer.multilingual == (vocabulary > 51_864)
    assert len(tokenizer.languages) == {51_864: 1, 51_865: 99, 51_866: 100}[vocabulary]
    assert tokenizer.eot == tokenizer.openai.special_tokens["<|endoftext|>"]
    assert tokenizer.timestamp_begin + 1500 == vocabulary - 1


@EVERY
@given(text=st.text())
def test_text_comes_back(vocabulary: int, text: str) -> None:
    tokenizer = Tokenizer(vocabulary)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.timestamp_begin, *tokens, tokenizer.openai.sot, tokenizer.eot]) == text


@EVERY
@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("length", [0, 5, 223, 400])
@pytest.mark.parametrize("task_name", ["transcribe", "translate"])
def test_sequences_start_as_in_openai_whisper(vocabulary: int, timestamps: bool, length: int, task_name: str) -> None:
    prompt = list(range(100, 100 + length))
    theirs = task(vocabulary, language="de", task=task_name, prompt=prompt, without_timestamps=not timestamps).initial_tokens
    decoding = Decoding(task=task_name, prompt=tuple(prompt), timestamps=timestamps)  # type: ignore[arg-type]
    assert start_tokens(Tokenizer(vocabulary), decoding, "de") == list(theirs)


@EVERY
def test_the_same_tokens_are_suppressed(vocabulary: int) -> None:
    assert suppressed_tokens(Tokenizer(vocabulary)) == list(task(vocabulary)._get_suppress_tokens())


@EVERY
@given(seed=st.integers(0, 2**32), length=st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_timestamp_rules_for_a_batch_are_openais_one_by_one(vocabulary: int, seed: int, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rules = next(rule for rule in task(vocabulary, language="en").logit_filters if isinstance(rule, ApplyTimestampRules))
    begin = rules.tokenizer.timestamp_begin
    steps = torch.randint(0, 60, (4, length), generator=generator).cumsum(dim=1) + begin
    words = torch.randint(0, begin, (4, length), generator=generator)
    sampled = torch.where(torch.rand((4, length), generator=generator) < 0.5, steps, words)
    tokens = torch.cat([torch.full((4, rules.sample_begin), rules.tokenizer.sot), sampled], dim=1)
    theirs = torch.randn((4, vocabulary), generator=generator) * 3
    ours = theirs.clone()
    rules.apply(theirs, tokens)
    BatchedTimestampRules(rules.tokenizer, rules.sample_begin, rules.max_initial_timestamp_index).apply(ours, tokens)
    assert torch.equal(ours, theirs)


def test_equal_keys_start_equally_long() -> None:
    one = Decoding(language="en", prompt=(1, 2, 3))
    assert batch_key(one) == batch_key(Decoding(language=None, prompt=(7, 8, 9)))
    assert hash(batch_key(one)) == hash(batch_key(Decoding(prompt=(7, 8, 9))))
    others = (Decoding(), Decoding(prompt=(1,)), Decoding(prompt=(1, 2, 3), temperature=0.2), Decoding(prompt=(1, 2, 3), task="translate"))
    assert len({batch_key(one), *map(batch_key, others)}) == 5


def test_never_more_tokens_than_half_the_context() -> None:
    assert [sampled_length(Decoding(max_tokens=limit)) for limit in (None, 1, 224, 10_000)] == [224, 1, 224, 224]


@given(text=st.text())
def test_compression_ratio_is_openais(text: str) -> None:
    assert compression_ratio(text) == whisper.utils.compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))


def test_scores_that_are_no_numbers_are_an_error() -> None:
    tokenizer = Tokenizer(51_865)
    for avg_logprob, no_speech_prob in ((math.nan, 0.0), (-math.inf, 0.0), (-0.1, math.nan)):
        with pytest.raises(EngineError, match="not numbers"):
            decoded(tokenizer, [1], language="en", temperature=0.0, avg_logprob=avg_logprob, no_speech_prob=no_speech_prob)


def test_values_are_plain_python() -> None:
    tensor = torch.tensor([50_364, 440, 50_400])
    made = decoded(
        Tokenizer(51_865),
        list(tensor),
        language="en",
        temperature=0,
        avg_logprob=torch.tensor(-0.5),
        no_speech_prob=torch.tensor(0.1),  # type: ignore[arg-type]
    )
    assert {type(token) for token in made.tokens} == {int}
    assert {type(value) for value in (made.temperature, made.avg_logprob, made.no_speech_prob, made.compression_ratio)} == {float}
