"""What `dtype` means to this engine: the numbers that are computed with, and whether the weights are kept in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...devices import multiplies_bfloat16
from ...errors import ConfigurationError

_KNOWN = {
    "cpu": ("float32", "bfloat16", "int8", "int8_float32", "int8_bfloat16"),
    "cuda": ("float16", "bfloat16", "float32", "int8", "int8_float16", "int8_bfloat16", "int8_float32"),
}


@dataclass(frozen=True, slots=True)
class Precision:
    """`dtype`: of what flows between the layers, and of the weights, unless they are `int8`."""

    dtype: torch.dtype
    int8: bool = False

    def __str__(self) -> str:
        """As settings name it."""
        return ("int8_" if self.int8 else "") + str(self.dtype).removeprefix("torch.")


def choose_precision(asked: str, device: str) -> Precision:
    """What a setting asks for; `auto` is float32 on a CPU and float16 on a GPU. Raises ConfigurationError for what the device lacks."""
    if asked == "auto":
        return Precision(torch.float16 if device == "cuda" else torch.float32)
    if asked not in _KNOWN[device]:
        known = ", ".join(_KNOWN[device])
        raise ConfigurationError(f"engine 'torch' on {device} computes in {known}; not in {asked}", param="dtype")
    if asked == "int8":
        return Precision(_for_int8(device), int8=True)
    precision = Precision(getattr(torch, asked.removeprefix("int8_")), asked.startswith("int8_"))
    if device == "cuda" and precision.dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigurationError(f"this GPU does not compute in bfloat16: set dtype to float16 instead of {asked}", param="dtype")
    return precision


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto; int8 is a second name for one of them."""
    return tuple(name for name in _KNOWN[device] if name != "int8")


def _for_int8(device: str) -> torch.dtype:
    """What 8 bits are widened to: bfloat16 only where the processor multiplies it itself."""
    if device == "cuda":
        return torch.float16
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32
