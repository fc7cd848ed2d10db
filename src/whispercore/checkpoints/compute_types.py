"""CTranslate2's compute types: those that this processor has, and the one that the settings choose."""

from __future__ import annotations

import ctranslate2

from ..devices import choose_precision
from ..settings import Settings

_DEFAULT = {"cpu": "int8", "cuda": "float16"}
"""The fastest compute type on a device whose transcripts match float32's."""


def precision(settings: Settings, device: str) -> str:
    """CTranslate2's compute type for the settings on `device`.

    Raises ConfigurationError when the processor has no such type.
    """
    return choose_precision("ct2", settings, device, supported(device))


def supported(device: str) -> tuple[str, ...]:
    """CTranslate2's compute types on `device` that the setting `dtype` may name. The first one is the default."""
    types = ctranslate2.get_supported_compute_types(device) - {"int16"}
    first = _DEFAULT[device] if _DEFAULT[device] in types else "float32"
    return (first, *sorted(types - {first}))
