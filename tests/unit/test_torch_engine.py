"""Engine torch: the same tokens as engine openai, whoever shares the slots, and windows that come and go while others decode."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from whisper.model import ModelDimensions

from whispercore.audio import read_samples
from whispercore.checkpoints import Checkpoint, dimensions, load_checkpoint, write_random
from whispercore.engines import RefillingEngine
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.torch import TorchEngine
from whispercore.engines.torch.device import Cuda, Host, Snapshot
from whispercore.engines.torch.logits import penalise
from whispercore.engines.torch.slots import Slots
from whispercore.engines.torch.state import make_rows
from whispercore.errors import EngineError, OutOfMemory
from whispercore.types import SAMPLE_RATE, Decoded, Decoding, Samples, Window

ROOT = Path(__file__).resolve().parents[2]
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
    for decoding in (Decoding(max_tokens=9), Decoding(max_tokens=9, timestamps=False, prompt=(5, 6), alignment="all"), whole):
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
    torch.manual_seed(1)
    hot = Window(recordings[0], 0.0, replace(ENGLISH, temperature=1.0, ignore_eot=True, max_tokens=60))
    together = ours.decode([hot, *windows(recordings[:2]), hot])
    assert [one.tokens for one in together[1:3]] == [one.tokens for one in greedy]
    assert together[0].tokens != together[3].tokens
    assert together[0].avg_logprob < greedy[0].avg_logprob


def test_samples_follow_their_probabilities(nano: Checkpoint) -> None:
    from whispercore.engines.torch.decoding import _chosen

    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf]).repeat(20_000, 1)
    drawn = torch.bincount(_chosen(logits, torch.full((20_000,), 0.5)), minlength=4) / 20_000
    assert drawn.tolist() == pytest.approx((logits[0] / 0.5).softmax(0).tolist(), abs=0.015)


def test_the_best_of_several_samples(ours: TorchEngine, recordings: list[Samples]) -> None:
    torch.manual_seed(3)
    best = ours.decode(windows(recordings[:2] * 3, replace(ENGLISH, temperature=1.0, best_of=8)))
    torch.manual_seed(3)
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
    assert not engine._model.unembed.packed
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


class Forbidding(TorchDispatchMode):
    """Lets no operation through for which a GPU's host has to wait."""

    WAIT = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"})

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        name = function.overloadpacket.__name__
        assert name not in self.WAIT, name
        return function(*args, **(kwargs or {}))


def test_a_step_asks_the_device_nothing(ours: TorchEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `item`, `tolist`, `nonzero` and the like wait for all that is queued, and break the capture of a CUDA graph."""
    from whispercore.engines.torch import slots as module

    real = module.step

    def watched(*arguments: object) -> None:
        with Forbidding():
            real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "step", watched)
    for decoding in (ENGLISH, replace(ENGLISH, temperature=0.5), replace(ENGLISH, no_repeat_ngram_size=2), replace(ENGLISH, beam_size=2)):
        assert ours.decode(windows(recordings[:2], replace(decoding, max_tokens=4)))


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


class Recorded:
    """A CUDA graph that replays what was called while it was captured."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_a_step_is_warmed_up_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the calls is one step: run, captured and replayed, replayed. What cannot be captured is run each time."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    device = Cuda.__new__(Cuda)
    vars(device).update(_graphs={}, _refused=set(), _pool=None, _stream=None)
    for _ in range(4):
        device.run("a", lambda: calls.append("a"))
    assert calls == ["a", "a"]
    assert device._graphs["a"].replays == 3
    device.run(None, lambda: calls.append("rare"))
    assert calls[2:] == ["rare"] and set(device._graphs) == {"a"}

    def refuse() -> None:
        calls.append("b")
        if len(calls) == 5:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    for _ in range(3):
        device.run("b", refuse)
    assert calls[3:] == ["b", "b", "b", "b"]  # the second one, that was to be captured, was run after all
    device.forget()
    assert not device._graphs


def test_sizes_of_steps() -> None:
    device = Cuda.__new__(Cuda)
    assert [device.bucket(n, 96) for n in (1, 2, 3, 5, 8, 9, 17, 64, 65, 90)] == [1, 2, 4, 8, 8, 16, 24, 64, 80, 96]
    assert all(device.bucket(n, 100) >= n for n in range(1, 101))
    assert [device.reach(n, 448) for n in (1, 64, 65, 440, 449)] == [64, 64, 128, 448, 448]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs and half precision on one are not tested here")
def test_a_gpu_samples_the_same_tokens(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs and half precision on one are not tested here")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_gpu_in_half_precision(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], dtype: torch.dtype) -> None:
    engine = TorchEngine(nano, device="cuda", dtype=dtype, max_batch=4)
    found = [engine.decode(windows(recordings[4:])) for _ in range(3)]
    assert [one.tokens for one in found[1]] == [one.tokens for one in found[2]]
    expected = reference.decode(windows(recordings[4:]))
    assert sum(one.text == other.text for one, other in zip(found[2], expected, strict=True)) >= 3
    hot = engine.decode(windows(recordings[4:], replace(ENGLISH, temperature=0.8, best_of=3)))
    assert all(np.isfinite(one.avg_logprob) for one in hot)


def test_a_window_of_one_sample(ours: TorchEngine) -> None:
    (found,) = ours.decode([Window(np.zeros(1, np.float32), 0.0, replace(ENGLISH, alignment="all"))])
    assert len(found.token_times) == len(found.token_probs) + bool(found.token_probs)
    assert ours.decode([]) == []
    assert SAMPLE_RATE == 16_000
