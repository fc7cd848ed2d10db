"""PyTorch's decoder of engine ct2 on CPUs: with weights in floats its tokens are openai-whisper's; in 8 bits each window is by itself."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from whisper.decoding import ApplyTimestampRules, DecodingOptions, DecodingTask, SuppressBlank, SuppressTokens

from tests.unit.engines.torch.doubles import ENGLISH, WORDS, check_equal, windows
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import load_checkpoint
from whispercore.checkpoints.conversion import convert
from whispercore.engines import ParallelEngine
from whispercore.engines.ct2 import CTranslate2Engine
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.pytorch import decoder, int8
from whispercore.engines.pytorch.sampling import Sampler, TokenRules
from whispercore.engines.pytorch.step import Step
from whispercore.tokenizer import Tokenizer
from whispercore.types import Decoding, Samples, Window

ROOT = Path(__file__).resolve().parents[4]
NANO = ROOT / "whisper-models" / "nano.pt"

pytestmark = pytest.mark.skipif(not int8.is_available(), reason="this PyTorch has no FBGEMM, or none for this processor")


@pytest.fixture(scope="module")
def recordings() -> list[Samples]:
    paths = sorted((ROOT / "tests" / "data" / "heldout").glob("*.flac"))[:6]
    return [read_samples(path)[: 16_000 * 30] for path in paths]


@pytest.fixture(scope="module")
def reference() -> OpenAIEngine:
    return OpenAIEngine(load_checkpoint(NANO), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nano, path = load_checkpoint(NANO), tmp_path_factory.mktemp("nano") / "float32"
    convert(nano.dims, nano.state, path, "float32", alignment_heads=nano.alignment_heads)
    return path


class Encoder:
    """openai-whisper's encoder, in float32."""

    precision = "float32"

    def __init__(self, reference: OpenAIEngine) -> None:
        assert reference.model is not None
        self._encode = reference.model.encoder

    def __call__(self, mels: Samples) -> Samples:
        with torch.no_grad():
            features: Samples = self._encode(torch.from_numpy(mels)).numpy()
        return features


def engine(folder: Path, reference: OpenAIEngine, loaded: decoder.Decoder, threads: int = 1) -> CTranslate2Engine:
    encoder = cast(Any, Encoder(reference))
    return CTranslate2Engine(
        folder, name="nano", device="cpu", compute_type="float32", threads=threads, max_batch=8, encoder=encoder, decoder=Sampler(loaded)
    )


def _float_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """As `rowwise_int8`, but in float32."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer


@pytest.fixture(scope="module")
def in_floats(folder: Path, reference: OpenAIEngine) -> CTranslate2Engine:
    """With the weights in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "rowwise_int8", _float_layer)
        loaded = decoder.load_decoder(NANO, torch.float32)
    return engine(folder, reference, loaded)


@pytest.fixture(scope="module")
def in_8_bits(folder: Path, reference: OpenAIEngine) -> CTranslate2Engine:
    return engine(folder, reference, decoder.load_decoder(NANO, torch.float32))


@pytest.mark.parametrize(
    "decoding",
    [
        ENGLISH,
        Decoding(),
        Decoding(timestamps=False),
        Decoding(language="en", task="translate"),
        Decoding(language="en", suppress_tokens=(), suppress_blank=False),
        Decoding(language="en", suppress_tokens=(-1, 2, 11, 13)),
        Decoding(language="en", max_initial_timestamp=None),
        Decoding(language="en", max_initial_timestamp=0.0),
        Decoding(language="en", max_tokens=5),
        Decoding(language="en", max_tokens=40, ignore_eot=True),
        Decoding(language="en", alignment="all"),
        Decoding(temperature=0.7, best_of=3),
        Decoding(language="en", temperature=1.0),
    ],
    ids=str,
)
def test_the_tokens_are_engine_openais(
    in_floats: CTranslate2Engine, reference: OpenAIEngine, recordings: list[Samples], decoding: Decoding
) -> None:
    asked = windows(recordings, decoding)
    check_equal(in_floats.decode(asked), reference.decode(asked))


def test_neighbours_may_have_other_prompts_and_languages(
    in_floats: CTranslate2Engine, reference: OpenAIEngine, recordings: list[Samples]
) -> None:
    prompt = in_floats.tokenizer.encode(WORDS)
    decodings = [
        ENGLISH,
        replace(ENGLISH, prompt=prompt),
        Decoding(),
        replace(ENGLISH, prompt=prompt * 30),
        Decoding(language="de"),
        ENGLISH,
    ]
    mixed = [Window(samples, 0.0, decoding) for samples, decoding in zip(recordings, decodings, strict=True)]
    check_equal(in_floats.decode(mixed), [reference.decode([window])[0] for window in mixed])


