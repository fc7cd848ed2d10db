"""What engine torch costs on a GPU, with random weights: `python -m bench.gpu`. It prints a window, an admission, steps and attention."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: its folder is on the path, and the package is not
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "src")]

import time

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from whispercore.checkpoints import Checkpoint, dimensions, empty_model
from whispercore.engines.pytorch.attention import Attend, CudnnAttention, attend
from whispercore.engines.torch import TorchEngine
from whispercore.engines.torch.admission import AdmissionShape
from whispercore.engines.torch.contest import kernels
from whispercore.engines.torch.decoding import StepShape
from whispercore.engines.torch.slots import SlotLayout
from whispercore.types import WINDOW_SAMPLES, Decoding, Window

WINDOW_SECONDS, TOKENS = 30, 120
HEADS, POSITIONS, HEAD_SIZE = 20, 1500, 64
"""Of large-v3's cross-attention."""
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
VARIANTS = {
    "float16": {"int8": False, "compiles": False},
    "int8": {"int8": True, "compiles": False},
    "compiled": {"int8": False, "compiles": True},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["large-v3-turbo", "large-v3"], help="sizes (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="default: all")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench.gpu needs an NVIDIA GPU: PyTorch sees none", file=sys.stderr)
        return 1
    for size in arguments.models:
        for name in arguments.variants:
            engine = TorchEngine(random_checkpoint(size), device="cuda", dtype=torch.float16, **VARIANTS[name])
            print(f"\n{size} {name}: {measure_windows(engine)}")
            for line in measure_parts(engine):
                print(f"  {line}")
            engine.close()
    for line in measure_attention():
        print(line)
    return 0


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


def measure_windows(engine: TorchEngine) -> str:
    """The speed of whole windows of noise, 120 tokens each, three times as many as the engine has slots."""
    engine.warm_up(60.0)
    noise = np.random.default_rng(0).normal(scale=0.1, size=WINDOW_SAMPLES).astype(np.float32)
    decoding = replace(Decoding(language="en"), ignore_eot=True, max_tokens=TOKENS)
    windows = [Window(noise, 0.0, decoding) for _ in range(3 * engine.max_batch)]
    engine.decode(windows[: engine.max_batch])
    began = time.perf_counter()
    engine.decode(windows)
    seconds = time.perf_counter() - began
    return f"RTFx {WINDOW_SECONDS * len(windows) / seconds:.0f}, {1e3 * seconds / len(windows):.2f} ms a window"


def measure_parts(engine: TorchEngine) -> list[str]:
    """The GPU time of an admission of 8 windows, and of steps for 1, 8 and all windows."""
    slots = engine.slots
    with torch.no_grad(), engine.device.activate():
        admission = milliseconds(lambda: slots.warm_admission(AdmissionShape(8, 1, 4, detect=False)))
        slots.reset(SlotLayout(1))
        steps = []
        for count in (1, 8, engine.max_batch):
            shape = StepShape(count, 1, 128, sampled=False, ngram=None, max_finished=0)
            steps.append(f"step of {count} windows: {milliseconds(lambda shape=shape: slots.step(shape)):.2f} ms")  # type: ignore[misc]
    return [f"admission of 8 windows: {admission:.1f} ms", *steps]


def measure_attention(windows: int = 128, encoded: int = 8) -> list[str]:
    """The GPU time of a layer's attention, by each of PyTorch's kernels and by those that the engine may take in their place."""
    query = torch.randn(windows, HEADS, 1, HEAD_SIZE, device="cuda", dtype=torch.float16)
    key, value = torch.randn(2, windows, HEADS, POSITIONS, HEAD_SIZE, device="cuda", dtype=torch.float16).unbind(0)
    whole = torch.randn(3, encoded, HEADS, POSITIONS, HEAD_SIZE, device="cuda", dtype=torch.float16).unbind(0)
    bytes_read, operations = 2 * key.numel() * key.element_size(), 4 * encoded * HEADS * POSITIONS**2 * HEAD_SIZE
    of_one_query: dict[str, Attend] = {**_by_backends(), **kernels()}
    of_audio: dict[str, Attend] = {**_by_backends(), "cuDNN": CudnnAttention()}
    lines = []
    for name, compute in of_one_query.items():
        took = milliseconds(partial(compute, query, key, value))
        lines.append(f"attention of one query in each of {windows} windows, {name}: {took:.2f} ms, {bytes_read / took / 1e6:.0f} GB/s")
    for name, compute in of_audio.items():
        took = milliseconds(partial(compute, *whole))
        lines.append(f"attention of the encoder to {encoded} windows, {name}: {took:.2f} ms, {operations / took / 1e9:.0f} TFLOP/s")
    return lines


def _by_backends() -> dict[str, Attend]:
    """PyTorch's attention by each of its kernels."""

    def by(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return attend(query, key, value)

    return {name: partial(by, backend) for name, backend in BACKENDS.items()}


def milliseconds(work: Callable[[], object], repeat: int = 20) -> float:
    """The GPU time of one call, after three calls that are not measured."""
    for _ in range(3):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeat):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeat


if __name__ == "__main__":
    sys.exit(main())
