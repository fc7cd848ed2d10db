"""Scaled dot-product attention: by PyTorch, and on a CPU head by head. A GPU may have faster kernels for some shapes (torch/contest.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import has_onednn
from .torchscript import scripted

_FEW = 16
"""Up to this many queries plain products on a CPU are up to five times as fast as the fused attention."""

_IN_CACHE = 1_500_000
"""So many bytes of attention scores stay in a core's cache between the two products."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key and value, (n, heads, length, size) each → the query's shape."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, (n, heads, length, size) each; `mask` is added to the scores."""
    few = query.shape[-2] <= _FEW
    if not few and mask is None and query.device.type == "cpu" and _is_faster_by_head(query.dtype):
        return _attend_by_head(query, key, value)
    if query.is_cuda or not few:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(scores if mask is None else scores + mask, dim=-1) @ value


@cache
def _is_faster_by_head(dtype: torch.dtype) -> bool:
    """Whether `attend_by_head` beats the fused attention: in float32 only with AVX-512, for which oneDNN has faster products than MKL."""
    return dtype == torch.bfloat16 or (dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX512")


def _attend_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend_by_head` with the sizes and the library for this CPU."""
    queries = max(1, _IN_CACHE // (key.shape[-2] * key.itemsize))
    by_onednn = query.dtype == torch.float32 and has_onednn()
    attended: Tensor = _by_head()(query, key, value, queries, by_onednn)
    return attended


def attend_by_head(query: Tensor, key: Tensor, value: Tensor, queries: int, by_onednn: bool) -> Tensor:
    """The same for `queries` of one head at a time, in half to two thirds of the fused attention's time on a CPU.

    The scores fit into a core's cache. oneDNN multiplies bfloat16 with the processor's instructions for it, which the fused attention
    does not. `by_onednn`: float32, too, in half the time of MKL on AMD's processors.
    """
    attended = torch.empty_like(query)
    scaled = query * query.shape[-1] ** -0.5
    for window in range(query.shape[0]):
        for head in range(query.shape[1]):
            k, v = key[window, head], value[window, head].t()
            if by_onednn:
                k, v = k.contiguous(), v.contiguous()
            for begin in range(0, query.shape[2], queries):
                part = scaled[window, head, begin : begin + queries]
                if by_onednn:
                    weights = torch.softmax(torch.ops.mkldnn._linear_pointwise(part, k, None, "none", [], ""), dim=-1)
                    mixed = torch.ops.mkldnn._linear_pointwise(weights, v, None, "none", [], "")
                else:
                    mixed = F.linear(torch.softmax(F.linear(part, k), dim=-1), v)
                attended[window, head, begin : begin + queries].copy_(mixed)
    return attended


@cache
def _by_head() -> Callable[..., Tensor]:
    """`attend_by_head` in TorchScript: some hundreds of operators a layer, for each of which Python would need its lock."""
    return scripted(attend_by_head)


def merge_heads(heads: Tensor) -> Tensor:
    """(n, heads, length, size) → (n, length, heads x size)."""
    return heads.transpose(1, 2).flatten(2)


class CudnnAttention:
    """cuDNN's attention, made for the encoder: on Hopper's GPUs it takes half of the time of PyTorch's own (FlashAttention 2).

    cuDNN plans for each shape once in every thread, which fails while a CUDA graph is captured. A capture that meets a new shape gets
    PyTorch's attention.
    """

    def __init__(self) -> None:
        self._planned = threading.local()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention of all positions to all. Raises RuntimeError where cuDNN has none for this GPU or dtype."""
        shapes = cast(set[torch.Size], vars(self._planned).setdefault("shapes", set()))
        if torch.cuda.is_current_stream_capturing() and query.shape not in shapes:
            return attend(query, key, value)
        attended: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]
        shapes.add(query.shape)
        return attended


@dataclass(frozen=True, slots=True)
class Attention:
    """The implementations that a model uses: `of_audio` in the encoder, `of_one_query` in the decoder's steps."""

    of_audio: Attend = attend
    of_one_query: Attend = attend
