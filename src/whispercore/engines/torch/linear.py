"""Linear layers in the forms that the engine multiplies them: as they are, packed for oneDNN, or with weights of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 8
"""Rows: for so few PyTorch's CPU kernel that reads weights of 8 bits beats oneDNN on weights of 16; with more it loses to widening them."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The same through a GELU."""
        return F.gelu(self(x))

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same added to `residual` (…, out)."""
        return residual + self(x)


@dataclass(frozen=True, slots=True)
class Packed(Linear):
    """The same by oneDNN on a CPU, with a weight in its own order: up to three times faster than what `F.linear` calls."""

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self._then(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """The same through a GELU."""
        return self._then(x, "gelu", "none")

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same added to `residual` (…, out)."""
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return total

    def _then(self, x: Tensor, function: str, algorithm: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, function, [], algorithm)
        return product


@dataclass(frozen=True, slots=True)
class Int8(Linear):
    """The same with a weight of 8 bits (out, in) and a `scale` for each output (out,), widened to the scale's precision to be multiplied.

    It is scaled before the product: a sum of unscaled ones would leave float16's range.
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
    """Packed for oneDNN where PyTorch has it: its own compiler calls the same, under names that it does not document."""
    plain = Linear(weight, bias)
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return plain
    try:
        made = Packed(torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias)
        made.gelu(weight.new_zeros(1, weight.shape[1]))
    except RuntimeError:  # a processor that oneDNN has no such kernel for
        return plain
    return made


def quantized(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Int8:
    """Eight bits of a float32 weight, each output's largest at 127; the scale is rounded first, so that its rounding costs nothing."""
    scale = (weight.abs().amax(dim=1) / 127).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    whole = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8(whole, bias.to(dtype), scale)
