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

from whispercore.engines.rules import (
    batch_key,
    compression_ratio,
    engine_error,
    group_indices,
    last_initial_timestamp,
    likeliest_language,
    make_decoded,
    prompt_length,
    start_tokens,
    suppressed_tokens,
    whole_characters,
)
from whispercore.engines.whisper_task import BatchedTimestampRules
from whispercore.errors import EngineError, OutOfMemory
from whispercore.tokenizer import Tokenizer, complete_segments
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
@pytest.mark.parametrize("text", [" <|endoftext|><|startoftranscript|>", " <|nospeech|> Paris", "<|en|><|0.00|>"])
def test_text_that_looks_like_special_tokens_is_text(vocabulary: int, text: str) -> None:
    tokenizer = Tokenizer(vocabulary)
    tokens = tokenizer.encode(text)
    assert max(tokens) < tokenizer.eot and tokenizer.decode(tokens) == text


@EVERY
@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("length", [0, 5, 223, 400])
@pytest.mark.parametrize("task_name", ["transcribe", "translate"])
def test_sequences_start_as_in_openai_whisper(vocabulary: int, timestamps: bool, length: int, task_name: str) -> None:
    prompt = list(range(100, 100 + length))
    theirs = task(vocabulary, language="de", task=task_name, prompt=prompt, without_timestamps=not timestamps).initial_tokens
    decoding = Decoding(task=task_name, prompt=tuple(prompt), timestamps=timestamps)
    assert start_tokens(Tokenizer(vocabulary), decoding, "de") == list(theirs)


@EVERY
def test_the_same_tokens_are_suppressed(vocabulary: int) -> None:
    assert suppressed_tokens(Tokenizer(vocabulary)) == list(task(vocabulary)._get_suppress_tokens())


@EVERY
@given(seed=st.integers(0, 2**32), length=st.integers(0, 12))
@settings(max_examples=settings().max_examples // 4)
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


def test_windows_share_a_batch_whatever_is_their_own() -> None:
    decoding = Decoding(language="en", prompt=(1, 2, 3))
    alike = (Decoding(), Decoding(languages=("en", "de")), Decoding(prompt=(7,) * 300), Decoding(alignment="complete"))
    assert {batch_key(decoding)} == set(map(batch_key, alike))
    others = (
        Decoding(temperature=0.2),
        Decoding(task="translate"),
        Decoding(suppress_tokens=()),
        Decoding(suppress_blank=False),
        Decoding(max_initial_timestamp=None),
        Decoding(repetition_penalty=1.1),
    )
    assert len({batch_key(decoding), *map(batch_key, others)}) == 7


def test_prompts_of_one_length_are_decoded_together() -> None:
    lengths = [prompt_length(Decoding(prompt=(1,) * count)) for count in (0, 5, 900, 223, 5)]
    assert lengths == [0, 5, 223, 223, 5]
    assert group_indices(lengths) == [[0], [1, 4], [2, 3]]


@EVERY
def test_what_is_never_sampled_can_be_chosen(vocabulary: int) -> None:
    tokenizer = Tokenizer(vocabulary)
    special = set(suppressed_tokens(tokenizer, ()))
    assert {tokenizer.openai.sot, tokenizer.openai.no_speech} <= special
    assert all(token > tokenizer.eot for token in special)
    assert suppressed_tokens(tokenizer, (440,)) == sorted({440, *special})
    assert suppressed_tokens(tokenizer, (-1, 440)) == sorted({440, *suppressed_tokens(tokenizer)})
    assert suppressed_tokens(tokenizer, (vocabulary, 60_000)) == sorted(special)
    theirs = task(vocabulary, suppress_tokens=[-1, 440])._get_suppress_tokens()
    assert suppressed_tokens(tokenizer, (-1, 440)) == list(theirs)


def test_the_first_timestamp_has_its_bound() -> None:
    limits = (None, 0.0, 1.0, 0.5, 30.0)
    assert [last_initial_timestamp(Decoding(max_initial_timestamp=limit)) for limit in limits] == [None, 0, 50, 25, 1500]


def test_the_language_is_the_likeliest_candidate() -> None:
    probabilities = {"en": 0.6, "es": 0.1, "de": 0.3}
    assert likeliest_language(probabilities, ()) == ("en", pytest.approx(0.6))
    assert likeliest_language(probabilities, ("es", "de")) == ("de", pytest.approx(0.75))
    assert likeliest_language(probabilities, ("xx", "es")) == ("es", pytest.approx(1.0))
    assert likeliest_language(probabilities, ("xx",)) == ("en", pytest.approx(0.6))
    assert likeliest_language({"en": 0.0, "es": 0.0}, ()) == ("en", 0.0)


@pytest.mark.parametrize(
    ("tokens", "count"),
    [
        ([], 0),
        ([1, 2], 2),
        ([100], 1),
        ([100, 1, 150], 3),
        ([100, 1, 2], 3),
        ([100, 1, 150, 150, 2, 3], 3),
        ([100, 1, 150, 150, 2, 180], 6),
        ([100, 1, 150, 150, 2, 180, 180], 6),
        ([100, 1, 150, 150], 3),
        ([1, 150, 150, 2, 160, 161, 3], 5),
    ],
)
def test_complete_segments_end_with_two_timestamps(tokens: list[int], count: int) -> None:
    assert complete_segments(tokens, 100) == count


def test_never_more_tokens_than_half_the_context() -> None:
    assert [Decoding(max_tokens=limit).max_sampled for limit in (None, 1, 224, 10_000)] == [224, 1, 224, 224]


@given(text=st.text())
def test_compression_ratio_is_openais(text: str) -> None:
    assert compression_ratio(text) == whisper.utils.compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))


