"""The table of start-up, overhead and peak memory in docs/measured.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..results import RESULTS, load
from .page import MEASURED, Block, duration, markdown, median, verdict

BLOCK = Block("bench")
MAX_OVERHEAD_MS = 15.0
"""Goal."""

_SIZES = {"nano": "the bundled model", "base": "base-sized random weights"}
_TITLES = {"": "---", "this server": "--:", "plain handler": "--:", " ": "---"}


def table(folder: Path = RESULTS) -> str:
    """The table of all results that exist; empty when there are none."""
    results = {name: content for name in _ROWS if (content := load(folder, name))}
    if not results:
        return ""
    rows = [row for name, content in results.items() for row in _ROWS[name](content)]
    return f"{_origin([content['provenance'] for content in results.values()])}\n\n" + markdown(_TITLES, rows)


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Write the table into the page. Raises ValueError when the page has no block for it."""
    BLOCK.put(page, table(folder))


def _origin(origins: list[dict[str, Any]]) -> str:
    """Commits, machine and versions that the results were measured with."""
    machine, versions = origins[0]["machine"], origins[0]["versions"]
    commits = ", ".join(dict.fromkeys(f"`{origin['commit'][:7]}`" + (" with changes" if origin["dirty"] else "") for origin in origins))
    device = machine["gpu"] or "no GPU"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "ctranslate2", "torchserve"))
    return (
        f"Measured by `python -m bench` at {commits} on {machine['cores']} cores of an {machine['cpu']}, {device}, {packages}.\n"
        "Medians; in brackets the least and the greatest round. The plain handler runs `whisper.transcribe`, one request at a time."
    )


def _startup(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, plain = content["result"]["whisper"], content["result"]["plain"]
    remark = f"TorchServe itself answers after {ours['ping_seconds']['median']:.1f} s"
    yield "start-up to the first reply", median(ours["reply_seconds"], 1, " s"), median(plain["reply_seconds"], 1, " s"), remark


def _overhead(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for size, figures in content["result"].items():
        label = f"overhead of serving a {content['settings']['clip_seconds']} s clip, {_SIZES.get(size, size)}"
        met = verdict(figures["overhead_ms"]["median"] <= MAX_OVERHEAD_MS)
        remark = f"the call in process: {figures['call_ms']['median']:.0f} ms; goal: at most {MAX_OVERHEAD_MS:g} ms, {met}"
        yield label, median(figures["overhead_ms"], 1, " ms"), "", remark


def _memory(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, plain = content["result"]["whisper"], content["result"]["plain"]
    for seconds, figures in ours.items():
        other = plain.get(seconds)
        remark = f"transcribed in {duration(figures['seconds'])}" + (f", plain in {duration(other['seconds'])}" if other else "")
        label = f"peak memory, worker + Java, {duration(float(seconds))} of audio"
        yield label, _megabytes(figures), _megabytes(other), remark


_ROWS: dict[str, Callable[[dict[str, Any]], Iterator[tuple[str, ...]]]] = {"startup": _startup, "overhead": _overhead, "memory": _memory}


def _megabytes(figures: dict[str, Any] | None) -> str:
    return f"{figures['worker_mb']} + {figures['jvm_mb']} MB" if figures else ""
