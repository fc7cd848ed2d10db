"""The table of the host's road in bench/profile.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import results
from .page import Block, markdown

PAGE = Path(__file__).resolve().parent.parent / "profile.md"
BLOCK = Block("host")
NAMES = {
    "engine": "the engine alone, windows from memory",
    "scheduler": "the same through the scheduler",
    "windows": "30 s recordings, 64 open",
    "hour": "one hour",
    "files": "8 files of 10 min at once",
    "clips-1": "10 s clips, one at a time",
    "clips-8": "8 at once",
    "clips-32": "32 at once",
    "clips-128": "128 at once",
    "beside": "an hour, clips beside it",
    "http-windows": "over HTTP: 30 s recordings, 64 open",
    "http-hour": "over HTTP: one hour",
    "http-files": "over HTTP: 8 files of 10 min at once",
}


def update(page: Path = PAGE) -> None:
    """Write the table into the page when there is a result."""
    content = results.load(results.RESULTS, "host")
    if content:
        BLOCK.put(page, table(content["result"]))


def table(runs: dict[str, Any]) -> str:
    """For each load a row of each run."""
    titles = {
        "load": "---",
        "run": "---",
        "seconds": "--:",
        "times real time": "--:",
        "of the engine alone": "--:",
        "device busy": "--:",
        "windows": "--:",
        "launches": "--:",
        "a clip's latency": "--:",
        "CPU seconds an hour of audio costs: reading": "--:",
        "the rest": "--:",
    }
    rows = [_row(load, name, run["loads"]) for load in NAMES for name, run in runs.items() if load in run["loads"]]
    return "\n".join(f"`{name}`: {_origin(run)}." for name, run in runs.items()) + "\n\n" + markdown(titles, rows)


def _origin(run: dict[str, Any]) -> str:
    origin = run["provenance"]
    commit = f"`{origin['commit'][:7]}`" + (" with changes" if origin["dirty"] else "")
    machine = f"{origin['machine']['cores']} cores of an {origin['machine']['cpu']}"
    return f"{machine}, the device {run['slowdown']:g} times slower than an H200, medians of {run['rounds']}, at {commit}"


def _row(load: str, run: str, loads: dict[str, Any]) -> tuple[str, ...]:
    figures, engine = loads[load], loads.get("engine")
    speed, processor = figures["rtfx"]["median"], {kind: each["median"] for kind, each in figures["processor_per_hour"].items()}
    reading = processor.pop("reading")
    latency, is_clips = figures.get("latency"), load.startswith("clips")
    return (
        NAMES[load],
        run,
        f"{figures['seconds']['median']:.2f}",
        f"{speed:.0f}",
        f"{speed / engine['rtfx']['median']:.0%}" if engine and not is_clips else "",
        f"{figures['busy']['median']:.0%}",
        f"{figures['windows']:.0f}",
        f"{figures['launches']:.0f}",
        f"{1000 * latency['median']:.0f} ms" if latency and (is_clips or load == "beside") else "",
        f"{reading:.1f}",
        f"{sum(processor.values()):.1f}",
    )
