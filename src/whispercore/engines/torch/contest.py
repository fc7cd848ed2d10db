"""A contest at the start: which implementation of attention is the fastest on this GPU, among those that compute the right result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    try:
        # with the memory layout of the encoder's queries, keys and values
        split = torch.randn(windows, dims.n_audio_ctx, 3, heads, size, device=device.torch, dtype=dtype).permute(2, 0, 3, 1, 4)
        of_audio = fastest("the encoder", {"PyTorch": attend, "cuDNN": CudnnAttention()}, split.unbind(0), device.seconds)
        key, value = cache.cross[0].normal_()
        query = torch.randn(*key.shape[:2], 1, key.shape[-1], device=device.torch, dtype=dtype)
        of_one_query = fastest("one query a window", {"PyTorch": attend, **kernels()}, (query, key, value), device.seconds)
        return Attention(of_audio, of_one_query)
    except RuntimeError as error:  # there is no memory for this
        logger.warning("attention is PyTorch's, because no other can be tried: %s", first_line(error))
        return Attention()
    finally:
        cache.cross[0].zero_()
        device.free_memory()


def fastest(shape: str, candidates: Mapping[str, Attend], inputs: tuple[Tensor, ...], seconds: Timer) -> Attend:
    """The candidate that takes the least time for `inputs`: query, key and value. The first one where no other is right.

    The times are those of all windows. A candidate must be right for any smaller number, too, because kernels differ by it.
    """
    times: dict[str, float] = {}
    for name, candidate in candidates.items():
        with _left_out(shape, name):
            _check(candidate, inputs, len(inputs[0]))
            times[name] = seconds(partial(candidate, *inputs))
    listed = ", ".join(f"{name} {1e3 * took:.2f} ms" for name, took in times.items())
    for name in sorted(times, key=lambda name: times[name]):
        with _left_out(shape, name):
            for windows in (1 << bit for bit in range((len(inputs[0]) - 1).bit_length())):
                _check(candidates[name], inputs, windows)
            logger.info("attention of %s by %s (%s)", shape, name, listed)
            return candidates[name]
    return next(iter(candidates.values()))


@contextmanager
def _left_out(shape: str, name: str) -> Iterator[None]:
    """Logs why an implementation is not used: an error of the compiler, the linker, Triton, PyTorch or the driver."""
    try:
        yield
    except Exception as reason:
        logger.warning("attention of %s is not computed by %s: %s", shape, name, first_line(reason))


def kernels() -> dict[str, Attend]:
    """Our own kernel in two sizes; none where Triton does not work."""
    with _left_out("one query a window", "Triton"):  # besides ImportError: Triton reads the kernel's source file, too
        from ..pytorch.flash_decoding import OneQueryAttention

        return {f"Triton, blocks of {block}": OneQueryAttention(block, warps) for block, warps in ((64, 4), (128, 8))}
    return {}


def _check(candidate: Attend, inputs: tuple[Tensor, ...], windows: int) -> None:
    """Raise RuntimeError when the candidate's results for so many windows are wrong. The first and the last ones are compared."""
    some = tuple(tensor[:windows] for tensor in inputs)
    query, key, value = (torch.cat([tensor[:2], tensor[-2:]]).float() for tensor in some)
    expected, result = F.scaled_dot_product_attention(query, key, value), candidate(*some)
    error = float((torch.cat([result[:2], result[-2:]]).float() - expected).norm() / expected.norm())
    if not error <= _LARGEST_ERROR:  # it may be NaN
        raise RuntimeError(f"its results for {windows} windows are wrong by {error:.1%}")
