"""The device and what depends on it: the engine, its precision, the numbers of threads, the available memory."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .errors import ConfigurationError
from .settings import Settings

_DEFAULT_ENGINES = {"cuda": "torch", "cpu": "ct2"}
"""The engine that `auto` means on each device."""
_WITHOUT_BFLOAT16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"})
"""Values of ONEDNN_MAX_CPU_ISA, which oneDNN's documentation lists under CPU dispatcher control."""
_MEMORY, _CONTAINER_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_CGROUP = Path("/sys/fs/cgroup")
_CPU_QUOTAS = (
    (_CGROUP / "cpu.max", _CGROUP / "cpu.max"),
    (_CGROUP / "cpu" / "cpu.cfs_quota_us", _CGROUP / "cpu" / "cpu.cfs_period_us"),
)
"""The container's quota and its period, of cgroups of version 2, which have both in one file, and of version 1."""
_UNLIMITED = 1 << 20
"""Cores."""


def choose_device(settings: Settings) -> str:
    """cpu or cuda. Raises ConfigurationError when the settings ask for a GPU and PyTorch sees none."""
    if settings.engine == "fake" or settings.device == "cpu":
        return "cpu"
    if has_torch():
        import torch  # here: engines fake and ct2 need no torch

        if torch.cuda.is_available():
            return "cuda"
    if settings.device == "cuda":
        raise ConfigurationError("device 'cuda' asked for, but PyTorch sees no GPU: check the driver, or set device: cpu", param="device")
    return "cpu"


def choose_engine(settings: Settings, device: str) -> str:
    """The engine's name: the setting, or for `auto` the default of the device."""
    return _DEFAULT_ENGINES[device] if settings.engine == "auto" else settings.engine


def choose_precision(engine: str, settings: Settings, device: str, supported: Iterable[str]) -> str:
    """The dtype of the settings; `auto` is the first one that the engine supports on `device`.

    Raises ConfigurationError for a dtype that the engine does not support.
    """
    names = list(supported)
    if settings.dtype in ("auto", *names):
        return names[0] if settings.dtype == "auto" else settings.dtype
    raise ConfigurationError(f"engine '{engine}' on {device} computes in {', '.join(names)}; not in {settings.dtype}", param="dtype")


def decoding_threads(settings: Settings) -> int:
    """`settings.threads`, or for 0 the physical cores."""
    return settings.threads or physical_cores()


def reading_lanes(settings: Settings) -> int:
    """`settings.readers`, or for 0 half of the physical cores: several are needed to read as fast as a GPU decodes."""
    return settings.readers or max(2, physical_cores() // 2)


def reads_in_processes() -> bool:
    """Whether recordings are read in other processes, which one core would only slow down."""
    return logical_cores() > 1


def physical_cores() -> int:
    """The physical cores that this process may run on (its CPU affinity; a container's cpuset sets it), at most its CPU quota."""
    return min(len({_siblings(core) for core in os.sched_getaffinity(0)}), _quota())


def logical_cores() -> int:
    """The hardware threads that this process may run on, at most its CPU quota."""
    return min(len(os.sched_getaffinity(0)), _quota())


def has_torch() -> bool:
    """Whether PyTorch is installed. Engine ct2 works without it on a CPU, from a checkpoint in CTranslate2's form."""
    return importlib.util.find_spec("torch") is not None


def multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions that this PyTorch uses, and oneDNN's ONEDNN_MAX_CPU_ISA does not forbid them."""
    if not has_torch() or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BFLOAT16:
        return False
    import torch  # here: engines fake and ct2 need no torch

    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(is_supported() for is_supported in checks if is_supported)


def available_memory() -> int:
    """Bytes of memory available to this process: the machine's available memory, at most the container's limit."""
    return _memory("MemAvailable")


def device_memory(device: str) -> int:
    """Bytes of memory of the first GPU, or for `cpu` of the machine, at most the container's limit."""
    if device == "cpu":
        return _memory("MemTotal")
    import torch  # here: a CPU needs no torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def _memory(name: str) -> int:
    """Bytes in this line of the machine's memory, at most the container's limit."""
    fields = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
    size = int(fields[name].split()[0]) * 1024
    try:
        return min(size, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return size


def _quota() -> int:
    """The processors' time that the container may use, in whole cores, rounded up; a large number without a limit.

    `docker --cpus` and Kubernetes' limits set it. The kernel then stops all threads for the rest of each tenth of a second.
    """
    for quota_file, period_file in _CPU_QUOTAS:
        with suppress(OSError, ValueError):
            quota, *period = quota_file.read_text().split()
            microseconds = int(quota)
            return max(1, math.ceil(microseconds / int((period or period_file.read_text().split())[0]))) if microseconds > 0 else _UNLIMITED
    return _UNLIMITED


def _siblings(core: int) -> str:
    """The hardware threads of the physical core that has `core`, as Linux lists them; `core` itself if it does not."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(core)
