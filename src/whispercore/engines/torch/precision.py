"""The meaning of the setting `dtype` to this engine: the dtype of activations, and whether the weights are in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...devices import choose_precision, multiplies_bfloat16
from ...errors import ConfigurationError
from ...settings import Settings

_NAMES = {
    "cpu": ("float32", "bfloat16", "int8", "int8_float32", "int8_bfloat16"),
    "cuda": ("float16", "bfloat16", "float32", "int8", "int8_float16", "int8_bfloat16", "int8_float32"),
}


@dataclass(frozen=True, slots=True)
class Precision:
    """`dtype`: of activations, and of the weights unless they are `int8`."""

    dtype: torch.dtype
    int8: bool = False

    def __str__(self) -> str:
        """The name in the settings."""
        return ("int8_" if self.int8 else "") + str(self.dtype).removeprefix("torch.")


def resolve_precision(settings: Settings, device: str) -> Precision:
    """The settings' precision; `auto` is float32 on a CPU, float16 on a GPU. Raises ConfigurationError when the device lacks it."""
    name = choose_precision("torch", settings, device, _NAMES[device])
    if name == "int8":
        return Precision(_int8_dtype(device), int8=True)
    precision = Precision(getattr(torch, name.removeprefix("int8_")), name.startswith("int8_"))
    if device == "cuda" and precision.dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigurationError(f"this GPU does not compute in bfloat16: set dtype to float16 instead of {name}", param="dtype")
    return precision


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto. `int8`, a second name for one of them, is left out."""
    return tuple(name for name in _NAMES[device] if name != "int8")


def _int8_dtype(device: str) -> torch.dtype:
    """The dtype to which 8-bit weights are widened: on a CPU bfloat16 only where the processor multiplies it."""
    if device == "cuda":
        return torch.float16
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32
