"""The engines' tables and plot, from engines.json and nothing else, for docs/measured.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from . import table as tables
from .plot import draw
from .results import RESULTS, load

MEASURED = tables.MEASURED
BEGIN, END = "<!-- engines -->\n", "<!-- /engines -->"
BASELINE = ("torch", "float32")
"""What latencies are relative to: fp32 torch."""
NONE = "—"
_PLOT = "../bench/results/engines.svg"
COLOURS = {
    "openai": "#8b949e",
    "torch": "#d1242f",
    "ct2": "#1f6feb",
    "hf": "#bf8700",
    "jax": "#8250df",
    "onnx": "#1a7f37",
    "sherpa": "#57ab5a",
}

_WITHOUT = {"WER": "wer", "normalized": "wer_normalized"}
"""Columns that are left out when no row has the figure."""
SHAPES = {
    "float32": "o",
    "float16": "s",
    "bfloat16": "D",
    "int8": "v",
    "uint8": "^",
    "int8_float32": "<",
    "int8_float16": "P",
    "int8_bfloat16": ">",
}
Rows = list[dict[str, Any]]

_TITLES = {
    "engine": "---",
    "precision": "---",
    "batch": "--:",
    "WER": "--:",
    "normalized": "--:",
    "time": "--:",
    "latency ×": "--:",
    "RTFx": "--:",
    "processor": "--:",
    "processor ×": "--:",
    "CPU": "--:",
    "peak RSS": "--:",
    "peak GPU": "--:",
    "load": "--:",
    "on disk": "--:",
}


def table(folder: Path = RESULTS) -> str:
    """The Markdown of all rows: a table for each model and set on the CPU, then on the GPU; empty when nothing has been measured."""
    content = load(folder, "engines")
    if not content or not content["result"]["rows"]:
        return ""
    plot = f"\n![Speed against word error rate of every engine]({_PLOT})\n" if folder == RESULTS else ""
    return _tables(content, content["result"]["rows"]) + plot


def _tables(content: dict[str, Any], rows: Rows) -> str:
    parts = [_origin(content)]
    for on_gpu, name in ((False, "CPU"), (True, "GPU")):
        of_device = [row for row in rows if (row["device"] == "cuda") == on_gpu]
        parts += [part for _, some in groupby(sorted(of_device, key=_set), key=_set) for part in _one(list(some), name)]
        if not of_device:
            parts.append(f"**On a {name}**: not measured.\n")
    return "\n".join(parts)


def line(row: dict[str, Any]) -> str:
    """A row in one line, as it is done."""
    name = f"{row['model']} {row['data']}: {row['engine']} {precision(row)} batch {row['batch']}"
    if "failure" in row:
        return f"{name}: {row['failure']}"
    words = f"WER {row['wer']:.1%}, " if row.get("wer") is not None else ""
    return f"{name}: {words}{row['seconds']:.1f} s, RTFx {row['rtfx']:.1f}, {row['peak_rss_mb']:.0f} MB"


def precision(row: dict[str, Any]) -> str:
    """What it computes in, and whether by torch.compile."""
    return f"{row['precision']}{', compiled' * row.get('compiled', False)}"


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Put the tables between the page's markers. Raises ValueError when it has none."""
    tables.put(page, table(folder), BEGIN, END)


def relative(name: str, row: dict[str, Any], rows: Rows) -> float | None:
    """Its `seconds` or `cpu_seconds` over those of fp32 torch on the same work; None where that is missing."""
    alike = ("model", "data", "batch", "device", "threads", "limit", "windows")
    base = [one for one in rows if (one["engine"], precision(one)) == BASELINE and all(one[key] == row[key] for key in alike)]
    return float(row[name] / base[0][name]) if base and "failure" not in base[0] else None


def plot(folder: Path, rows: Rows) -> str:
    """Write engines.svg, speed against word error rate, each engine and precision at its fastest batch; its path, or why there is none."""
    heard = _fastest([row for row in rows if row.get("wer") is not None])
    if not heard:
        return "no plot: no row has a word error rate"

    panels = [list(some) for _, some in groupby(sorted(heard, key=_panel), key=_panel)]

    def paint(figure: Any, axes: Any) -> None:
        for one, rows in zip(axes[0], panels, strict=True):
            _scatter(one, rows)
        named: dict[str, Any] = {}
        for one in axes[0]:
            named |= {label: handle for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named, loc="outside right center", fontsize=8, frameon=False)

    return draw(folder / "engines.svg", paint, ncols=len(panels), squeeze=False, figsize=(2 + 6 * len(panels), 4.5))


def _scatter(axes: Any, rows: Rows) -> None:
    """A point for each row: the engine's colour, the precision's shape, hollow when compiled."""
    for row in sorted(rows, key=lambda row: (row["engine"], precision(row))):
        colour, hollow = COLOURS.get(row["engine"], "#000000"), row.get("compiled", False)
        label, shape = f"{row['engine']} {precision(row)}", SHAPES.get(row["precision"], "x")
        look = {"markerfacecolor": "none" if hollow else colour, "markeredgecolor": colour}
        axes.plot(row["rtfx"], 100 * row["wer"], shape, label=label, linestyle="none", alpha=0.8, **look)
    axes.set_xlabel("RTFx: seconds of audio a second")
    axes.set_ylabel("word error rate, %")
    axes.set_xlim(0, 1.1 * max(row["rtfx"] for row in rows))
    axes.set_ylim(0, 1.25 * max(100 * row["wer"] for row in rows) or 1)
    axes.set_title(_panel(rows[0]), fontsize=10)


