"""Results as pictures, and the accuracy bench's: error rate, speed and word times of every row. matplotlib is the bench's own extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS, PEERS = "#1f6feb", "#8b949e"
SHADES = {"0.1": "#1f6feb", "0.2": "#79b8ff", "0.5": "#c8e1ff"}
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "whisper", "font.size": 9}
MISSING = "no plot: matplotlib is not installed; run: pip install -r requirements-bench.txt"


def save(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Write accuracy.svg; the file's path, or why there is none."""
    measured = [row for row in rows if "failure" not in row][::-1]  # bars are drawn from below
    if not measured:
        return "no plot: no row has a result"

    def paint(figure: Any, axes: Any) -> None:
        errors, speed, times = axes
        names = _names(measured)
        colours = [PEERS if "whisper" in row["runner"] else OURS for row in measured]
        _bars(errors, names, [100 * (row["speech"]["wer"] or 0) for row in measured], colours, "word error rate, %")
        _bars(speed, names, [row["speech"]["rtfx"] for row in measured], colours, "RTFx: seconds of audio a second")
        _shares(times, names, measured)
        figure.legend(*times.get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8, reverse=True, frameon=False)

    return draw(folder / "accuracy.svg", paint, ncols=3, sharey=True, figsize=(12, 0.8 + 0.34 * len(measured)))


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


def _names(rows: list[dict[str, Any]]) -> list[str]:
    several = len({row["model"] for row in rows}) > 1
    return [f"{row['model']} {row['row']}" if several else row["row"] for row in rows]


def _bars(axes: Any, names: list[str], values: list[float], colours: list[str], title: str) -> None:
    axes.bar_label(axes.barh(names, values, color=colours), fmt="%.1f", padding=2, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, 1.15 * max(values) or 1)


def _shares(axes: Any, names: list[str], rows: list[dict[str, Any]]) -> None:
    """How many words start within 0.1, 0.2 and 0.5 s of the truth; nothing for a row without word times."""
    for limit, shade in reversed(SHADES.items()):
        shares = [100 * (row["words"] or {}).get("start", {}).get("within", {}).get(limit, 0) for row in rows]
        axes.barh(names, shares, color=shade, label=f"within {limit} s")
    axes.set_title("word starts near the truth, %", fontsize=10)
    axes.set_xlim(0, 100)
