"""Linear layers in 8 bits by FBGEMM, for CPUs: weights and activations are integers, sums are exact.

Every row of the input has a scale of its own, so what a row gives does not depend on the rows beside it. Products of few rows, the
decoder's, are bound by reading the weights, of which 8 bits need half of bfloat16's memory and a quarter of float32's. For the encoder's
many rows oneDNN is faster on processors with VNNI (linear.Int8Product). Without VNNI it is not, and its sums overflow.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

_ENGINE = "fbgemm"
_TINY = torch.finfo(torch.float32).tiny
_LARGEST = 127.0
_ZERO = 128
"""The unsigned integer that stands for 0.0, as FBGEMM's activations are unsigned."""


class RowwiseInt8(nn.Module):
    """x @ weight.T + bias. `packed`: FBGEMM's own form of the weight; `bias`: float32 (out,). A module, so that TorchScript takes it."""

    def __init__(self, packed: Any, bias: Tensor) -> None:
        super().__init__()
        self.packed, self.bias = packed, bias
        self.step, self.zero, self.tiny = 1 / _LARGEST, _ZERO, _TINY  # TorchScript reads no globals

    def forward(self, x: Tensor) -> Tensor:
        """Float32 (…, in) → float32 (…, out)."""
        return self._product(self.bias, x)

    def gelu(self, x: Tensor) -> Tensor:
        """The same, then a GELU."""
        activated: Tensor = torch.ops.aten.gelu_(self._product(self.bias, x))
        return activated

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, plus `residual` (…, out)."""
        return self._product(residual + self.bias, x)

    def _product(self, added: Tensor, x: Tensor) -> Tensor:
        """`added` + x @ weight.T."""
        scale = x.abs().amax(dim=[-1], keepdim=True).clamp_(min=self.tiny)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x / scale, self.step, self.zero, self.packed)
        return torch.addcmul(added, product, scale, out=product)


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Whether this PyTorch has FBGEMM's kernels for this processor."""
    if _ENGINE not in torch.backends.quantized.supported_engines:
        return False
    try:
        rowwise_int8(torch.ones(8, 8), torch.zeros(8))(torch.ones(1, 8))
    except (RuntimeError, AttributeError):  # a later PyTorch has no quantized tensors
        return False
    return True


def rowwise_int8(weight: Tensor, bias: Tensor | None) -> RowwiseInt8:
    """A weight (out, in) in 8 bits, with a scale for each output.

    Without VNNI, FBGEMM adds two products in 16 bits; weights of 7 bits keep these sums from overflowing.
    """
    weight = weight.float()
    steps = _LARGEST if torch.cpu._is_vnni_supported() else _LARGEST // 2
    scale = (weight.abs().amax(dim=1) / steps).clamp(min=_TINY)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = _ENGINE  # packing takes the form of the engine that is set
    try:
        with warnings.catch_warnings():  # pytorch issue 184982: a later PyTorch has no such tensors
            warnings.simplefilter("ignore", UserWarning)
            whole = torch.quantize_per_channel(weight, scale.double(), torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(whole, None)
    finally:
        torch.backends.quantized.engine = engine
    return RowwiseInt8(packed, torch.zeros(len(weight)) if bias is None else bias.float())
