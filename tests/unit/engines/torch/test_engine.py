"""Engine torch: the same tokens as engine openai, whoever shares the slots, and windows that come and go while others decode."""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from whisper.model import ModelDimensions

from bench import scores
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import Checkpoint, dimensions, empty_model, load_checkpoint, write_random
from whispercore.devices import multiplies_bfloat16
from whispercore.engines import RefillingEngine
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.torch import TorchEngine, load
from whispercore.engines.torch import device as device_module
from whispercore.engines.torch import model as model_module
from whispercore.engines.torch.admission import Entry, enter
from whispercore.engines.torch.alignment import Aligning, align
from whispercore.engines.torch.arrivals import make_arrivals
from whispercore.engines.torch.cache import make_cache
from whispercore.engines.torch.compiling import check_compiler
from whispercore.engines.torch.decoding import Shape, step
from whispercore.engines.torch.device import Cuda, Host, Snapshot
from whispercore.engines.torch.linear import Int8, Packed, quantized
from whispercore.engines.torch.logits import Vocabulary, penalise
from whispercore.engines.torch.model import load_model
from whispercore.engines.torch.precision import Precision, choose_precision
from whispercore.engines.torch.slots import Search, Slots
from whispercore.engines.torch.state import make_bank, make_heard, make_rows
from whispercore.errors import ConfigurationError, EngineError, OutOfMemory
from whispercore.settings import Settings
from whispercore.tokenizer import Tokenizer
from whispercore.types import SAMPLE_RATE, Decoded, Decoding, Samples, Window

ROOT = Path(__file__).resolve().parents[4]
HELDOUT = ROOT / "tests" / "data" / "heldout"
ENGLISH = Decoding(language="en")
WORDS = " Turn on the light in the kitchen, then set a timer for two minutes."


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return load_checkpoint(ROOT / "whisper-models" / "nano.pt")


@pytest.fixture(scope="module")
def ours(nano: Checkpoint) -> Iterator[TorchEngine]:
    engine = TorchEngine(nano, max_batch=8)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(nano: Checkpoint) -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine(nano)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def recordings() -> list[Samples]:
    """Digits of real people and synthetic sentences, mixed, so that neighbours in a batch end at different times."""
    listed = json.loads((HELDOUT / "manifest.json").read_text())
    return [read_samples(HELDOUT / item["file"]) for item in (*listed[:4], *listed[-4:])]


def windows(each: Sequence[Samples], decoding: Decoding = ENGLISH) -> list[Window]:
    return [Window(samples, 0.0, decoding) for samples in each]


def check_equal(found: Sequence[Decoded], expected: Sequence[Decoded]) -> None:
    """Token for token; scores as near as sums in another order are."""
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.language for one in found] == [one.language for one in expected]
    assert [one.token_times for one in found] == [one.token_times for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-4)
        assert one.token_probs == pytest.approx(other.token_probs, abs=1e-4)


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


class Listed:
    """A feed of a list, that notes when each window was taken and done."""

    def __init__(self, each: Sequence[Window], at_most: int = 100) -> None:
        self.waiting, self.at_most = deque(each), at_most
        self.taken: list[Window] = []
        self.results: dict[int, Decoded] = {}
        self.done_when_taken: list[int] = []

    def take(self, most: int) -> list[Window]:
        assert most > 0
        found = [self.waiting.popleft() for _ in range(min(most, self.at_most, len(self.waiting)))]
        self.taken += found
        self.done_when_taken += [len(self.results)] * len(found)
        return found

    def done(self, window: Window, result: Decoded) -> None:
        assert id(window) not in self.results
        self.results[id(window)] = result


