"""A contest at the start: which implementation of attention is the fastest on this GPU, among those that compute the right result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from whisper.model import ModelDimensions

from ..pytorch.attention import Attend, Attention, CudnnAttention, attend
from ..pytorch.cache import Cache
from ..rules import first_line
from .device import Cuda, Device

logger = logging.getLogger(__name__)

_LARGEST_ERROR = 0.02
"""Relative to the result, for inputs in 16 bits. FlashAttention's is 0.003 in bfloat16."""

Timer = Callable[[Callable[[], object]], float]
"""Takes work on the device and returns its time in seconds. Raises RuntimeError where a CUDA graph cannot hold it."""


def fastest_attention(device: Device, dims: ModelDimensions, cache: Cache, windows: int) -> Attention:
    """The fastest implementations for these shapes; PyTorch's on a CPU. `windows`: encoded at once. Overwrites layer 0 of the cache."""
    if not isinstance(device, Cuda):
        return Attention()
    heads, size, dtype = dims.n_audio_head, dims.n_audio_state // dims.n_audio_head, cache.cross.dtype
    # with the memory layout of the encoder's queries, keys and values
    split = torch.randn(windows, dims.n_audio_ctx, 3, heads, size, device=device.torch, dtype=dtype)
    of_audio = fastest(
        "the encoder", {"PyTorch": attend, "cuDNN": CudnnAttention()}, split.permute(2, 0, 3, 1, 4).unbind(0), device.seconds
    )
    key, value = cache.cross[0].normal_()
    query = torch.randn(*key.shape[:2], 1, key.shape[-1], device=device.torch, dtype=dtype)
    of_one_query = fastest("one query a window", {"PyTorch": attend, **kernels()}, (query, key, value), device.seconds)
    cache.cross[0].zero_()
    device.free_memory()
    return Attention(of_audio, of_one_query)


def fastest(shape: str, candidates: Mapping[str, Attend], inputs: tuple[Tensor, ...], seconds: Timer) -> Attend:
    """The candidate that takes the least time for `inputs`: query, key and value. The first one where none can be timed."""
    times: dict[str, float] = {}
    for name, candidate in candidates.items():
        try:
            if (error := _error(candidate, inputs)) > _LARGEST_ERROR:
                raise RuntimeError(f"its results are wrong by {error:.1%}")
            times[name] = seconds(partial(candidate, *inputs))
        except Exception as reason:  # of the compiler, the linker, Triton, PyTorch or the driver
            logger.info("attention of %s is not computed by %s: %s", shape, name, first_line(reason))
    best = min(times, key=lambda name: times[name], default=next(iter(candidates)))
    logger.info("attention of %s by %s (%s)", shape, best, ", ".join(f"{name} {1e3 * took:.2f} ms" for name, took in times.items()))
    return candidates[best]


def kernels() -> dict[str, Attend]:
    """Our own kernel in several sizes; none where Triton is not installed."""
    try:
        from ..pytorch.flash_decoding import OneQueryAttention
    except ImportError:
        return {}
    return {f"Triton, blocks of {block}": OneQueryAttention(block, warps) for block, warps in ((32, 2), (64, 4), (128, 8))}


def _error(candidate: Attend, inputs: tuple[Tensor, ...]) -> float:
    """Of the candidate's results for the first and the last windows, relative to those in float32."""
    query, key, value = (torch.cat([tensor[:2], tensor[-2:]]).float() for tensor in inputs)
    expected = F.scaled_dot_product_attention(query, key, value)
    result = candidate(*inputs)
    return float((torch.cat([result[:2], result[-2:]]).float() - expected).norm() / expected.norm())
