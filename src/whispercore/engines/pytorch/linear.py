"""Linear layers in three forms: PyTorch's own, packed for oneDNN, and with weights in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 8
"""Up to this many rows PyTorch's CPU kernel for 8-bit weights beats oneDNN on 16-bit weights; with more rows it is slower than widening."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The same, then a GELU."""
        return F.gelu(self(x))

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, plus `residual` (…, out)."""
        return residual + self(x)


@dataclass(frozen=True, slots=True)
class Packed(Linear):
    """The same by oneDNN on a CPU, with the weight in oneDNN's own order: up to three times as fast as `F.linear`."""

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self._pointwise(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """The same, then a GELU."""
        return self._pointwise(x, "gelu", "none")

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, plus `residual` (…, out)."""
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return total

    def _pointwise(self, x: Tensor, function: str, algorithm: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, function, [], algorithm)
        return product


@dataclass(frozen=True, slots=True)
class Int8(Linear):
    """The same with an 8-bit weight (out, in) and a `scale` for each output (out,). It is widened to the scale's dtype and multiplied.

    The weight is scaled before the product: sums of unscaled products would overflow float16.
    """

    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[:-1].numel() <= _FEW:
            product: Tensor = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
            product = product.view(*x.shape[:-1], len(self.weight))
            return product if self.bias is None else product + self.bias
        return F.linear(x, self.weight * self.scale[:, None], self.bias)


def packed(weight: Tensor, bias: Tensor | None) -> Linear:
    """A layer packed for oneDNN where PyTorch offers that, in operators that it does not document but torch.compile uses."""
    plain = Linear(weight, bias)
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return plain
    try:
        layer = Packed(torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias)
        layer.gelu(weight.new_zeros(1, weight.shape[1]))
    except RuntimeError:  # oneDNN has no such kernel for this processor
        return plain
    return layer


def quantized(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Int8:
    """A float32 weight in 8 bits: 127 is each output's largest. The scale is rounded to `dtype` first, which adds no error."""
    scale = (weight.abs().amax(dim=1) / 127).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    whole = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8(whole, bias.to(dtype), scale)
