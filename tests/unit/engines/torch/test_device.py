"""The device layer of a GPU: warm-up, capture and replay of steps, and captures that fail. No GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.unit.engines.torch.doubles import (
    Pretended,
)
from whispercore.engines.torch import device as device_module
from whispercore.engines.torch.device import Cuda


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """`Cuda` without a GPU."""
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
    graph: object = gpu._graphs["a"]
    assert isinstance(graph, Pretended) and graph.replays == 3
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
        gpu.free_memory()
        for _ in range(3):
            gpu.run("b", refuse)
        attempts = ["captured"] * (2 if isinstance(error, torch.OutOfMemoryError) else 1)
        assert calls == ["run", *attempts, "run", "run"]
    assert Pretended.ended == 3 + 2  # after each of them one that ends well
    assert caplog.text.count("without a CUDA graph") == 2


def test_graphs_share_a_pool_while_one_of_them_lives(gpu: Cuda) -> None:
    """PyTorch accepts the handle of a pool only as long as one of its graphs lives."""
    for _ in range(2):
        gpu.run("a", lambda: None)
        gpu.run("b", lambda: None)
    gpu.free_memory()
    assert not gpu._graphs
    for _ in range(2):
        gpu.run("a", lambda: None)
    first, second, third = Pretended.captured
    assert first is second and first is not third


def test_a_capture_that_breaks_off_leaves_its_pool(gpu: Cuda) -> None:
    """PyTorch takes it for unfinished: the next captures get another pool, and one that succeeds makes random numbers work again."""

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
    """PyTorch's allocator is told of the end, or `torch.cuda.empty_cache` would fail from then on."""
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
    gpu.free_memory()
    assert ended[1:] == [True]  # no other GPU captures meanwhile


def test_only_one_graph_is_captured_at_a_time(gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all GPUs: PyTorch allows one capture at a time in a process."""
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
    assert [device.kv_length(n, 448) for n in (1, 64, 65, 440, 449)] == [64, 64, 128, 448, 448]
    assert [device.encoder_batches(n) for n in (1, 2, 7, 8, 12)] == [[1], [2], [4, 2, 1], [8], [8, 4]]
    assert [device.prompt_width(n) for n in (1, 3, 4, 5, 226)] == [4, 4, 4, 64, 256]
