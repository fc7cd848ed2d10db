"""Results of bench/serve.py as a picture: throughput of every contender, latency while a long file runs, latency by arrival rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .plot import OURS, PEERS, draw


def save(path: Path) -> str:
    """Write the picture of a serve-SIZE.json beside it; the picture's path, or why there is none."""
    result = json.loads(path.read_text(encoding="utf-8"))["result"]

    def paint(_: Any, axes: Any) -> None:
        clips, long, latency = axes
        _throughput(clips, result["contenders"])
        _long(long, result["contenders"])
        _latency(latency, result["arrivals"])

    return draw(path.with_suffix(".svg"), paint, ncols=3, figsize=(13, 4.2))


def save_memory(path: Path) -> str:
    """Write the picture of serve-memory.json beside it; the picture's path, or why there is none."""
    content = json.loads(path.read_text(encoding="utf-8"))

    def paint(_: Any, axes: Any) -> None:
        axes.plot(*zip(*content["result"]["measured"], strict=True), color=OURS)
        axes.axvline(content["settings"]["warmup"], color=PEERS, linestyle=":")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests answered")
        axes.set_title("the worker's resident memory, MB", fontsize=10)

    return draw(path.with_suffix(".svg"), paint, figsize=(7, 3))


def _throughput(axes: Any, contenders: dict[str, Any]) -> None:
    """Clips: one group of bars for every number at once, with the least and the greatest round."""
    names = [name for name, seen in contenders.items() if seen["clips"]][::-1]
    counts = list(dict.fromkeys(together for seen in contenders.values() for together in seen["clips"]))
    for place, together in enumerate(counts):
        at = [index - 0.27 * (place - (len(counts) - 1) / 2) for index in range(len(names))]
        rates = [contenders[name]["clips"].get(together, {}).get("audio_per_second") for name in names]
        heights = [rate["median"] if rate else 0 for rate in rates]
        errors = [
            [rate["median"] - rate["low"] if rate else 0 for rate in rates],
            [rate["high"] - rate["median"] if rate else 0 for rate in rates],
        ]
        axes.barh(at, heights, 0.25, xerr=errors, label=f"{together} at once", color=("#c8e1ff", "#79b8ff", "#1f6feb")[place % 3])
    axes.set_yticks(range(len(names)), names)
    axes.set_title("10 s clips: seconds of audio a second", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _long(axes: Any, contenders: dict[str, Any]) -> None:
    seen = {name: one["long"]["audio_per_second"]["median"] for name, one in contenders.items() if one["long"]}
    names = list(seen)[::-1]
    colours = [OURS if name in ("this server", "core") else PEERS for name in names]
    axes.bar_label(axes.barh(names, [seen[name] for name in names], color=colours), fmt="%.1f", padding=2, fontsize=8)
    axes.set_title("a long file: seconds of audio a second", fontsize=10)


def _latency(axes: Any, arrivals: dict[str, Any]) -> None:
    for name, rates in arrivals.items():
        colour = OURS if name == "this server" else PEERS
        for share, style in (("p50", "-"), ("p95", "--")):
            axes.plot(
                [float(rate) for rate in rates],
                [one[share] for one in rates.values()],
                style,
                marker="o",
                color=colour,
                label=f"{name}, {share}",
            )
    axes.set_yscale("log")
    axes.set_xlabel("clips a second, at random times")
    axes.set_title("latency, s", fontsize=10)
    if arrivals:
        axes.legend(fontsize=8, frameon=False)
