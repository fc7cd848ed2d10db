"""How steps run and results come back: on a GPU as CUDA graphs and asynchronous copies, on a CPU as plain calls."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from ..pytorch.cache import SlotIndex
from ..rules import first_line

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 512
"""With more, all graphs are dropped and captured again as they are used."""
_CAPTURING = threading.Lock()
"""PyTorch allows one capture at a time in a process, over all GPUs."""


class Snapshot(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> list[Tensor]:
        """The tensors as they were when the snapshot was taken."""
        ...


class Device(Protocol):
    """Where the engine computes.

    `steps_per_snapshot`: steps between two snapshots, a round. `snapshots_in_flight`: snapshots on their way to the host while the next
    steps are queued. `rounds_between_admissions`: from an admission to the next one that is not full, while windows decode. `captures`:
    `run` captures steps as CUDA graphs, so they must work on the device only, on tensors that live as long as the engine.
    """

    torch: torch.device
    snapshots_in_flight: int
    steps_per_snapshot: int
    rounds_between_admissions: int
    captures: bool

    def bucket(self, windows: int, most: int) -> int:
        """The number of windows in a step for `windows`: at least as many."""
        ...

    def kv_length(self, length: int, most: int) -> int:
        """The number of cached positions in a step for rows of `length` tokens: at least as many."""
        ...

    def encoder_batches(self, windows: int) -> list[int]:
        """The sizes of the batches in which new windows are encoded."""
        ...

    def prompt_width(self, length: int) -> int:
        """The number of positions in a prefill of `length` tokens: at least as many."""
        ...

    def run(self, key: Hashable | None, step: Callable[[], None]) -> None:
        """Run a step. Steps with equal keys do the same to the same tensors; None: a step that is not worth capturing."""
        ...

    def send(self, tensor: Tensor) -> Tensor:
        """Copy a host's tensor to the device."""
        ...

    def staging(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor on the host, to be written and passed to `fill`."""
        ...

    def fill(self, target: Tensor, source: Tensor) -> None:
        """Copy a host's tensor, which must not change afterwards, into one on the device."""
        ...

    def snapshot(self, tensors: Iterable[Tensor]) -> Snapshot:
        """Copy the tensors to the host as they are after all work so far."""
        ...

    def activate(self) -> AbstractContextManager[object]:
        """The context in which all work on the device is done."""
        ...

    def free_memory(self) -> None:
        """Drop captured steps, and give unused memory back."""
        ...


class Host:
    """The CPU, on which every call is synchronous."""

    snapshots_in_flight = 0
    steps_per_snapshot = 1
    rounds_between_admissions = 0
    captures = False

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def bucket(self, windows: int, most: int) -> int:
        """As many as there are."""
        return min(windows, most)

    def kv_length(self, length: int, most: int) -> int:
        """A multiple of 32: libraries keep kernels for fewer shapes."""
        return min(-(-length // 32) * 32, most)

    def encoder_batches(self, windows: int) -> list[int]:
        """One batch."""
        return [windows]

    def prompt_width(self, length: int) -> int:
        """As many as there are."""
        return length

    def run(self, key: Hashable | None, step: Callable[[], None]) -> None:
        """Call it."""
        step()

    def send(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def staging(self, *shape: int) -> Tensor:
        """An ordinary tensor."""
        return torch.empty(*shape)

    def fill(self, target: Tensor, source: Tensor) -> None:
        """Copy the tensor."""
        target.copy_(source)

    def snapshot(self, tensors: Iterable[Tensor]) -> Snapshot:
        """The tensors themselves: they are read before the next step."""
        return _Snapshot(list(tensors), None)

    def activate(self) -> AbstractContextManager[object]:
        """An empty context."""
        return nullcontext()

    def free_memory(self) -> None:
        """Nothing: no steps are captured."""


class Cuda:
    """One GPU with one stream. A step's first use is the warm-up that a capture needs; its second use captures a CUDA graph.

    All graphs share one memory pool. They can, because steps write into static tensors only and leave nothing in the pool.
    """

    snapshots_in_flight = 1
    steps_per_snapshot = 4
    rounds_between_admissions = 4
    captures = True

    def __init__(self, index: int) -> None:
        self.torch = torch.device("cuda", index)
        with torch.cuda.device(self.torch):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._refused: set[Hashable] = set()
        self._pool: Any = None
        # cuDNN's attention plans anew for every shape of one query a row, and cannot do so while a graph is captured; the encoder calls it
        # by itself (pytorch/attention.py)
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.allow_tf32 = False  # float32 stays float32; the two convolutions cost next to nothing

    def bucket(self, windows: int, most: int) -> int:
        """1, 2, 4, 8, then multiples of 8, and of 16 above 64."""
        if windows <= 8:
            return min(1 << (windows - 1).bit_length(), most)
        step = 8 if windows <= 64 else 16
        return min(-(-windows // step) * step, most)

    def kv_length(self, length: int, most: int) -> int:
        """A multiple of 64."""
        return min(-(-length // 64) * 64, most)

    def encoder_batches(self, windows: int) -> list[int]:
        """Powers of two: few shapes, and no padding."""
        return [1 << bit for bit in reversed(range(windows.bit_length())) if windows >> bit & 1]

    def prompt_width(self, length: int) -> int:
        """4, or a multiple of 64. Positions after the start sequence are padding."""
        return 4 if length <= 4 else -(-length // 64) * 64

    def run(self, key: Hashable | None, step: Callable[[], None]) -> None:
        """Replay the key's graph; at its first use run the step, at its second capture it."""
        if key is None or key not in self._graphs:
            if key is not None:
                self._graphs[key] = None
            step()
        elif graph := self._graphs[key] or self._captured(key, step):
            graph.replay()
        else:
            step()

    def seconds(self, work: Callable[[], object], times: int = 10) -> float:
        """The time that some work takes as a CUDA graph, in the mean. Raises RuntimeError where it cannot be captured."""
        work()
        try:
            graph = self._capture(work)
        except RuntimeError:
            self._forget_broken_capture()
            raise
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / times

    def _captured(self, key: Hashable, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A new graph of the step. None where the capture fails or memory is short; that key is not tried again then."""
        if key in self._refused:
            return None
        if sum(graph is not None for graph in self._graphs.values()) >= _MOST_GRAPHS:
            self.free_memory()
        for last in (False, True):
            try:
                self._graphs[key] = self._capture(step)
                break
            except RuntimeError as error:
                if last or not isinstance(error, torch.OutOfMemoryError):
                    self._refuse(key, error)
                    break
                _empty_cache()  # PyTorch does so by itself when memory is short, but not while it captures
        return self._graphs[key]

    def _refuse(self, key: Hashable, error: Exception) -> None:
        logger.warning("%s runs without a CUDA graph: %s", key, first_line(error))
        self._refused.add(key)
        self._graphs[key] = None
        self._forget_broken_capture()

    def _forget_broken_capture(self) -> None:
        # PyTorch takes a capture that the driver broke off for unfinished: the pool accepts no other capture, and random numbers fail
        # outside of it, until another capture ends well
        self._pool = None
        with suppress(RuntimeError):
            self._capture(torch.zeros(1, device=self.torch).zero_)
        self._pool = None

    def _capture(self, step: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """As `torch.cuda.graph`, which also empties the memory cache first, so that the next steps wait for new memory."""
        if self._pool is None or not any(self._graphs.values()):
            # a pool lives as long as one of its graphs; PyTorch refuses the handle of a pool without graphs
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING:
            self._stream.synchronize()
            # thread_local: the engine of another GPU may allocate in its own thread meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                _end_capture(graph, self.torch, self._pool)
        return graph

    def send(self, tensor: Tensor) -> Tensor:
        """From pinned memory, so that the host does not wait. PyTorch keeps that memory until the copy is done."""
        return tensor.pin_memory().to(self.torch, non_blocking=True)

    def staging(self, *shape: int) -> Tensor:
        """Pinned memory, which PyTorch reuses once the copy is done."""
        return torch.empty(*shape, pin_memory=True)

    def fill(self, target: Tensor, source: Tensor) -> None:
        """From pinned memory, in the stream's order: earlier work has read the target by then."""
        target.copy_(source.pin_memory(), non_blocking=True)

    def snapshot(self, tensors: Iterable[Tensor]) -> Snapshot:
        """Into pinned memory, with a blocking event: a busy wait would take a core from the threads that decode audio."""
        copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True) for tensor in tensors]
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return _Snapshot(copies, event)

    def activate(self) -> AbstractContextManager[object]:
        """This GPU and its stream."""
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self.torch))
        stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def free_memory(self) -> None:
        """Drop the graphs, after all work is done, and give unused memory back."""
        self._stream.synchronize()
        self._graphs.clear()
        self._refused.clear()
        _empty_cache()


def _end_capture(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """End a capture. When the driver broke it off, PyTorch's allocator must be told as well, or emptying its cache fails."""
    try:
        graph.capture_end()
    except RuntimeError:
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # the second one before 2.8
            with suppress(RuntimeError, AttributeError):
                getattr(torch._C, name)(device.index, pool)
        raise


def _empty_cache() -> None:
    """Give the memory that PyTorch caches on all GPUs back, but not during a capture, when PyTorch's allocator fails."""
    with _CAPTURING:
        torch.cuda.empty_cache()


class _Snapshot:
    def __init__(self, tensors: list[Tensor], event: torch.cuda.Event | None) -> None:
        self._tensors, self._event = tensors, event

    def wait(self) -> list[Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


def make_device(name: str, index: int = 0) -> Device:
    """The device `name`, cpu or cuda; `index`: the GPU's."""
    return Cuda(index) if name == "cuda" else Host()


def slot_index(slots: Sequence[int], device: Device) -> SlotIndex:
    """An index for these slots. A list as an index would be copied to the device, and the host would wait for all queued work."""
    first = slots[0]
    if list(slots) == list(range(first, first + len(slots))):
        return slice(first, first + len(slots))
    return device.send(torch.tensor(slots))