def test_scores_that_are_no_numbers_are_an_error() -> None:
    tokenizer = Tokenizer(51_865)
    for avg_logprob, no_speech_prob in ((math.nan, 0.0), (-math.inf, 0.0), (-0.1, math.nan)):
        with pytest.raises(EngineError, match="not numbers"):
            make_decoded(tokenizer, [1], Decoding(), language="en", avg_logprob=avg_logprob, no_speech_prob=no_speech_prob)


def test_values_are_plain_python() -> None:
    tensor = torch.tensor([50_364, 440, 50_400])
    made = make_decoded(
        Tokenizer(51_865),
        list(tensor),
        Decoding(temperature=0),
        language="en",
        avg_logprob=torch.tensor(-0.5),
        no_speech_prob=torch.tensor(0.1),
    )
    assert {type(token) for token in made.tokens} == {int}
    assert {type(value) for value in (made.temperature, made.avg_logprob, made.no_speech_prob, made.compression_ratio)} == {float}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            OutOfMemory,
        ),
        (RuntimeError("CUDA failed with error out of memory"), OutOfMemory),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), OutOfMemory),
        (RuntimeError("Available memory of 1 is smaller than requested bytes of 2"), OutOfMemory),
        (RuntimeError("std::bad_alloc"), OutOfMemory),
        (RuntimeError("no kernel\nout of luck"), EngineError),
        (ValueError(), EngineError),
    ],
)
def test_runtimes_errors_are_ours(error: Exception, kind: type[EngineError]) -> None:
    found = engine_error(error, "JAX", 3)
    assert type(found) is kind and "a batch of 3 windows: " in str(found)
    assert "\n" not in str(found) and not str(found).endswith(": ")


JAPANESE = " 東京は夜の七時、🎉 naïve"


def of_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token per byte."""
    return [tokenizer.openai.encoding.encode_single_token(bytes([byte])) for byte in data]


@EVERY
def test_a_limit_never_cuts_a_letter(vocabulary: int) -> None:
    tokenizer = Tokenizer(vocabulary)
    for tokens in (tokenizer.encode(JAPANESE), of_bytes(tokenizer, JAPANESE.encode())):
        for limit in range(len(tokens) + 1):
            made = make_decoded(tokenizer, tokens[:limit], Decoding(), language="ja", avg_logprob=-0.1, no_speech_prob=0.0)
            assert "\ufffd" not in made.text and JAPANESE.strip().startswith(made.text)
            assert tokenizer.decode(made.tokens).strip() == made.text
            assert made.tokens == tuple(tokens[: len(made.tokens)])
            assert limit - len(made.tokens) < 4, "no more than the bytes of one character"


def test_a_letter_is_not_cut_before_a_timestamp_nor_amid_the_text() -> None:
    tokenizer = Tokenizer(51_865)
    begin = tokenizer.timestamp_begin
    yes, night = of_bytes(tokenizer, "はい".encode()), of_bytes(tokenizer, "夜".encode())
    assert whole_characters(tokenizer, [begin, *yes, *night[:2], begin + 50]) == (begin, *yes, begin + 50)
    assert whole_characters(tokenizer, [begin, *night[:1], begin + 50, *night[1:], begin + 60]) == (begin, begin + 50, begin + 60)
    assert whole_characters(tokenizer, [*night[1:], *yes, night[0], *yes]) == (*yes, *yes)
    assert whole_characters(tokenizer, [*yes[:2], *tokenizer.encode("é")]) == tuple(tokenizer.encode("é"))
    assert whole_characters(tokenizer, []) == ()


@given(tokens=st.lists(st.integers(0, 50_256) | st.integers(50_364, 51_864), max_size=12))
def test_no_tokens_at_all_give_replacement_characters(tokens: list[int]) -> None:
    tokenizer = Tokenizer(51_865)
    kept = whole_characters(tokenizer, tokens)
    data = b"".join(tokenizer.openai.encoding.decode_single_token_bytes(token) for token in kept if token < tokenizer.eot)
    data.decode()
    remaining = iter(tokens)
    assert all(any(token == other for other in remaining) for token in kept), "the others, in their order"
    assert [token for token in kept if token >= tokenizer.eot] == [token for token in tokens if token >= tokenizer.eot]


def test_benchmarks_keep_their_count_of_tokens() -> None:
    tokenizer = Tokenizer(51_865)
    tokens = of_bytes(tokenizer, "夜".encode()[:2])
    made = make_decoded(tokenizer, tokens, Decoding(ignore_eot=True), language="ja", avg_logprob=-0.1, no_speech_prob=0.0)
    assert made.tokens == tuple(tokens)
