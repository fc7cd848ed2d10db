"""The device, and what follows from it: the engine that runs on it, its precision and how many threads decode."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import ConfigurationError
from .settings import Settings

_ENGINES = {"cuda": "torch", "cpu": "ct2"}
"""The engine that `auto` stands for on each device."""
_MEMORY, _CONTAINER_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def choose_device(settings: Settings) -> str:
    """cpu or cuda. Raises ConfigurationError when a GPU is asked for and there is none."""
    if settings.engine == "fake" or settings.device == "cpu":
        return "cpu"
    import torch  # here: the fake engine needs no torch

    if torch.cuda.is_available():
        return "cuda"
    if settings.device == "cuda":
        raise ConfigurationError("device 'cuda' asked for, but PyTorch sees no GPU: check the driver, or set device: cpu", param="device")
    return "cpu"


def choose_engine(settings: Settings, device: str) -> str:
    """The engine's name: the one asked for, or the one for the device."""
    return _ENGINES[device] if settings.engine == "auto" else settings.engine


def choose_precision(engine: str, settings: Settings, device: str, known: Iterable[str]) -> str:
    """The dtype asked for, auto being the first of those `known` to the engine on `device`. Raises ConfigurationError for another one."""
    names = list(known)
    if settings.dtype in ("auto", *names):
        return names[0] if settings.dtype == "auto" else settings.dtype
    raise ConfigurationError(f"engine '{engine}' on {device} computes in {', '.join(names)}; not in {settings.dtype}", param="dtype")


def decoding_threads(settings: Settings) -> int:
    """`settings.threads`, or the physical cores this process may run on."""
    return settings.threads or _cores()


def reading_threads(settings: Settings) -> int:
    """`settings.readers`, or half of the cores: what a GPU decodes takes several of them to read."""
    return settings.readers or max(2, _cores() // 2)


def _cores() -> int:
    """The physical cores this process may run on."""
    return len({_siblings(core) for core in os.sched_getaffinity(0)})


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16, and this PyTorch uses them."""
    import torch  # here: the fake engine needs no torch

    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported() for supported in known if supported)


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has available, at most what its container may use."""
    fields = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        return min(available, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return available


def _siblings(core: int) -> str:
    """The hardware threads that share `core`, as the kernel writes them; the core itself where it does not say."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(core)
