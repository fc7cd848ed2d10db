"""Linear layers in four forms: PyTorch's own, packed for oneDNN, with weights in 8 bits, and with products in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 8
"""Up to this many rows PyTorch's CPU kernel for 8-bit weights beats oneDNN on 16-bit weights; with more rows it is slower than widening."""
ROW_MULTIPLE = 32
"""What the rows of that kernel's weights must be a multiple of: it reads beyond the end of others, which may crash the process."""
_LARGEST, _ZERO = 127, 128
"""The largest number in 8 bits, and what is added to a signed one: oneDNN's fast products take activations without a sign."""
_SMALLEST = torch.finfo(torch.float32).tiny
"""The least scale, for rows and outputs that are all zeros."""


class Projection(Protocol):
    """A linear layer, however it computes."""

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        ...

    def gelu(self, x: Tensor) -> Tensor:
        """The same, then a GELU."""
        ...

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, plus `residual` (…, out)."""
        ...


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
        few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[:-1].numel() <= _FEW
        if few and x.shape[-1] % ROW_MULTIPLE == 0:
            product: Tensor = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
            product = product.view(*x.shape[:-1], len(self.weight))
            return product if self.bias is None else product + self.bias
        return F.linear(x, self.weight * self.scale[:, None], self.bias)


@dataclass(frozen=True, slots=True)
class Int8Product(Linear):
    """The same by oneDNN on a CPU, with both factors in 8 bits: the weight in oneDNN's own order with a `scale` for each output (out,).

    x is float32 and rounded with a scale for each row. One scale for all rows would give the features of Whisper base three times the
    error: a few values after the GELU are far larger than all others. This is CTranslate2's scheme, too.
    """

    bias: Tensor
    scale: Tensor
    zero: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self._product(self.bias, x)

    def gelu(self, x: Tensor) -> Tensor:
        """The same, then a GELU."""
        activated: Tensor = torch.ops.aten.gelu_(self._product(self.bias, x))
        return activated

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, plus `residual` (…, out)."""
        return self._product(residual + self.bias, x)

    def _product(self, added: Tensor, x: Tensor) -> Tensor:
        """`added` + x @ weight.T. The operators write into their input where they can: new memory costs more than the arithmetic."""
        scale = x.abs().amax(dim=-1, keepdim=True).div_(_LARGEST).clamp_(min=_SMALLEST)
        whole = (x / scale).add_(_ZERO + 0.5).to(torch.uint8)  # truncates, so the half makes it round
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, _ZERO, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.addcmul(added, product, scale, out=product)


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


@cache
def has_onednn() -> bool:
    """Whether this PyTorch has oneDNN's operators, with kernels for this processor."""
    return isinstance(packed(torch.ones(1, 1), None), Packed)


def quantized(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Int8:
    """A float32 weight in 8 bits: 127 is each output's largest. The scale is rounded to `dtype` first, which adds no error."""
    scale = (weight.abs().amax(dim=1) / 127).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    whole = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8(whole, bias.to(dtype), scale)


def int8_product(weight: Tensor, bias: Tensor | None) -> Linear:
    """A layer of a float32 weight (out, in) with products in 8 bits; `multiplies_int8` says whether this PyTorch has them."""
    whole = quantized(weight, weight.new_zeros(len(weight)) if bias is None else bias, torch.float32)
    assert whole.bias is not None
    prepared: Tensor = torch.ops.onednn.qlinear_prepack(whole.weight, None)
    return Int8Product(prepared, whole.bias, whole.scale, torch.zeros(len(weight), dtype=torch.int64))


def multiplies_int8() -> bool:
    """Whether this PyTorch multiplies in 8 bits on this CPU, with operators that it does not document but torch.compile uses.

    They exist on every CPU. Without VNNI oneDNN adds pairs of products in 16 bits, where the largest overflow; the test below has such
    pairs, so it is False there.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    x = torch.linspace(-1, 1, 64)[None]
    try:
        product = int8_product(x.expand(16, 64), None)(x)
    except (AttributeError, RuntimeError):  # PyTorch was built without oneDNN, or has other operators
        return False
    return bool(torch.allclose(product, x @ x.T, rtol=0.02))
