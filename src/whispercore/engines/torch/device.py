"""The device layer: how steps are run and results come back. On a GPU, CUDA graphs and copies that nobody waits for; on a CPU, calls."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rules import reason

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 512
"""Beyond them all are dropped, and made again as they are used."""
_CAPTURING = threading.Lock()
"""PyTorch allows a process one capture at a time, on whatever GPU."""


class Snapshot(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> list[Tensor]:
        """The tensors as they were when it was taken."""
        ...


class Device(Protocol):
    """Where the engine computes. `lag`: snapshots that are on their way while the next steps are queued; `every`: steps between two.

    `captures`: what `run` gets must be all work of the device's, on tensors that are there as long as the engine is.
    """

    torch: torch.device
    lag: int
    every: int
    captures: bool

    def bucket(self, windows: int, most: int) -> int:
        """For how many windows a step for `windows` is made."""
        ...

    def reach(self, length: int, most: int) -> int:
        """For how many tokens a step for `length` is made."""
        ...

    def parts(self, windows: int) -> list[int]:
        """How many of so many new windows are encoded together."""
        ...

    def width(self, length: int) -> int:
        """For how many tokens a prompt of `length` is read."""
        ...

    def run(self, key: Hashable | None, step: Callable[[], None]) -> None:
        """Run a step that does the same with the same tensors for equal keys; None: one that does not come again."""
        ...

    def send(self, tensor: Tensor) -> Tensor:
        """A host's tensor on the device."""
        ...

    def staging(self, *shape: int) -> Tensor:
        """A host's float32 tensor, yet to be written, to `fill` one of the device's with."""
        ...

    def fill(self, target: Tensor, source: Tensor) -> None:
        """Write a host's tensor, which nobody changes any more, into one of the device's."""
        ...

    def snapshot(self, tensors: Iterable[Tensor]) -> Snapshot:
        """Copies of the tensors as they are after all that was run so far."""
        ...

    def working(self) -> AbstractContextManager[object]:
        """Everything on the device happens inside."""
        ...

    def forget(self) -> None:
        """Let go of what is kept for `run`, and of all memory that is not in use."""
        ...


