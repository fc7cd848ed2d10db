"""Times of tokens and words: the engine interface's promises, and openai-whisper's alignment as the reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
import whisper.timing
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.contract.conftest import WEIGHTED, having
from whispercore.audio.log_mel import log_mel
from whispercore.checkpoints import Checkpoint, dimensions, load_checkpoint, write_random
from whispercore.engines import Engine
from whispercore.engines.alignment import jumps
from whispercore.engines.openai import OpenAIEngine
from whispercore.tokenizer import complete_segments
from whispercore.transcript.words import add_words
from whispercore.types import SAMPLE_RATE, Decoded, Decoding, Samples, Segment, Window

EVERY = having("word_timestamps")
RUNS_MODEL = having("word_timestamps", among=WEIGHTED)
ALIGNED = Decoding(language="en", alignment="all")
DTW, BACKTRACE = whisper.timing.dtw_cpu.py_func, whisper.timing.backtrace.py_func
"""openai-whisper's functions without numba's compiler, whose run takes longer than the functions."""
PREPEND, APPEND = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model with tiny's dimensions and random weights."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.pt"
    write_random(dimensions("tiny"), path, dtype=torch.float32)
    return load_checkpoint(path)


def of_whisper(checkpoint: Checkpoint) -> whisper.model.Whisper:
    """openai-whisper's model with the checkpoint's weights and alignment heads."""
    model = whisper.model.Whisper(checkpoint.dims)
    model.load_state_dict(checkpoint.state)
    heads = torch.zeros(checkpoint.dims.n_text_layer, checkpoint.dims.n_text_head, dtype=torch.bool)
    heads[tuple(zip(*checkpoint.alignment_heads, strict=True))] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model.float().eval()


def text_of(engine: Engine, decoded: Decoded) -> list[int]:
    return [token for token in decoded.tokens if token < engine.tokenizer.eot]


def check_against_whisper(engine: Engine, model: whisper.model.Whisper, window: Window, decoded: Decoded) -> None:
    """Compare each word with openai-whisper's alignment of the same text and the same spectrogram."""
    tokenizer = engine.tokenizer.openai_for(decoded.language, window.decoding.task)
    text = text_of(engine, decoded)
    mel = log_mel(window, engine.n_mels)
    theirs = whisper.timing.find_alignment(model, tokenizer, text, mel, len(window.samples) // 160)
    words, parts = tokenizer.split_to_word_tokens([*text, tokenizer.eot])
    edges = np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist()
    assert len(theirs) == len(words) - 1 > 0
    for word, (first, last), other in zip(words, pairwise(edges), theirs, strict=False):
        assert word == other.word
        assert (decoded.token_times[first], decoded.token_times[last]) == pytest.approx((other.start, other.end), abs=1e-3)
        assert np.mean(decoded.token_probs[first:last]) == pytest.approx(other.probability, abs=1e-3)


def test_nano_is_aligned_as_openai_whisper_does(engines: dict[str, Engine], nano: Checkpoint, speech: list[Samples]) -> None:
    windows = [Window(samples, 0.0, replace(ALIGNED, prompt=(220,) * (index % 2))) for index, samples in enumerate(speech)]
    for window, decoded in zip(windows, engines["openai"].decode(windows), strict=True):
        check_against_whisper(engines["openai"], of_whisper(nano), window, decoded)


def test_random_weights_are_aligned_as_openai_whisper_does(tiny: Checkpoint) -> None:
    engine = OpenAIEngine(tiny)
    random = np.random.default_rng(0)
    decodings = [
        replace(ALIGNED, max_tokens=20),
        replace(ALIGNED, max_tokens=20, language="de", task="transcribe"),
        replace(ALIGNED, max_tokens=20, language="ja", prompt=(440, 441)),
    ]
    windows = [
        Window(random.normal(0, 0.1, length).astype(np.float32), 0.0, d)
        for length, d in zip((480_000, 33_333, 90_001), decodings, strict=True)
    ]
    model = of_whisper(tiny)
    for window, decoded in zip(windows, engine.decode(windows), strict=True):
        check_against_whisper(engine, model, window, decoded)


@pytest.mark.parametrize("name", ["torch-float32", "ct2-float32"])
def test_float32_engines_align_alike(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    windows = [Window(samples, 0.0, replace(ALIGNED, prompt=(220,) * (index % 2))) for index, samples in enumerate(speech)]
    reference, others = (engines[engine_name].decode(windows) for engine_name in ("openai", name))
    times, other_times = (np.concatenate([d.token_times for d in found]) for found in (reference, others))
    assert np.mean(np.abs(times - other_times) <= 0.04 + 1e-6) >= 0.95
    probs, other_probs = (np.concatenate([d.token_probs for d in found]) for found in (reference, others))
    assert other_probs == pytest.approx(probs, abs=1e-3)


@EVERY
def test_every_token_has_its_times(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    engine = engines[name]
    decodings = [ALIGNED, replace(ALIGNED, alignment="complete"), replace(ALIGNED, alignment="none"), replace(ALIGNED, prompt=(220,))]
    windows = [Window(samples, 0.0, decoding) for samples, decoding in zip(speech, decodings, strict=False)]
    assert len({engine.batch_key(window.decoding) for window in windows}) == 1
    for window, decoded in zip(windows, engine.decode(windows), strict=True):
        used = complete_segments(decoded.tokens, engine.tokenizer.timestamp_begin)
        counts = {"none": 0, "all": len(text_of(engine, decoded)), "complete": sum(t < engine.tokenizer.eot for t in decoded.tokens[:used])}
        count = counts[window.decoding.alignment]
        assert (len(decoded.token_times), len(decoded.token_probs)) == ((count + 1, count) if count else (0, 0))
        assert list(decoded.token_times) == sorted(decoded.token_times)
        assert all(0 <= time <= window.duration for time in decoded.token_times)
        assert all(0 <= prob <= 1 for prob in decoded.token_probs)
        assert {type(value) for value in (*decoded.token_times, *decoded.token_probs)} <= {float}


@EVERY
@pytest.mark.parametrize("length", [1, 160, 320, 479])
def test_a_very_short_window_can_be_aligned(engines: dict[str, Engine], speech: list[Samples], name: str, length: int) -> None:
    window = Window(speech[0][10_000 : 10_000 + length], 0.0, replace(ALIGNED, max_tokens=5, ignore_eot=name in WEIGHTED))
    (decoded,) = engines[name].decode([window])
    assert len(decoded.token_times) == len(decoded.token_probs) + bool(decoded.token_probs)
    assert all(0 <= time <= 0.04 for time in decoded.token_times)


@EVERY
def test_silence_has_no_times(engines: dict[str, Engine], name: str) -> None:
    (decoded,) = engines[name].decode([Window(np.zeros(SAMPLE_RATE, np.float32), 0.0, ALIGNED)])
    if not text_of(engines[name], decoded):
        assert decoded.token_times == decoded.token_probs == ()


@RUNS_MODEL
def test_alignment_changes_nothing_else(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    plain, aligned = (
        engines[name].decode([Window(speech[0], 0.0, replace(ALIGNED, alignment=alignment))])[0] for alignment in ("none", "all")
    )
    assert replace(aligned, token_times=(), token_probs=()) == plain
    assert aligned.token_times


def test_words_are_those_of_whisper_transcribe(engines: dict[str, Engine], nano: Checkpoint, speech: list[Samples]) -> None:
    model, engine = of_whisper(nano), engines["openai"]
    for samples in speech[:3]:
        theirs = whisper.transcribe(model, samples, language="en", temperature=0.0, word_timestamps=True, fp16=False)["segments"]
        (decoded,) = engine.decode([Window(samples, 0.0, replace(ALIGNED, alignment="complete"))])
        segments = list(whole_segments(decoded, len(samples) // 160 / 100, engine))
        found = add_words(segments, decoded, start=0.0, tokenizer=engine.tokenizer, last_speech=0.0, prepend=PREPEND, append=APPEND)
        assert len(found) == len(theirs) == 1
        assert [(w.word, w.start, w.end) for w in found[0].words] == [(w["word"], w["start"], w["end"]) for w in theirs[0]["words"]]
        assert (found[0].start, found[0].end) == (theirs[0]["start"], theirs[0]["end"])


def whole_segments(decoded: Decoded, duration: float, engine: Engine) -> Iterator[Segment]:
    """The single segment of a window without consecutive timestamps, as in whisper.transcribe."""
    begin = engine.tokenizer.timestamp_begin
    times = [token - begin for token in decoded.tokens if token >= begin]
    yield Segment(start=0.0, end=times[-1] * 0.02 if times and times[-1] else duration, text=decoded.text, tokens=decoded.tokens)


def path_of_whisper(cost: NDArray[np.float64], patch: pytest.MonkeyPatch) -> list[int]:
    """The first column of each row on the path of whisper.timing.dtw_cpu."""
    patch.setattr(whisper.timing, "backtrace", BACKTRACE)
    rows, columns = DTW(cost)
    first: list[int] = columns[np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)].tolist()
    return first


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=4),
    kind=st.sampled_from(("real", "ties", "not numbers")),
    seed=st.integers(0, 2**32),
)
def test_time_warping_takes_openais_path(shapes: list[tuple[int, int]], kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    costs = [random.integers(-2, 3, shape).astype(float) if kind == "ties" else random.normal(size=shape) for shape in shapes]
    if kind == "not numbers":
        costs = [np.where(random.random(cost.shape) < 0.1, np.nan, cost) for cost in costs]
    with pytest.MonkeyPatch.context() as patch:
        theirs = [path_of_whisper(cost, patch) for cost in costs]
    assert [found.tolist() for found in jumps(costs)] == theirs


def test_the_converted_folder_has_the_alignment_heads(converted: Path, nano: Checkpoint) -> None:
    assert json.loads((converted / "config.json").read_text())["alignment_heads"] == [list(head) for head in nano.alignment_heads]
