"""Engine jax: what the contract suite cannot see, that is meshes, the disk cache, precisions, and Whisper's decoding to the token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="engine jax is not installed: pip install -r requirements-jax.txt")

import jax
import jax.numpy as jnp
import torch
import whisper
from whisper.model import ModelDimensions

from tests.unit.engines.heldout import HELDOUT, NANO, ROOT, SYNTHETIC
from whispercore.audio.log_mel import log_mels
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import load_checkpoint, write_random
from whispercore.engines import load_engine
from whispercore.engines.jax import JaxEngine
from whispercore.engines.jax.decoding import LoopConfig, Sequences, Start, State, _choose_tokens
from whispercore.engines.jax.sharding import RULES, make_mesh, spec_of
from whispercore.engines.openai import OpenAIEngine
from whispercore.errors import ConfigurationError, EngineError, OutOfMemory
from whispercore.settings import Settings
from whispercore.types import Decoding, Window

FILES = SYNTHETIC[:3]
FOUR_HEADS = ModelDimensions(
    n_mels=80, n_audio_ctx=1500, n_audio_state=64, n_audio_head=4, n_audio_layer=1, n_vocab=51_865, n_text_ctx=448, n_text_state=64,
    n_text_head=4, n_text_layer=2,
)  # fmt: skip
ENGLISH = Decoding(language="en")

SCRIPT = """
import json, sys
import jax
from jax import monitoring
from whispercore.audio.recording import read_samples
from whispercore.engines import load_engine
from whispercore.settings import Settings
from whispercore.types import Decoding, Window

compiled = []
monitoring.register_event_listener(lambda name, **_: compiled.append(name) if name.endswith("cache_misses") else None)
sections, files = json.loads(sys.argv[1])
audio = [read_samples(file) for file in files]
for section, tokens in sections:
    engine = load_engine(Settings.load(section, environ={}))
    each = [Decoding(language="en", ignore_eot=tokens > 0, max_tokens=tokens or None, beam_size=beams) for beams in (None, 2)]
    results = [decoded for decoding in each for decoded in engine.decode([Window(samples, 0.0, decoding) for samples in audio])]
    print(json.dumps({
        "mesh": engine.describe()["mesh"],
        "compiled": len(compiled),
        "tokens": [decoded.tokens for decoded in results],
        "avg_logprob": [decoded.avg_logprob for decoded in results],
        "split": engine.model["encoder"]["blocks"][0]["attn"]["query"]["weight"].addressable_shards[0].data.shape[1],
    }))