class Host:
    """The CPU: everything happens at once."""

    lag = 0
    every = 1
    captures = False

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def bucket(self, windows: int, most: int) -> int:
        """As many as there are."""
        return min(windows, most)

    def reach(self, length: int, most: int) -> int:
        """In steps of 32: fewer shapes for the libraries to keep kernels for."""
        return min(-(-length // 32) * 32, most)

    def parts(self, windows: int) -> list[int]:
        """All."""
        return [windows]

    def width(self, length: int) -> int:
        """As many as there are."""
        return length

    def run(self, key: Hashable | None, step: Callable[[], None]) -> None:
        """Call it."""
        step()

    def send(self, tensor: Tensor) -> Tensor:
        """It is there."""
        return tensor

    def staging(self, *shape: int) -> Tensor:
        """As any other."""
        return torch.empty(*shape)

    def fill(self, target: Tensor, source: Tensor) -> None:
        """Copy it."""
        target.copy_(source)

    def snapshot(self, tensors: Iterable[Tensor]) -> Snapshot:
        """Nothing to copy: it is read before the next step."""
        return _Taken(list(tensors), None)

    def working(self) -> AbstractContextManager[object]:
        """Nothing."""
        return nullcontext()

    def forget(self) -> None:
        """Nothing is kept."""


class Cuda:
    """One GPU, one stream. Every shape of a step becomes a CUDA graph at its second use; its first is the warm-up that capture asks for.

    Graphs share one pool of memory: they leave nothing in it, since steps write into static tensors only.
    """

    lag = 1
    every = 4
    captures = True

    def __init__(self, index: int) -> None:
        self.torch = torch.device("cuda", index)
        with torch.cuda.device(self.torch):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._refused: set[Hashable] = set()
        self._pool: Any = None
        # its plans for one query a row are made anew for every shape, and not while a graph is captured
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32: the two convolutions cost next to nothing

    def bucket(self, windows: int, most: int) -> int:
        """1, 2, 4, 8, then multiples of 8, of 16 from 64 on."""
        if windows <= 8:
            return min(1 << (windows - 1).bit_length(), most)
        step = 8 if windows <= 64 else 16
        return min(-(-windows // step) * step, most)

    def reach(self, length: int, most: int) -> int:
        """In steps of 64."""
        return min(-(-length // 64) * 64, most)

    def parts(self, windows: int) -> list[int]:
        """Powers of two: few shapes, and no window is encoded for nothing."""
        return [1 << bit for bit in reversed(range(windows.bit_length())) if windows >> bit & 1]

    def width(self, length: int) -> int:
        """4, then in steps of 64: what stands after a start is read for nothing."""
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

    def _captured(self, key: Hashable, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A new graph of the step; None where it cannot be captured or has no memory of its own, which then is not tried again."""
        if key in self._refused:
            return None
        if sum(graph is not None for graph in self._graphs.values()) >= _MOST_GRAPHS:
            self.forget()
        for last in (False, True):
            try:
                self._graphs[key] = self._capture(step)
                break
            except RuntimeError as error:
                if last or not isinstance(error, torch.OutOfMemoryError):
                    self._refuse(key, error)
                    break
                _clear()  # which PyTorch does by itself when the memory is short, but not while it captures
        return self._graphs[key]

    def _refuse(self, key: Hashable, error: Exception) -> None:
        logger.warning("%s runs without a CUDA graph: %s", key, reason(error))
        self._refused.add(key)
        self._graphs[key] = None
        # a capture that the driver broke off goes on in PyTorch's books: its pool takes no other, and no random number is drawn
        # outside of it until another one ends well
        self._pool = None
        with suppress(RuntimeError):
            self._capture(torch.zeros(1, device=self.torch).zero_)
        self._pool = None

    def _capture(self, step: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """As `torch.cuda.graph` does it, which however gives all cached memory back first and so makes the next steps wait for it."""
        if self._pool is None or not any(self._graphs.values()):
            # a pool lives as long as a graph of it does: PyTorch refuses the name of one whose graphs are gone
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING:
            self._stream.synchronize()
            # thread_local: another GPU's engine in another thread may allocate meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                _end(graph, self.torch, self._pool)
        return graph

    def send(self, tensor: Tensor) -> Tensor:
        """From pinned memory, so that the host does not wait; PyTorch keeps that memory until it is read."""
        return tensor.pin_memory().to(self.torch, non_blocking=True)

    def staging(self, *shape: int) -> Tensor:
        """Pinned memory, which PyTorch keeps and gives again once it has been read."""
        return torch.empty(*shape, pin_memory=True)

    def fill(self, target: Tensor, source: Tensor) -> None:
        """From pinned memory, behind whatever still reads the target."""
        target.copy_(source.pin_memory(), non_blocking=True)

    def snapshot(self, tensors: Iterable[Tensor]) -> Snapshot:
        """Into pinned memory, with an event to sleep for: waiting awake would take a core from those who read audio."""
        copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True) for tensor in tensors]
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return _Taken(copies, event)

    def working(self) -> AbstractContextManager[object]:
        """This GPU, its stream."""
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self.torch))
        stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def forget(self) -> None:
        """Drop the graphs, none of which is running any more, and give the memory back."""
        self._stream.synchronize()
        self._graphs.clear()
        self._refused.clear()
        _clear()


def _end(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """End a capture, in the allocator's books too, where PyTorch leaves it open when the driver has broken it off: `_clear` would fail."""
    try:
        graph.capture_end()
    except RuntimeError:
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # the second one before 2.8
            with suppress(RuntimeError, AttributeError):
                getattr(torch._C, name)(device.index, pool)
        raise


def _clear() -> None:
    """Give the memory that PyTorch keeps back to all GPUs: not while one of them captures, for which PyTorch's allocator fails."""
    with _CAPTURING:
        torch.cuda.empty_cache()


class _Taken:
    def __init__(self, tensors: list[Tensor], event: torch.cuda.Event | None) -> None:
        self._tensors, self._event = tensors, event

    def wait(self) -> list[Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


def make_device(name: str, index: int = 0) -> Device:
    """cpu, or cuda with the GPU's index."""
    return Cuda(index) if name == "cuda" else Host()