def test_a_long_window_holds_up_nobody(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    engine = TorchEngine(nano, max_batch=2)
    assert isinstance(engine, RefillingEngine)
    long = Window(recordings[0], 0.0, replace(ENGLISH, ignore_eot=True, max_tokens=200))
    short = windows(recordings, replace(ENGLISH, max_tokens=6))
    feed = Listed([long, *short])
    engine.decode_feed(feed)
    assert list(feed.results)[-1] == id(long)
    assert feed.done_when_taken[:4] == [0, 0, 1, 2]
    check_equal([feed.results[id(window)] for window in (long, *short)], [reference.decode([window])[0] for window in (long, *short)])


@pytest.mark.parametrize("decoding", [ENGLISH, replace(ENGLISH, beam_size=3)], ids=["greedy", "beams"])
def test_windows_move_up_into_gaps(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], decoding: Decoding) -> None:
    """The windows in the first slots end first; those behind them go on from where they are, in other slots."""
    engine = TorchEngine(nano, max_batch=8)
    asked = [Window(samples, 0.0, replace(decoding, max_tokens=3 + 4 * index)) for index, samples in enumerate(recordings[:6])]
    check_equal(engine.decode(asked), [reference.decode([window])[0] for window in asked])


def test_more_windows_than_slots(ours: TorchEngine, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    """Beams of 16 leave fewer slots than the batch has windows."""
    asked = windows(recordings[:4], replace(ENGLISH, beam_size=16, max_tokens=6))
    check_equal(ours.decode(asked), [reference.decode([window])[0] for window in asked])


def test_what_was_decoded_before_leaves_nothing_behind(ours: TorchEngine, recordings: list[Samples]) -> None:
    first = ours.decode(windows(recordings[:3]))
    ours.decode(windows(recordings, replace(ENGLISH, beam_size=5)))
    ours.decode(windows(recordings, replace(ENGLISH, prompt=(400,) * 223, ignore_eot=True, max_tokens=30)))
    assert ours.decode(windows(recordings[:3])) == first


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


def test_what_was_taken_is_told_by_the_error(nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error the engine has forgotten the windows and decodes on as if nothing had been."""
    engine = TorchEngine(nano, max_batch=2)
    expected = engine.decode(windows(recordings[:1]))

    def broken(self: Slots) -> None:
        raise RuntimeError("device-side assert")

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "advance", broken)
        with pytest.raises(EngineError, match="device-side assert"):
            engine.decode(windows(recordings[:2]))
    assert engine.decode(windows(recordings[:1])) == expected


def test_short_memory_encodes_fewer_at_once(nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(nano, max_batch=4)
    expected = engine.decode(windows(recordings[:4]))
    admitted: list[int] = []
    admit = Slots.admit

    def short(self: Slots, each: Sequence[Window]) -> None:
        if len(each) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        admitted.append(len(each))
        admit(self, each)

    monkeypatch.setattr(Slots, "admit", short)
    assert [one.tokens for one in engine.decode(windows(recordings[:4]))] == [one.tokens for one in expected]
    assert admitted == [1, 1, 1, 1]

    def none(self: Slots, each: Sequence[Window]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Slots, "admit", none)
    with pytest.raises(OutOfMemory):
        engine.decode(windows(recordings[:4]))


def test_it_is_closed(nano: Checkpoint, recordings: list[Samples]) -> None:
    engine = TorchEngine(nano, max_batch=1)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.decode(windows(recordings[:1]))


def test_without_packed_weights(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that oneDNN has no kernels for, and what a GPU computes."""

    def refused(*_: object) -> None:
        raise RuntimeError("could not create a primitive")

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refused)
        engine = TorchEngine(nano, max_batch=2)
    assert not isinstance(engine._model.unembed, Packed)
    asked = windows(recordings[:2], replace(ENGLISH, alignment="all"))
    check_equal(engine.decode(asked), reference.decode(asked))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_hears_the_same_words(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], dtype: torch.dtype
) -> None:
    """8 bits of mantissa do not change what is heard, digits of poor recordings aside."""
    found = TorchEngine(nano, dtype=dtype, max_batch=4).decode(windows(recordings[4:]))
    expected = reference.decode(windows(recordings[4:]))
    assert sum(one.text == other.text for one, other in zip(found, expected, strict=True)) >= 3
    for one, other in zip(found, expected, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_8_bits_hear_the_same_words(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], dtype: torch.dtype
) -> None:
    found = TorchEngine(nano, dtype=dtype, int8=True, max_batch=4).decode(windows(recordings[4:]))
    expected = reference.decode(windows(recordings[4:]))
    assert sum(one.text == other.text for one, other in zip(found, expected, strict=True)) >= 3
    for one, other in zip(found, expected, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 8, 40])
