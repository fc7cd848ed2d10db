"""Stand-ins for a GPU, a feed that takes notes, and what the tests of engine torch share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from whispercore.engines import Result
from whispercore.engines.torch.device import Cuda, Host, Snapshot
from whispercore.types import Decoded, Decoding, Samples, Window

ENGLISH = Decoding(language="en")
WORDS = " Turn on the light in the kitchen, then set a timer for two minutes."


def windows(each: Sequence[Samples], decoding: Decoding = ENGLISH) -> list[Window]:
    return [Window(samples, 0.0, decoding) for samples in each]


def check_equal(found: Sequence[Decoded], expected: Sequence[Decoded]) -> None:
    """Token for token. Scores may differ as far as sums in another order do."""
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.language for one in found] == [one.language for one in expected]
    assert [one.token_times for one in found] == [one.token_times for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=3e-4)
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=3e-4)
        assert one.token_probs == pytest.approx(other.token_probs, abs=3e-4)


class Listed:
    """A feed of a list of windows, which records when each was taken and done."""

    def __init__(self, each: Sequence[Window], at_most: int = 100) -> None:
        self.waiting, self.at_most = deque(each), at_most
        self.taken: list[Window] = []
        self.results: dict[int, Decoded] = {}
        self.done_when_taken: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def take(self, most: int, *, at_least: int = 1) -> list[Window]:
        assert most > 0
        self.asked.append((most, at_least))
        if min(self.at_most, len(self.waiting)) < at_least:
            return []
        found = [self.waiting.popleft() for _ in range(min(most, self.at_most, len(self.waiting)))]
        self.taken += found
        self.done_when_taken += [len(self.results)] * len(found)
        return found

    def done(self, window: Window, result: Result) -> None:
        assert id(window) not in self.results
        self.results[id(window)] = result()


class Forbidding(TorchDispatchMode):
    """Fails on operations for which the host waits for a GPU."""

    WAIT = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"})

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        name = function.overloadpacket.__name__
        assert name not in self.WAIT, name
        return function(*args, **(kwargs or {}))


class Alone(TorchDispatchMode):
    """Fails on operations that take or return a tensor on another device than meta."""

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        found = function(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, found)):
            assert not isinstance(each, torch.Tensor) or each.device.type == "meta", (function, each)
        return found


class Delayed(Host):
    """The CPU with a GPU's timing: several steps to a snapshot, which arrives a round late, and steps for more slots than are in use."""

    snapshots_in_flight, steps_per_snapshot, rounds_between_admissions = 1, 4, 4
    bucket, kv_length = Cuda.bucket, Cuda.kv_length

    def snapshot(self, tensors: Iterable[torch.Tensor]) -> Snapshot:
        return super().snapshot([tensor.clone() for tensor in tensors])


class Graph(TorchDispatchMode):
    """A CUDA graph on a CPU: replays the operations of its capture on the same memory, with the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        assert function.overloadpacket.__name__ not in Forbidding.WAIT, function
        before = tree_map(self.frozen, (args, kwargs or {}))
        found = function(*args, **(kwargs or {}))
        self.calls.append((function, *before, tree_map(self.frozen, found)))
        return found

    @staticmethod
    def frozen(value: object) -> object:
        """A view of a tensor's memory with its present sizes, which `transpose_` may change later."""
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
    """A GPU on the CPU: from its second use on a step is a graph, whose replays know nothing of the host's state."""

    captures = True
    encoder_batches, prompt_width = Cuda.encoder_batches, Cuda.prompt_width

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


class Pretended:
    """What `Cuda` uses of `torch.cuda.CUDAGraph`."""

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