def test_neighbours_may_be_aligned_or_not(in_floats: CTranslate2Engine, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    """Texts without a prompt and timestamps are aligned by what was kept while they were sampled, the others by a pass of their own."""
    aligned = Decoding(language="en", timestamps=False, alignment="all")
    prompt = in_floats.tokenizer.encode(WORDS)
    decodings = [
        aligned,
        replace(aligned, prompt=prompt),
        replace(aligned, alignment="none"),
        aligned,
        replace(aligned, language=None),
        aligned,
    ]
    mixed = [Window(samples, 0.0, decoding) for samples, decoding in zip(recordings, decodings, strict=True)]
    expected = [reference.decode([window])[0] for window in mixed]
    assert any(decoded.token_times for decoded in expected)
    with_pass = _count_passes(in_floats)
    check_equal(in_floats.decode(mixed), expected)
    assert with_pass == [1]


@pytest.mark.parametrize(
    ("decoding", "passes"),
    [
        (Decoding(language="en", timestamps=False, alignment="all"), 0),
        (Decoding(timestamps=False, alignment="all"), 0),
        (Decoding(language="en", timestamps=False, alignment="all", max_tokens=3), None),  # a text that was cut off was not read to its end
        (Decoding(language="en", timestamps=True, alignment="all"), 6),
        (Decoding(language="en", timestamps=False, alignment="all", temperature=0.4, best_of=2), 6),
        (Decoding(language="en", timestamps=False, alignment="none"), 0),
    ],
    ids=str,
)
def test_a_text_is_aligned_by_what_was_kept_while_it_was_sampled(
    in_floats: CTranslate2Engine, reference: OpenAIEngine, recordings: list[Samples], decoding: Decoding, passes: int | None
) -> None:
    asked = windows(recordings, decoding)
    expected, with_pass = reference.decode(asked), _count_passes(in_floats)
    check_equal(in_floats.decode(asked), expected)
    cut_off = sum(len(decoded.tokens) == decoding.max_tokens for decoded in expected)
    assert sum(with_pass) == (cut_off if passes is None else passes)
    assert passes is not None or cut_off > 0


def _count_passes(engine: CTranslate2Engine) -> list[int]:
    """The number of texts in each pass of the engine's decoder that keeps no keys: an alignment."""
    loaded, texts = cast(Sampler, engine._decoder), list[int]()

    class Counted(decoder.Decoder):
        def read(self, tokens: Tensor, audio: Any, text: Any = None, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
            if text is None and tokens.shape[1] > 1:  # one token: the language
                texts.append(len(tokens))
            return super().read(tokens, audio, text, rows)

    counted = Counted(**{name: getattr(loaded.decoder, name) for name in decoder.Decoder.__dataclass_fields__})
    engine._decoder = replace(loaded, decoder=counted)
    return texts


def test_in_8_bits_a_window_does_not_depend_on_its_neighbours(in_8_bits: CTranslate2Engine, recordings: list[Samples]) -> None:
    asked = windows(recordings)
    assert [found.tokens for found in in_8_bits.decode(asked)] == [in_8_bits.decode([window])[0].tokens for window in asked]


def test_the_parts_of_a_batch_on_several_threads_share_no_memory(folder: Path, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    asked, loaded = windows(recordings, Decoding(language="en", alignment="all")), decoder.load_decoder(NANO, torch.float32)
    alone, together = engine(folder, reference, loaded), engine(folder, reference, loaded, threads=2)
    expected = [alone.decode([window])[0] for window in asked]
    for _ in range(3):
        check_equal(together.decode(asked), expected)


def test_a_row_of_a_product_is_the_same_in_any_company() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = int8.rowwise_int8(torch.randn(96, 64, generator=generator), torch.randn(96, generator=generator))
    rows = torch.randn(7, 64, generator=generator) * torch.logspace(-3, 3, 7)[:, None]
    together = layer(rows)
    assert all(torch.equal(layer(rows[i : i + 1])[0], together[i]) for i in range(7))


def test_products_are_near_those_of_floats() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((96, 512), (96,), (5, 512)))
    expected = torch.nn.functional.linear(x, weight, bias)
    assert (int8.rowwise_int8(weight, bias)(x) - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(int8.rowwise_int8(weight, bias)(torch.zeros(2, 512)), bias.expand(2, -1))


def test_without_vnni_no_sum_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of 8 bits each may exceed 16 bits; of 8 and 7 bits they do not."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    layer = int8.rowwise_int8(torch.ones(8, 64), None)
    assert int(layer.packed.unpack()[0].int_repr().max()) * 255 * 2 <= 32_767
    assert torch.allclose(layer(torch.ones(1, 64)), torch.full((1, 8), 64.0), rtol=0.02)


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("blank", [True, False])
def test_the_rules_are_openai_whispers(timed: bool, blank: bool) -> None:
    tokenizer, rng = Tokenizer(51_865), np.random.default_rng(0)
    decoding = Decoding(language="en", timestamps=timed, suppress_blank=blank)
    rules, begin = TokenRules.of(tokenizer, decoding), tokenizer.timestamp_begin
    openai = tokenizer.openai_for("en", "transcribe")
    options = DecodingOptions(language="en", without_timestamps=not timed, suppress_blank=blank)
    suppressed = DecodingTask._get_suppress_tokens(_Task(openai, options))
    for _ in range(60):
        sampled = _text(rng, begin, timed)
        logits = torch.from_numpy(rng.normal(size=(1, 51_865)).astype(np.float32))
        logits[0, begin:] += float(rng.choice([-5.0, 0.0, 5.0]))
        expected, tokens = logits.clone(), torch.tensor([[*openai.sot_sequence, *sampled]])
        filters = [SuppressBlank(openai, 3)] if blank else []
        filters += [SuppressTokens(suppressed), *([ApplyTimestampRules(openai, 3, 50)] if timed else [])]
        for each in filters:
            each.apply(expected, tokens)
        logits.index_fill_(1, rules.suppressed, -torch.inf)
        rules.apply(logits.numpy()[0], sampled)
        assert torch.equal(logits, expected), sampled


class _Task:
    """What `DecodingTask._get_suppress_tokens` uses of a task."""

    def __init__(self, tokenizer: object, options: DecodingOptions) -> None:
        self.tokenizer, self.options = tokenizer, options


def _text(rng: np.random.Generator, begin: int, timed: bool) -> Sequence[int]:
    """The first tokens of a text: segments of one to three words between timestamps that never decrease."""
    tokens: list[int] = []
    time = 0
    for _ in range(3):
        tokens += [begin + time] if timed else []
        tokens += rng.integers(1000, 2000, size=rng.integers(1, 4)).tolist()
        time += int(rng.integers(1, 50))
        tokens += [begin + time] if timed else []
    return tokens[: rng.integers(0, len(tokens) + 1)]


def test_lanes_decode_beside_each_other_from_their_first_call_on(folder: Path, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    asked = windows(recordings, Decoding(language="en", alignment="all"))
    alone, lanes = (engine(folder, reference, decoder.load_decoder(NANO, torch.float32), threads) for threads in (1, 2))
    expected = [alone.decode([window])[0] for window in asked]
    assert isinstance(lanes, ParallelEngine) and (lanes.lanes, lanes.any_width) == (2, True)
    halves = [asked[: len(asked) // 2], asked[len(asked) // 2 :]]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            decoded = [result for half in pool.map(partial(lanes.decode_on, 1), halves) for result in half]
            check_equal(decoded, expected)


@pytest.mark.parametrize(("windows", "at"), [([0, 1, 2], [3, 3, 3]), ([0, 1, 2], [3, 1, 2]), ([2, 0, 1], [3, 3, 3]), ([1], [2])])
@pytest.mark.parametrize("cross_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_torchscript_computes_what_python_computes(cross_dtype: torch.dtype, windows: list[int], at: list[int]) -> None:
    loaded = decoder.load_decoder(NANO, cross_dtype)
    assert isinstance(loaded.take_step, torch.jit.ScriptModule)
    plain = Step(loaded.embedding, loaded.positions, loaded.layers, loaded.ln, loaded.dims.n_text_head, loaded.alignment_heads)
    audio = loaded.room_for_audio(3)
    loaded.fill_audio(torch.randn(3, 1500, loaded.dims.n_audio_state, generator=torch.Generator().manual_seed(1)), audio)
    texts = [loaded.room_for_text(len(windows)) for _ in range(2)]
    with torch.no_grad():
        for step in range(4):
            places = torch.tensor([min(step, place) for place in at])
            tokens = torch.arange(len(windows)) + 100 * step
            scripted = loaded.step(tokens, places, audio, windows, texts[0])
            called = plain(tokens, places, audio.layers, windows, texts[1].keys, texts[1].values)
            assert all(torch.equal(*results) for results in zip(scripted, called, strict=True))
    assert all(torch.equal(*kept) for kept in zip(texts[0].keys, texts[1].keys, strict=True))


def test_without_torchscript_the_step_runs_in_python(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(torch.jit, "script")
    loaded = decoder.load_decoder(NANO, torch.float32)
    assert isinstance(loaded.take_step, Step) and "without TorchScript" in caplog.text