def _panel(row: dict[str, Any]) -> str:
    """What is comparable: the same words on the same device."""
    return f"{row['model']} on {row['data']}, {row['device']}"


def _fastest(rows: Rows) -> Rows:
    """Of each engine and precision, on the same work, the row that is done first."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -float(row["rtfx"])):
        found.setdefault((precision(row), *(row[name] for name in ("engine", "model", "data", "device", "threads", "limit"))), row)
    return list(found.values())


def _set(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows of one table have in common; words come first."""
    return row["data"] == "random", row["data"], row["model"], row["threads"], row["limit"] or 0, row["windows"]


def _one(rows: Rows, device: str) -> list[str]:
    """One table with what it is of, and what could not be measured."""
    first = next((row for row in rows if "failure" not in row), rows[0])
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    if first["data"] == "random":
        what = f"{first['model']}-sized random weights, {first.get('tokens')} tokens of every window of 30 s"
    else:
        amount = f" ({first['recordings']} recordings, {first['words']} words)" if "words" in first else ""
        what = f"{first['model']} on {first['data']}{amount}"
    titles = {name: way for name, way in _TITLES.items() if _WITHOUT.get(name) is None or any(_WITHOUT[name] in row for row in rows)}
    measured = [row for row in rows if "failure" not in row]
    cells = [tuple(_cells(row, rows)[name] for name in titles) for row in sorted(measured, key=lambda row: (row["batch"], row["seconds"]))]
    missing = "".join(f"- {line}\n" for line in _failures([row for row in rows if "failure" in row]))
    loads = [row["measured"]["load_average"][0] for row in rows]
    note = f"load average {min(loads):.0f} to {max(loads):.0f} before the rows"
    parts = [f"**On a {device}**, {threads}: {what}; {note}.\n", tables.markdown(titles, cells)]
    return [*parts, *([f"Not measured:\n\n{missing}"] if missing else [])]


def _failures(rows: Rows) -> Iterator[str]:
    """What could not be measured and why, each reason once."""
    for (engine, failure), some in groupby(sorted(rows, key=_failure), key=_failure):
        alike = list(some)
        kinds, batches = (", ".join(dict.fromkeys(each)) for each in (map(precision, alike), (str(row["batch"]) for row in alike)))
        yield f"{engine} {kinds}, batch {batches}: {failure}"


def _failure(row: dict[str, Any]) -> tuple[str, str]:
    return row["engine"], row["failure"]


def _cells(row: dict[str, Any], rows: Rows) -> dict[str, str]:
    latency, processor = (relative(name, row, rows) for name in ("seconds", "cpu_seconds"))
    failed = f", {row['failed']} failed" if row.get("failed") else ""
    return {
        "engine": f"`{row['engine']}`",
        "precision": precision(row),
        "batch": str(row["batch"]),
        "WER": _percent(row.get("wer")) + failed,
        "normalized": _percent(row.get("wer_normalized")),
        "time": f"{row['seconds']:.1f} s",
        "latency ×": NONE if latency is None else f"{latency:.2f}",
        "RTFx": f"{row['rtfx']:.1f}",
        "processor": f"{row['cpu_seconds']:.1f} s",
        "processor ×": NONE if processor is None else f"{processor:.2f}",
        "CPU": f"{row['cores']:.0%}",
        "peak RSS": f"{row['peak_rss_mb']:.0f} MB",
        "peak GPU": NONE if row["peak_gpu_mb"] is None else f"{row['peak_gpu_mb']:.0f} MB",
        "load": f"{row['load_seconds']:.1f} s",
        "on disk": f"{row['disk_mb']:.0f} MB",
    }


def _percent(rate: float | None) -> str:
    return NONE if rate is None else f"{rate:.1%}"


def _origin(content: dict[str, Any]) -> str:
    rows = content["result"]["rows"]
    machines = [row["measured"].get("machine", content["provenance"]["machine"]) for row in rows]
    where = " and ".join(dict.fromkeys(f"an {machine['cpu']}, {machine['gpu'] or 'no GPU'}" for machine in machines))
    by_date = sorted((row["measured"] for row in rows), key=lambda measured: measured["date"])
    commits = dict.fromkeys(f"`{one['commit'][:7]}`" for one in (by_date[0], by_date[-1]))
    seen = " to ".join(commits) + " with changes" * any(one["dirty"] for one in by_date)
    known = dict.fromkeys(row["package"] for row in rows if row.get("package"))
    return (
        f"Measured by `python -m bench engines` at {seen} on {where}, {', '.join(known)}.\n"
        "Each row in a process of its own, every window decoded once, greedily. Time is wall time of the whole set; "
        f"latency × is that over engine `{BASELINE[0]}`'s in {BASELINE[1]},\n"
        "processor × the same of the process's processor time, which a busy machine hardly changes; CPU is the processor's share of the "
        "time, 100% being one core.\n"
        "Normalized: WER by Whisper's own normalizer. Load: from the process's start to the weights in memory, imports and all. On disk: "
        "what the engine reads. —: there is none.\n"
    )