"""


def run(folder: Path, runs: list[tuple[Path, str, int]], *, devices: int) -> list[dict[str, Any]]:
    """What the script prints of each (checkpoint, mesh, fixed tokens): XLA takes the number of virtual devices when its process starts."""
    section = {"engine": "jax", "dtype": "float32", "device": "cpu", "threads": 1, "converted_dir": str(folder)}
    sections = [(section | {"model": str(model), "jax_mesh": mesh}, tokens) for model, mesh, tokens in runs]
    argument = json.dumps([sections, [str(HELDOUT / file) for file in FILES]])
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT / "src")}
    environment |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, argument], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    section = {"engine": "jax", "dtype": "float32", "device": "cpu", "threads": 1, "model": str(NANO), "converted_dir": str(folder)}
    return Settings.load(section, environ={})


@pytest.fixture(scope="module")
def engine(settings: Settings) -> JaxEngine:
    loaded = load_engine(settings)
    assert isinstance(loaded, JaxEngine)
    return loaded


def windows(decoding: Decoding = ENGLISH, count: int = 3) -> list[Window]:
    return [Window(read_samples(HELDOUT / file), 0.0, decoding) for file in FILES[:count]]


@pytest.fixture(scope="module")
def reference() -> whisper.model.Whisper:
    checkpoint = load_checkpoint(NANO)
    model = whisper.model.Whisper(checkpoint.dims)
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.state.items()})
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 2, "patience": 2.0, "length_penalty": 0.6, "max_initial_timestamp": 0.2},
        {"beam_size": 4, "timestamps": False, "suppress_blank": False, "suppress_tokens": (-1, 220, 440), "length_penalty": 1.0},
        {"prompt": tuple(range(1000, 1009))},
        {"prompt": (220,) * 223, "max_tokens": 20},
        {"max_tokens": 5, "beam_size": 3},
    ],
    ids=str,
)
def test_it_decodes_as_whisper_does(engine: JaxEngine, reference: whisper.model.Whisper, options: dict[str, Any]) -> None:
    decoding = replace(ENGLISH, **options)
    theirs = whisper.DecodingOptions(
        language="en",
        fp16=False,
        beam_size=decoding.beam_size,
        patience=decoding.patience,
        length_penalty=decoding.length_penalty,
        without_timestamps=not decoding.timestamps,
        suppress_blank=decoding.suppress_blank,
        suppress_tokens=list(decoding.suppress_tokens),
        max_initial_timestamp=decoding.max_initial_timestamp,
        prompt=list(decoding.prompt) or None,
        sample_len=decoding.max_tokens,
    )
    for window, ours in zip(windows(decoding), engine.decode(windows(decoding)), strict=True):
        expected = whisper.decode(reference, log_mels([window], 80)[0], theirs)
        assert ours.tokens == tuple(expected.tokens)
        assert ours.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)
        assert ours.no_speech_prob == pytest.approx(expected.no_speech_prob, abs=1e-4)


def test_token_times_are_those_of_engine_openai(engine: JaxEngine) -> None:
    each = [
        replace(window, decoding=replace(ENGLISH, alignment=alignment))
        for window, alignment in zip(windows(), ("all", "none", "complete"), strict=True)
    ]
    found = engine.decode(each)
    assert [len(decoded.token_times) > 1 for decoded in found] == [True, False, True]
    for ours, theirs in zip(found, OpenAIEngine(load_checkpoint(NANO)).decode(each), strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.token_times == pytest.approx(theirs.token_times, abs=0.02 + 1e-6)
        assert ours.token_probs == pytest.approx(theirs.token_probs, abs=1e-3)


def test_languages_are_detected_as_whisper_does(engine: JaxEngine, reference: whisper.model.Whisper) -> None:
    _, expected = whisper.detect_language(reference, log_mels(windows(), 80))
    for ours, theirs in zip(engine.decode(windows(Decoding(max_tokens=1))), expected, strict=True):
        assert ours.language == max(theirs, key=theirs.__getitem__)
        assert ours.language_probability == pytest.approx(max(theirs.values()), abs=1e-4)
    (among,) = engine.decode(windows(Decoding(languages=("de", "fr"), max_tokens=1), 1))
    assert among.language in {"de", "fr"}
    pair = expected[0]["de"], expected[0]["fr"]
    assert among.language_probability == pytest.approx(max(pair) / sum(pair), abs=1e-3)


def test_prompts_of_any_length_and_languages_share_a_batch(engine: JaxEngine) -> None:
    each = [
        replace(windows(count=1)[0], decoding=decoding)
        for decoding in (ENGLISH, replace(ENGLISH, prompt=(1000, 1001, 1002)), replace(ENGLISH, prompt=(220,) * 40), Decoding())
    ]
    assert len({engine.batch_key(window.decoding) for window in each}) == 1
    alone = [engine.decode([window])[0] for window in each]
    for ours, single in zip(engine.decode(each), alone, strict=True):
        assert ours.tokens == single.tokens
        assert ours.avg_logprob == pytest.approx(single.avg_logprob, abs=1e-4)


def test_samples_differ_and_the_best_is_kept(engine: JaxEngine) -> None:
    """Temperatures a little apart are different streams of the same window."""
    hot = [replace(ENGLISH, temperature=1.0 - step / 1000) for step in range(6)]
    single = [engine.decode(windows(each, 1))[0] for each in hot]
    assert len({each.tokens for each in single}) > 1
    best = [engine.decode(windows(replace(each, best_of=8), 1))[0] for each in hot]
    assert np.mean([each.avg_logprob for each in best]) > np.mean([each.avg_logprob for each in single])


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    """4,000 sequences draw one token each: their frequencies are softmax(logprobs / temperature)."""
    draws, probable = 4000, np.array([0.5, 0.3, 0.15, 0.05])
    nothing = Sequences(jnp.zeros((draws, 0, 4), jnp.int32), jnp.zeros((draws, 0)))
    live = Sequences(jnp.full((draws, 1, 4), 9), jnp.zeros((draws, 1)))
    state = State(jnp.int32(0), live, jnp.zeros((draws, 1), bool), nothing, jnp.zeros(draws), jnp.zeros((draws, 1, 8)), ())
    seeds = jnp.arange(2 * draws, dtype=jnp.uint32).reshape(draws, 2)
    start = Start(jnp.zeros((draws, 4)), *[jnp.int32(0)] * 2, jnp.full(draws, 9), jnp.int32(1), jnp.float32(2), seeds, *[jnp.zeros(4)] * 2)
    config = LoopConfig(vocabulary=4, eot=3, begin=4, sampled=True)
    chosen = _choose_tokens(state, jnp.broadcast_to(jnp.log(probable), (draws, 1, 4)), start, config)
    frequencies = np.bincount(np.asarray(chosen.live.tokens)[:, 0, 0], minlength=4) / draws
    assert frequencies == pytest.approx(probable**0.5 / (probable**0.5).sum(), abs=0.03)
    assert np.asarray(chosen.ended)[:, 0].mean() == pytest.approx(frequencies[3])
    assert np.unique(chosen.live.sums) == pytest.approx(np.sort(np.log(probable)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precisions_hear_the_same_words(settings: Settings, engine: JaxEngine, dtype: str) -> None:
    half = load_engine(replace(settings, dtype=dtype))
    assert half.describe()["precision"] == dtype
    for ours, exact in zip(half.decode(windows()), engine.decode(windows()), strict=True):
        assert ours.text == exact.text
        assert ours.avg_logprob == pytest.approx(exact.avg_logprob, abs=0.05)
        assert ours.avg_logprob != exact.avg_logprob


@pytest.mark.slow
def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    model = tmp_path / "four-heads.pt"
    write_random(FOUR_HEADS, model, dtype=torch.float32)

    def kept() -> list[str]:
        return sorted(path.name for path in (tmp_path / "jax").glob("*-cache"))

    (first,) = run(tmp_path, [(model, "auto", 4)], devices=1)
    programs = kept()
    assert first["compiled"] == len(programs) >= 3
    (second,) = run(tmp_path, [(model, "auto", 4)], devices=1)
    assert second["compiled"] == 0
    assert kept() == programs
    assert second["tokens"] == first["tokens"]


@pytest.mark.slow
def test_every_mesh_samples_the_same_tokens(folder: Path, engine: JaxEngine) -> None:
    model = folder / "four-heads.pt"
    write_random(FOUR_HEADS, model, dtype=torch.float32)
    meshes = ("auto", "2x2", "1x4")
    *random, words = run(folder, [*((model, mesh, 12) for mesh in meshes), (NANO, "1x3", 0)], devices=4)
    assert [each["mesh"] for each in random] == ["4x1", "2x2", "1x4"]
    assert [each["split"] for each in random] == [64, 32, 16]
    assert {len(tokens) for tokens in random[0]["tokens"]} == {12}
    for each in random[1:]:
        assert each["tokens"] == random[0]["tokens"]
        assert each["avg_logprob"] == pytest.approx(random[0]["avg_logprob"], abs=1e-4)
    assert [tuple(tokens) for tokens in words["tokens"][: len(FILES)]] == [each.tokens for each in engine.decode(windows())]


def test_every_large_weight_is_split_by_a_rule() -> None:
    checkpoint = load_checkpoint(NANO)
    whole = {name for name, tensor in checkpoint.state.items() if tensor.ndim == 2 and spec_of(name) == RULES[-1][1]}
    assert whole == {"encoder.positional_embedding", "decoder.positional_embedding"}


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"jax_mesh": "64x64"}, "jax_mesh", "4096 devices"),
        ({"jax_mesh": "2 by 2"}, "jax_mesh", "DATAxMODEL"),
        ({"jax_mesh": "0x1"}, "jax_mesh", "DATAxMODEL"),
        ({"jax_mesh": "1x2"}, "jax_mesh", "2 devices"),
        ({"dtype": "int8"}, "dtype", "float32, float16, bfloat16"),
    ],
)
def test_bad_settings(settings: Settings, change: dict[str, str], param: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        load_engine(replace(settings, **change))
    assert caught.value.param == param


def test_a_platform_that_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="pip install") as caught:
        make_mesh("auto", "rocm")
    assert caught.value.param == "device"


@pytest.mark.parametrize(
    ("reason", "expected"), [("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes", OutOfMemory), ("INTERNAL: no", EngineError)]
)
def test_what_jax_raises_is_one_of_ours(
    engine: JaxEngine, monkeypatch: pytest.MonkeyPatch, reason: str, expected: type[EngineError]
) -> None:
    def fails(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError(reason)

    monkeypatch.setattr("whispercore.engines.jax._encode", fails)
    with pytest.raises(EngineError, match="2 windows") as caught:
        engine.decode(windows(count=2))
    assert type(caught.value) is expected


def test_closed(settings: Settings) -> None:
    closed = load_engine(settings)
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.decode(windows())
