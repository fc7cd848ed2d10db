"""Plots of the results, as SVG files beside them.

Equal results give equal files. matplotlib is in requirements-bench.txt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from whispercore.catalogue import ENGINES

from .engines import Rows, fastest, panel, precision

OURS, PEERS = "#1f6feb", "#8b949e"
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "whisper", "font.size": 9}
MISSING = "no plot: matplotlib is not installed; run: pip install -r requirements-bench.txt"
ACCURACY_SETS = ("test-clean", "chapters")
"""The sets whose error rates are plotted: short utterances and long recordings."""
COUNT_COLOURS = ("#c8e1ff", "#79b8ff", "#1f6feb")
ENGINE_COLOURS = dict(zip(ENGINES, ("#8b949e", "#d1242f", "#1f6feb", "#bf8700", "#8250df", "#1a7f37", "#57ab5a"), strict=False))
"""A colour for every engine but `fake`, which is the last one and never measured."""
PRECISION_SHAPES = {
    "float32": "o",
    "float16": "s",
    "bfloat16": "D",
    "int8": "v",
    "uint8": "^",
    "int8_float32": "<",
    "int8_float16": "P",
    "int8_bfloat16": ">",
}


def draw(path: Path, paint: Callable[[Any, Any], None], **subplots: Any) -> str:
    """Write an SVG file. `paint` draws into the figure and its axes; `subplots` are pyplot's arguments.

    Returns the file's path, or the reason why there is no plot.
    """
    try:
        import matplotlib
    except ImportError:
        return MISSING
    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(layout="constrained", **subplots)
        paint(figure, axes)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return str(path)


def accuracy(folder: Path, rows: list[dict[str, Any]], model: str = "base") -> str:
    """Write accuracy.svg: the model's error rates and processor time, row by row.

    Returns its path, or why there is none.
    """
    measured = [row for row in rows if row["model"] == model and all(name in row["sets"] for name in ACCURACY_SETS)]
    if not measured:
        return f"no plot: no row of {model} has figures of {' and '.join(ACCURACY_SETS)}"
    measured.reverse()  # bars are drawn from the bottom up

    def paint(_: Any, axes: Any) -> None:
        names = [row["row"] for row in measured]
        colours = [PEERS if "whisper" in row["runner"] else OURS for row in measured]
        for axis, name in zip(axes, ACCURACY_SETS, strict=False):
            _bars(axis, names, [100 * row["sets"][name]["wer"] for row in measured], colours, f"{name}: word error rate, %")
        cost = [sum(row["sets"][name]["cpu_seconds"] for name in ACCURACY_SETS) for row in measured]
        _bars(axes[-1], names, cost, colours, "processor seconds of both")

    height = 0.8 + 0.34 * len(measured)
    return draw(folder / "accuracy.svg", paint, ncols=len(ACCURACY_SETS) + 1, sharey=True, figsize=(12, height))


def _bars(axes: Any, names: list[str], values: list[float], colours: list[str], title: str) -> None:
    axes.bar_label(axes.barh(names, values, color=colours), fmt="%.1f", padding=2, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, 1.15 * max(values) or 1)


def serve(path: Path) -> str:
    """Plot a serve-SIZE.json: throughput, latency beside a long file, latency by arrival rate.

    The plot's path, or why there is none.
    """
    result = json.loads(path.read_text(encoding="utf-8"))["result"]

    def paint(_: Any, axes: Any) -> None:
        clips, long, latency = axes
        _throughput(clips, result["contenders"])
        _long(long, result["contenders"])
        _latency(latency, result["arrivals"])

    return draw(path.with_suffix(".svg"), paint, ncols=3, figsize=(13, 4.2))


def _throughput(axes: Any, contenders: dict[str, Any]) -> None:
    """A group of bars for every number of clips at once."""
    loads = {name: {load: figures["loads"][load] for load in figures["loads"] if load.isdigit()} for name, figures in contenders.items()}
    _groups(axes, {name: clips for name, clips in loads.items() if clips}, " at once")
    axes.set_title("clips: × real time", fontsize=10)


def _long(axes: Any, contenders: dict[str, Any]) -> None:
    loads = {
        name: {load: figures["loads"][load] for load in ("sequential", "chunked") if load in figures["loads"]}
        for name, figures in contenders.items()
    }
    _groups(axes, {name: strategies for name, strategies in loads.items() if strategies}, "")
    axes.set_title("the long recording: × real time", fontsize=10)


def _groups(axes: Any, loads: dict[str, dict[str, Any]], suffix: str) -> None:
    """A group of bars for every contender, one for each load; error bars from the lowest to the highest round."""
    names = list(loads)[::-1]
    kinds = list(dict.fromkeys(load for measured in loads.values() for load in measured))
    for place, kind in enumerate(kinds):
        positions = [index - 0.27 * (place - (len(kinds) - 1) / 2) for index in range(len(names))]
        rates = [loads[name].get(kind, {}).get("audio_per_second") for name in names]
        heights = [rate["median"] if rate else 0 for rate in rates]
        errors = [
            [rate["median"] - rate["low"] if rate else 0 for rate in rates],
            [rate["high"] - rate["median"] if rate else 0 for rate in rates],
        ]
        axes.barh(positions, heights, 0.25, xerr=errors, label=f"{kind}{suffix}", color=COUNT_COLOURS[place % len(COUNT_COLOURS)])
    axes.set_yticks(range(len(names)), names)
    axes.legend(fontsize=8, frameon=False)


def _latency(axes: Any, arrivals: dict[str, Any]) -> None:
    for name, by_rate in arrivals.items():
        colour = OURS if name == "this server" else PEERS
        rates = [float(rate) for rate in by_rate]
        for percentile, style in (("p50", "-"), ("p95", "--")):
            seconds = [figures[percentile] for figures in by_rate.values()]
            axes.plot(rates, seconds, style, marker="o", color=colour, label=f"{name}, {percentile}")
    axes.set_yscale("log")
    axes.set_xlabel("clips a second, at random times")
    axes.set_title("latency, s", fontsize=10)
    if arrivals:
        axes.legend(fontsize=8, frameon=False)


def memory(path: Path) -> str:
    """Plot serve-memory.json: the worker's resident memory by request. The plot's path, or why there is none."""
    content = json.loads(path.read_text(encoding="utf-8"))

    def paint(_: Any, axes: Any) -> None:
        axes.plot(*zip(*content["result"]["measured"], strict=True), color=OURS)
        axes.axvline(content["settings"]["warmup"], color=PEERS, linestyle=":")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests answered")
        axes.set_title("the worker's resident memory, MB", fontsize=10)

    return draw(path.with_suffix(".svg"), paint, figsize=(7, 3))


def engines(folder: Path, rows: Rows) -> str:
    """Write engines.svg: speed against word error rate, every engine and precision at its fastest batch.

    Its path, or why there is none.
    """
    compared = fastest([row for row in rows if row.get("wer") is not None])
    if not compared:
        return "no plot: no row has a word error rate"
    panels = [list(group) for _, group in groupby(sorted(compared, key=panel), key=panel)]

    def paint(figure: Any, axes: Any) -> None:
        handles: dict[str, Any] = {}
        for axis, panel_rows in zip(axes[0], panels, strict=True):
            _scatter(axis, panel_rows)
            handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside right center", fontsize=8, frameon=False)

    return draw(folder / "engines.svg", paint, ncols=len(panels), squeeze=False, figsize=(2 + 6 * len(panels), 4.5))


def _scatter(axes: Any, rows: Rows) -> None:
    """A point for every row: the colour is the engine, the shape the precision; compiled ones are hollow."""
    for row in sorted(rows, key=lambda row: (row["engine"], precision(row))):
        colour, hollow = ENGINE_COLOURS.get(row["engine"], "#000000"), row.get("compiled", False)
        label, shape = f"{row['engine']} {precision(row)}", PRECISION_SHAPES.get(row["precision"], "x")
        look = {"markerfacecolor": "none" if hollow else colour, "markeredgecolor": colour}
        axes.plot(row["rtfx"], 100 * row["wer"], shape, label=label, linestyle="none", alpha=0.8, **look)
    axes.set_xlabel("RTFx: seconds of audio a second")
    axes.set_ylabel("word error rate, %")
    axes.set_xlim(0, 1.1 * max(row["rtfx"] for row in rows))
    axes.set_ylim(0, 1.25 * max(100 * row["wer"] for row in rows) or 1)
    axes.set_title(panel(rows[0]), fontsize=10)
