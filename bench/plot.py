"""Results as pictures, and the accuracy bench's: error rates and cost of every row. matplotlib is the bench's own extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS, PEERS = "#1f6feb", "#8b949e"
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "whisper", "font.size": 9}
MISSING = "no plot: matplotlib is not installed; run: pip install -r requirements-bench.txt"
SHOWN = ("test-clean", "chapters")
"""The sets whose error rates are drawn: short utterances and long recordings."""


def save(folder: Path, rows: list[dict[str, Any]], model: str = "base") -> str:
    """Write accuracy.svg of the model's rows; the file's path, or why there is none."""
    measured = [row for row in rows if row["model"] == model and all(name in row["sets"] for name in SHOWN)][::-1]  # drawn from below
    if not measured:
        return f"no plot: no row of {model} has heard {' and '.join(SHOWN)}"

    def paint(_: Any, axes: Any) -> None:
        names = [row["row"] for row in measured]
        colours = [PEERS if "whisper" in row["runner"] else OURS for row in measured]
        for one, name in zip(axes, SHOWN, strict=False):
            _bars(one, names, [100 * row["sets"][name]["wer"] for row in measured], colours, f"{name}: word error rate, %")
        cost = [sum(row["sets"][name]["cpu_seconds"] for name in SHOWN) for row in measured]
        _bars(axes[-1], names, cost, colours, "processor seconds of both")

    return draw(folder / "accuracy.svg", paint, ncols=len(SHOWN) + 1, sharey=True, figsize=(12, 0.8 + 0.34 * len(measured)))


def draw(path: Path, paint: Callable[[Any, Any], None], **subplots: Any) -> str:
    """Write the SVG whose figure and axes `paint` fills; `subplots`: as pyplot's. Its path, or why there is none."""
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


def _bars(axes: Any, names: list[str], values: list[float], colours: list[str], title: str) -> None:
    axes.bar_label(axes.barh(names, values, color=colours), fmt="%.1f", padding=2, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, 1.15 * max(values) or 1)