def test_a_layer_of_8_bits(dtype: torch.dtype, rows: int) -> None:
    """Within half a step of each output's scale, however many rows there are, in a quarter of float32's memory."""
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64) * torch.logspace(-4, 2, 96)[:, None], torch.randn(96)
    weight[7] = 0.0
    layer = quantized(weight, bias, dtype)
    assert layer.weight.dtype == torch.int8
    assert ((layer.weight * layer.scale.float()[:, None] - weight).abs() <= 0.51 * layer.scale.float()[:, None]).all()
    x = torch.randn(2, rows // 2, 64).to(dtype) if rows > 1 else torch.randn(1, 64).to(dtype)
    expected = torch.nn.functional.linear(x.double(), layer.weight.double() * layer.scale.double()[:, None], layer.bias.double())
    assert layer(x).dtype == dtype and layer(x).shape == expected.shape
    error = (layer(x).double() - expected).abs() / (expected.abs() + layer.scale.double() * 127 * 8)
    assert float(error.max()) < {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


def test_what_a_precision_means() -> None:
    assert choose_precision("auto", "cpu") == Precision(torch.float32)
    assert choose_precision("auto", "cuda") == Precision(torch.float16)
    assert choose_precision("int8_float16", "cuda") == choose_precision("int8", "cuda") == Precision(torch.float16, int8=True)
    assert str(choose_precision("int8_bfloat16", "cpu")) == "int8_bfloat16"
    assert choose_precision("int8", "cpu").dtype == (torch.bfloat16 if multiplies_bfloat16() else torch.float32)
    for asked, device in (("float16", "cpu"), ("int8_float16", "cpu"), ("uint8", "cuda")):
        with pytest.raises(ConfigurationError, match=f"on {device} computes in .*not in {asked}") as caught:
            choose_precision(asked, device)
        assert caught.value.param == "dtype"


def test_an_old_gpu_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    for asked in ("bfloat16", "int8_bfloat16"):
        with pytest.raises(ConfigurationError, match="set dtype to float16"):
            choose_precision(asked, "cuda")
    assert choose_precision("int8", "cuda").dtype == torch.float16


def test_settings_reach_the_engine(recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(models_dir=str(ROOT / "whisper-models"), device="cpu", dtype="int8_float32", threads=1, batch_size=2)
    engine = load(settings, "cpu")
    assert engine.describe() | {"precision": "int8_float32", "compiled": False, "batch": 2} == engine.describe()
    assert isinstance(engine._model.decoder[0].qkv, Int8)
    assert engine.decode(windows(recordings[:1]))[0].text

    def lacking(function: object) -> object:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr("whispercore.engines.torch.compiling.compiled", lacking)
    with pytest.raises(ConfigurationError, match=r"C\+\+ compiler.*No working.*compile: false") as caught:
        load(replace(settings, compile=True), "cpu")
    assert caught.value.param == "compile"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_attention_of_many_queries_in_bfloat16(count: int) -> None:
    """As the encoder's queries, keys and values lie in memory: windows behind each other, heads beside each other."""
    torch.manual_seed(0)
    query, key, value = torch.randn(count, 1500, 3, 2, 64).bfloat16().permute(2, 0, 3, 1, 4).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(model_module.attend(query, key, value), expected, rtol=0, atol=5e-3)


def test_attention_of_one_query_in_sums() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 1, 16), torch.randn(3, 2, 50, 16), torch.randn(3, 2, 50, 16)
    torch.testing.assert_close(model_module.attend_once(query, key, value), model_module.attend(query, key, value))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: torch.compile is not tested here")
def test_compiled_parts_sample_the_same_tokens(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    check_compiler(torch.device("cpu"))
    engine = TorchEngine(nano, max_batch=2, compiles=True)
    together = windows(recordings[:2], replace(ENGLISH, max_tokens=12, ignore_eot=True))
    check_equal(engine.decode(together), reference.decode(together))


class Forbidding(TorchDispatchMode):
    """Lets no operation through for which a GPU's host has to wait."""

    WAIT = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"})

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        name = function.overloadpacket.__name__
        assert name not in self.WAIT, name
        return function(*args, **(kwargs or {}))


def test_nothing_asks_the_device(ours: TorchEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `item`, `tolist`, `nonzero` and the like wait for all that is queued, and break the capture of a CUDA graph."""
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
    watch(admission, "enter")
    for decoding in (
        Decoding(),
        replace(ENGLISH, temperature=0.5),
        replace(ENGLISH, no_repeat_ngram_size=2),
        replace(ENGLISH, beam_size=2),
    ):
        assert ours.decode(windows(recordings[:2], replace(decoding, max_tokens=4)))
    assert {"step", "enter"} == set(watched)


class Alone(TorchDispatchMode):
    """Lets no operation through that takes or makes a tensor elsewhere than on the device."""

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        found = function(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, found)):
            assert not isinstance(each, torch.Tensor) or each.device.type == "meta", (function, each)
        return found


@pytest.mark.parametrize("beams", [0, 3])
@pytest.mark.parametrize("int8", [False, True], ids=["whole", "int8"])
def test_a_devices_work_needs_nothing_of_the_hosts(nano: Checkpoint, monkeypatch: pytest.MonkeyPatch, beams: int, int8: bool) -> None:
    """The tensors of a device that keeps no values: a number of the host's in between would be a copy that a GPU waits for."""
    meta = torch.device("meta")
    monkeypatch.setattr(log_mel, "mel_filters", lambda device, n_mels: torch.zeros(n_mels, 201, device=device))
    monkeypatch.setattr(model_module, "attend", lambda q, k, v, mask=None: torch.nn.functional.scaled_dot_product_attention(q, k, v, mask))
    model = load_model(nano, meta, torch.float16, int8=int8)
    tokenizer, group = Tokenizer(nano.dims.n_vocab), max(1, beams)
    cache = make_cache(nano.dims, 4, 4 * group, torch.float16, meta)
    rows, heard, bank = make_rows(4 * group, nano.dims.n_vocab, meta), make_heard(4, meta), make_bank(4, beams, meta) if beams else None
    languages = torch.zeros(len(tokenizer.languages), dtype=torch.long, device=meta)
    new = make_arrivals(2, tokenizer.vocabulary, len(languages), meta, audio=True)
    vocabulary = Vocabulary(tokenizer.eot, tokenizer.timestamp_begin, torch.zeros(2, dtype=torch.long, device=meta))
    with Alone():
        enter(model, cache, tokenizer, languages, new, new.number("slot"), rows, heard, Entry(2, group, 4, True), None)
        for sampled in (False, True):
            step(model, cache, rows, bank, vocabulary, Shape(4, group, 64, sampled, None, beams))


class Delayed(Host):
    """The CPU in a GPU's manner: several steps between two looks, which arrive a round late, steps for more slots than are in use."""

    lag, every = 1, 4
    bucket, reach = Cuda.bucket, Cuda.reach

    def snapshot(self, tensors: Iterable[torch.Tensor]) -> Snapshot:
        return super().snapshot([tensor.clone() for tensor in tensors])


def test_looks_that_arrive_late(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whispercore.engines.torch.engine.make_device", lambda *_: Delayed())
    engine = TorchEngine(nano, max_batch=5)
    prompt = engine.tokenizer.encode(WORDS)
    for decoding in (ENGLISH, replace(ENGLISH, beam_size=3), replace(ENGLISH, alignment="all", prompt=prompt)):
        limits = (200, 3, 17, 200, 6, 200)
        asked = [Window(samples, 0.0, replace(decoding, max_tokens=most)) for samples, most in zip(recordings, limits, strict=False)]
        feed = Listed(asked, at_most=2)
        engine.decode_feed(feed)
        check_equal([feed.results[id(window)] for window in asked], [reference.decode([window])[0] for window in asked])


def test_times_of_words_are_not_waited_for(nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next steps are queued before the host asks for an alignment, unless nothing is left to decode."""
    monkeypatch.setattr("whispercore.engines.torch.engine.make_device", lambda *_: Delayed())
    engine, events = TorchEngine(nano, max_batch=2), list[str]()
    advance, wait = Slots.advance, Aligning.wait

    def advancing(self: Slots) -> None:
        events.append("steps")
        advance(self)

    def waiting(self: Aligning) -> list[tuple[list[int], list[float]]]:
        events.append("times")
        return wait(self)

    def aligning(*arguments: object, **named: object) -> Aligning:
        events.append("aligned")
        return align(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Slots, "advance", advancing)
    monkeypatch.setattr(Aligning, "wait", waiting)
    monkeypatch.setattr("whispercore.engines.torch.engine.align", aligning)
    limits = (4, 60)
    found = engine.decode(
        [
            Window(samples, 0.0, replace(ENGLISH, alignment="all", max_tokens=most))
            for samples, most in zip(recordings[4:], limits, strict=False)
        ]
    )
    assert all(len(one.token_times) == len(one.token_probs) + 1 > 1 for one in found)
    first = events.index("aligned")
    assert events[first + 1] == "steps" and events.count("times") == events.count("aligned")


class Graph(TorchDispatchMode):
    """A CUDA graph on a CPU: the operations that ran while it was captured, on that very memory and with those very numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, object, object, object]] = []

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        assert function.overloadpacket.__name__ not in Forbidding.WAIT, function
        before = tree_map(self.as_it_is, (args, kwargs or {}))
        found = function(*args, **(kwargs or {}))
        self.calls.append((function, *before, tree_map(self.as_it_is, found)))
        return found

    @staticmethod
    def as_it_is(value: object) -> object:
        """A tensor's memory with its present sizes, which `transpose_` changes."""
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            return value
        return value.as_strided(value.size(), value.stride(), value.storage_offset())

    def replay(self) -> None:
        for function, args, kwargs, found in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capturing(Delayed):
    """A GPU on the CPU: what comes again is replayed from a graph, whatever the host does in the meantime."""

    captures = True
    parts, width = Cuda.parts, Cuda.width

    def __init__(self) -> None:
        super().__init__()
        self.graphs: dict[object, Graph | None] = {}
        self.replays = 0

    def run(self, key: object, step: Callable[[], None]) -> None:
        if key is None or key not in self.graphs:
            self.graphs[key] = None
            step()
        elif graph := self.graphs[key]:
            self.replays += 1
            graph.replay()
        else:
            self.graphs[key] = graph = Graph()
            with graph:
                step()


def test_graphs_hold_nothing_that_changes(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries and steps as CUDA graphs: other windows, slots, prompts and languages, told by static tensors only."""
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
    asked = [Window(samples, 0.0, each) for samples in recordings for each in decodings]
    feed = Listed(asked, at_most=2)
    engine.decode_feed(feed)
    check_equal([feed.results[id(window)] for window in asked], [reference.decode([window])[0] for window in asked])
    for decoding in (replace(ENGLISH, beam_size=2, max_tokens=12), replace(ENGLISH, temperature=1e-4, max_tokens=12)):
        for some in (recordings[:3], recordings[3:5], recordings[5:8]):
            check_equal(engine.decode(windows(some, decoding)), reference.decode(windows(some, decoding)))
    assert device.replays > 20
    assert {type(key).__name__ for key, graph in device.graphs.items() if graph} == {"Entry", "Shape"}


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
    assert {type(key).__name__ for key in known} == {"Entry", "Shape"} and all(device.graphs.values())
    asked = windows(recordings[:3], Decoding(max_tokens=6))
    found = engine.decode(asked)
    assert set(device.graphs) == known
    monkeypatch.setattr(device, "graphs", {})
    assert found == cold.decode(asked)


def test_a_warm_start_ends_in_time_and_survives_short_memory(
    nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(nano, max_batch=2)
    expected = engine.decode(windows(recordings[:2]))
    slots = engine._opened()
    assert slots.warm(0.0, together=2, encodes=False) == 1

    def short(self: Slots, *_: object, **__: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Slots, "warm", short)
    engine.warm_up(1.0)
    assert engine._encoded_at_once == 1
    assert [one.tokens for one in engine.decode(windows(recordings[:2]))] == [one.tokens for one in expected]


class Pretended:
    """A CUDA graph as `Cuda` uses it."""

    captured: ClassVar[list[object]] = []
    ended = 0

    def __init__(self) -> None:
        self.replays = 0

    def capture_begin(self, *, pool: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.of = pool
        Pretended.captured.append(pool)

    def capture_end(self) -> None:
        Pretended.ended += 1

    def pool(self) -> object:
        return self.of

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A GPU's layer without a GPU."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Pretended)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(Pretended, "captured", [])
    monkeypatch.setattr(Pretended, "ended", 0)
    device = Cuda.__new__(Cuda)
    vars(device).update(_graphs={}, _refused=set(), _pool=None, torch=torch.device("cpu"))
    vars(device)["_stream"] = SimpleNamespace(synchronize=lambda: None)
    return device


def test_a_step_is_warmed_up_captured_and_replayed(gpu: Cuda) -> None:
    """Each of the calls is one step: run, captured and replayed, replayed."""
    calls: list[str] = []
    for _ in range(4):
        gpu.run("a", lambda: calls.append("a"))
    assert calls == ["a", "a"]
    assert gpu._graphs["a"].replays == 3
    gpu.run(None, lambda: calls.append("rare"))
    assert calls[2:] == ["rare"] and set(gpu._graphs) == {"a"}


def test_what_cannot_be_captured_is_run_each_time(gpu: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    for error in (RuntimeError("operation not permitted when stream is capturing"), torch.OutOfMemoryError("CUDA out of memory")):

        def refuse(error: RuntimeError = error) -> None:
            calls.append("run")
            if len(Pretended.captured) > Pretended.ended:
                calls[-1] = "captured"
                raise error

        calls.clear()
        gpu.forget()
        for _ in range(3):
            gpu.run("b", refuse)
        attempts = ["captured"] * (2 if isinstance(error, torch.OutOfMemoryError) else 1)
        assert calls == ["run", *attempts, "run", "run"]
    assert Pretended.ended == 3 + 2  # after each of them one that ends well
    assert caplog.text.count("without a CUDA graph") == 2


def test_graphs_share_a_pool_while_one_of_them_lives(gpu: Cuda) -> None:
    """PyTorch takes the name of a pool again only as long as a graph keeps it."""
    for _ in range(2):
        gpu.run("a", lambda: None)
        gpu.run("b", lambda: None)
    gpu.forget()
    assert not gpu._graphs
    for _ in range(2):
        gpu.run("a", lambda: None)
    first, second, third = Pretended.captured
    assert first is second and first is not third


def test_a_capture_that_breaks_off_leaves_its_pool(gpu: Cuda) -> None:
    """In PyTorch's books it goes on: another pool for the next ones, and a capture that ends well for the random numbers' sake."""

    def broken() -> None:
        if len(Pretended.captured) > Pretended.ended:
            raise RuntimeError("operation not permitted when stream is capturing")

    for work, key in ((lambda: None, "a"), (broken, "b"), (lambda: None, "c"), (lambda: None, "d")):
        for _ in range(2):
            gpu.run(key, work)
    before, failed, recovery, after, last = Pretended.captured
    assert before is failed
    assert len({id(pool) for pool in (failed, recovery, after)}) == 3 and after is last
    assert [key for key, graph in gpu._graphs.items() if graph] == ["a", "c", "d"]


def test_a_broken_capture_ends_in_the_allocators_books(gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch leaves it open there: `torch.cuda.empty_cache` would fail from then on."""
    ended: list[object] = []

    def broken(self: Pretended) -> None:
        Pretended.ended += 1
        if Pretended.ended == 1:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(Pretended, "capture_end", broken)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda index, pool: ended.append(pool), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: ended.append(device_module._CAPTURING.locked()))
    calls: list[str] = []
    for _ in range(3):
        gpu.run("a", lambda: calls.append("a"))
    assert calls == ["a"] * 4 and ended == Pretended.captured[:1]
    gpu.forget()
    assert ended[1:] == [True]  # no other GPU captures meanwhile


def test_only_one_graph_is_captured_at_a_time(gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of however many GPUs: PyTorch allows a process no more."""
    assert not device_module._CAPTURING.locked()
    seen: list[bool] = []
    for _ in range(2):
        gpu.run("a", lambda: seen.append(device_module._CAPTURING.locked()))
    assert seen == [False, True]
    assert not device_module._CAPTURING.locked()


def test_sizes_of_steps() -> None:
    device = Cuda.__new__(Cuda)
    assert [device.bucket(n, 96) for n in (1, 2, 3, 5, 8, 9, 17, 64, 65, 90)] == [1, 2, 4, 8, 8, 16, 24, 64, 80, 96]
    assert all(device.bucket(n, 100) >= n for n in range(1, 101))
    assert [device.reach(n, 448) for n in (1, 64, 65, 440, 449)] == [64, 64, 128, 448, 448]
    assert [device.parts(n) for n in (1, 2, 7, 8, 12)] == [[1], [2], [4, 2, 1], [8], [8, 4]]
    assert [device.width(n) for n in (1, 3, 4, 5, 226)] == [4, 4, 4, 64, 256]


def test_a_window_of_one_sample(ours: TorchEngine) -> None:
    (found,) = ours.decode([Window(np.zeros(1, np.float32), 0.0, replace(ENGLISH, alignment="all"))])
    assert len(found.token_times) == len(found.token_probs) + bool(found.token_probs)
    assert ours.decode([]) == []
    assert SAMPLE_RATE == 16_000


ON_A_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: graphs, precisions, memory and speed of one are not tested here"
)
"""The first to run where there is a GPU: pytest tests/unit/engines/torch/test_engine.py -k gpu -s"""


@pytest.fixture
def whole_memory() -> Iterator[None]:
    """The next test has all of the GPU's memory."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def random_checkpoint(size: str) -> Checkpoint:
    """Random weights of a real shape, made on the GPU."""
    dims = dimensions(size)
    shapes = {name: tensor.shape for name, tensor in empty_model(dims).state_dict().items()}
    torch.manual_seed(0)
    state = {name: torch.randn(shape, device="cuda", dtype=torch.float16) / shape[1:].numel() ** 0.5 for name, shape in shapes.items()}
    for name, tensor in state.items():
        if tensor.ndim == 1:
            tensor.fill_(float("ln" in name and name.endswith("weight")))
    return Checkpoint(Path(f"{size}.pt"), dims, state)


def words_of(engine: TorchEngine) -> tuple[list[str], list[str]]:
    """What is said on the held-out recordings, and what the engine hears."""
    listed = json.loads((HELDOUT / "manifest.json").read_text())
    heard = engine.decode(windows([read_samples(HELDOUT / item["file"]) for item in listed]))
    return [item["text"] for item in listed], [one.text for one in heard]


@ON_A_GPU
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


@ON_A_GPU
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


@ON_A_GPU
def test_a_gpu_decodes_with_graphs_what_it_decodes_without(
    nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [TorchEngine(nano, device="cuda", dtype=torch.float16, max_batch=8) for _ in range(2)]
    plain = engines[1]._device
    monkeypatch.setattr(plain, "run", lambda key, step: step())
    for decoding in (ENGLISH, Decoding(), replace(ENGLISH, beam_size=3), replace(ENGLISH, alignment="all")):
        asked = windows(recordings * 3, decoding)
        for _ in range(3):
            with_graphs, without = (engine.decode(asked) for engine in engines)
            assert [one.tokens for one in with_graphs] == [one.tokens for one in without]
    device = engines[0]._device
    assert isinstance(device, Cuda) and not device._refused
    print(f"{sum(graph is not None for graph in device._graphs.values())} graphs")


@ON_A_GPU
def test_a_gpu_is_warm_before_the_first_request(nano: Checkpoint, recordings: list[Samples], caplog: pytest.LogCaptureFixture) -> None:
    engine = TorchEngine(nano, device="cuda", dtype=torch.float16, max_batch=16)
    device = engine._device
    assert isinstance(device, Cuda)
    with caplog.at_level("INFO"):
        engine.warm_up(60.0)
    print(caplog.text)
    known = set(device._graphs)
    assert known and all(device._graphs.values()) and not device._refused
    engine.decode(windows(recordings * 2))
    assert set(device._graphs) == known


@ON_A_GPU
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


@ON_A_GPU
def test_a_gpu_keeps_8_bits_in_half_the_memory() -> None:
    checkpoint, taken = random_checkpoint("small"), []
    for int8 in (False, True):
        before = torch.cuda.memory_allocated()
        model = load_model(checkpoint, torch.device("cuda"), torch.float16, int8=int8)
        taken.append((torch.cuda.memory_allocated() - before) / 2**20)
        del model
    print(f"small: float16 {taken[0]:.0f} MB, int8 {taken[1]:.0f} MB")
    assert taken[1] < 0.7 * taken[0]  # the embedding stays as it is


@ON_A_GPU
def test_a_gpu_runs_compiled_parts(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    try:
        check_compiler(torch.device("cuda"))
    except ConfigurationError as error:
        pytest.skip(f"no compiled parts: {error.message}")
    engine = TorchEngine(nano, device="cuda", dtype=torch.float16, max_batch=8, compiles=True)
    expected = [one.text for one in reference.decode(windows(recordings))]
    for _ in range(3):
        assert sum(one.text == other for one, other in zip(engine.decode(windows(recordings)), expected, strict=True)) >= 7
    assert isinstance(engine._device, Cuda) and not engine._device._refused


@ON_A_GPU
@pytest.mark.parametrize("options", [{}, {"int8": True}, {"compiles": True}], ids=["float16", "int8", "compiled"])
@pytest.mark.parametrize("size", ["large-v3-turbo", "large-v3"])
def test_a_gpu_is_fast(size: str, options: dict[str, bool]) -> None:
    """No figure is asked of it: they are printed, for bench/profile.md and for whoever looks for what to do next."""
    engine = TorchEngine(random_checkpoint(size), device="cuda", dtype=torch.float16, **options)
    engine.warm_up(60.0)
    slots, device = engine._opened(), engine._device
    noise = np.random.default_rng(0).normal(scale=0.1, size=480_000).astype(np.float32)
    asked = [Window(noise, 0.0, replace(ENGLISH, ignore_eot=True, max_tokens=120)) for _ in range(3 * engine.max_batch)]
    engine.decode(asked[: engine.max_batch])
    began = time.perf_counter()
    assert len(engine.decode(asked)) == len(asked)
    seconds = time.perf_counter() - began
    named = f"{size} {engine.describe()['precision']}{' compiled' * bool(options.get('compiles'))}"
    print(f"\n{named}: RTFx {30 * len(asked) / seconds:.0f}, {1e3 * seconds / len(asked):.2f} ms a window")
    with torch.no_grad(), device.working():
        print(
            f"  entry of 8 windows: {milliseconds(lambda: slots._admission.warm(Entry(8, 1, 4, False), slots._rows, slots._heard)):.1f} ms"
        )
        slots.begin(Search(1))
        for count in (1, 8, engine.max_batch):
            shape = Shape(count, 1, 128, sampled=False, ngram=None, places=0)
            print(f"  step of {count} windows: {milliseconds(lambda shape=shape: slots._step(shape)):.2f} ms")
        query = torch.randn(engine.max_batch, 20, 1, 64, device="cuda", dtype=torch.float16)
        key, value = engine._cache.sound(0, slice(0, engine.max_batch))
        gigabytes = 2 * key.numel() * 2 / 1e9
        for name, backend in (
            ("flash", SDPBackend.FLASH_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
            ("math", SDPBackend.MATH),
        ):
            with sdpa_kernel(backend):
                took = milliseconds(lambda: model_module.attend(query, key, value))
            print(f"  attention of one query a window, {name}: {took:.2f} ms, {gigabytes / took * 1e3:.0f} GB/s")
    engine.close()


def milliseconds(work: Callable[[], object], repeat: int = 20) -> float:
    """GPU time of one call, after three that nobody counts."""
    for _ in range(3):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeat):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeat
