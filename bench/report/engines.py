"""The tables of every engine and precision in docs/measured.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ..results import RESULTS, load
from .page import MEASURED, Block, markdown, threads

BLOCK = Block("engines")
BASELINE = ("torch", "float32")
"""Latencies are relative to this engine and precision."""
NONE = "—"
Rows = list[dict[str, Any]]

_PLOT = "../bench/results/engines.svg"
_OPTIONAL = {"WER": "wer", "normalized": "wer_normalized"}
"""Columns that a table leaves out when no row has the figure."""
_WORK = ("model", "data", "device", "threads", "limit")
"""Rows with equal values here did the same work, in batches of any size."""

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


def tables(folder: Path = RESULTS) -> str:
    """A table for each model and data set, on the CPU first, then on the GPU; empty when nothing has been measured."""
    content = load(folder, "engines")
    if not content or not content["result"]["rows"]:
        return ""
    rows = content["result"]["rows"]
    parts = [_origin(content)]
    for on_gpu, device in ((False, "CPU"), (True, "GPU")):
        measured = [row for row in rows if (row["device"] == "cuda") == on_gpu]
        parts += [part for _, group in groupby(sorted(measured, key=_table_key), key=_table_key) for part in table(list(group), device)]
        if not measured:
            parts.append(f"**On a {device}**: not measured.\n")
    plot = f"\n![Speed against word error rate of every engine]({_PLOT})\n" if folder == RESULTS else ""
    return "\n".join(parts) + plot


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Write the tables into the page. Raises ValueError when the page has no block for them."""
    BLOCK.put(page, tables(folder))


def line(row: dict[str, Any]) -> str:
    """A finished row in one line, for the console."""
    name = f"{row['model']} {row['data']}: {row['engine']} {precision(row)} batch {row['batch']}"
    if "failure" in row:
        return f"{name}: {row['failure']}"
    words = f"WER {row['wer']:.1%}, " if row.get("wer") is not None else ""
    return f"{name}: {words}{row['seconds']:.1f} s, RTFx {row['rtfx']:.1f}, {row['peak_rss_mb']:.0f} MB"


def precision(row: dict[str, Any]) -> str:
    """The dtype, with `, compiled` for torch.compile."""
    return f"{row['precision']}{', compiled' * row.get('compiled', False)}"


def relative(name: str, row: dict[str, Any], rows: Rows) -> float | None:
    """The row's `seconds` or `cpu_seconds` over the baseline's on the same work; None when the baseline has no
    figure."""
    work = (*_WORK, "batch", "windows")
    baseline = [other for other in rows if (other["engine"], precision(other)) == BASELINE and all(other[key] == row[key] for key in work)]
    return float(row[name] / baseline[0][name]) if baseline and "failure" not in baseline[0] else None


def panel(row: dict[str, Any]) -> str:
    """The title of the plot's panel that the row belongs to: rows of the same recordings on the same device are
    comparable."""
    return f"{row['model']} on {row['data']}, {row['device']}"


def fastest(rows: Rows) -> Rows:
    """The row with the highest RTFx of each engine and precision on the same work."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -float(row["rtfx"])):
        best.setdefault((row["engine"], precision(row), *(row[name] for name in _WORK)), row)
    return list(best.values())


def _table_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Rows with the same key share a table; recordings come before random weights."""
    return row["data"] == "random", row["data"], row["model"], row["threads"], row["limit"] or 0, row["windows"]


def table(rows: Rows, device: str) -> list[str]:
    """One table: its title, its rows, and the rows that failed."""
    measured, failed = ([row for row in rows if ("failure" in row) == failure] for failure in (False, True))
    first = (measured or rows)[0]
    if first["data"] == "random":
        work = f"{first['model']}-sized random weights, {first.get('tokens')} tokens of every window of 30 s"
    else:
        amount = f" ({first['recordings']} recordings, {first['words']} words)" if "words" in first else ""
        work = f"{first['model']} on {first['data']}{amount}"
    loads = [row["measured"]["load_average"][0] for row in rows]
    note = f"load average {min(loads):.0f} to {max(loads):.0f} before the rows"
    titles = {name: align for name, align in _TITLES.items() if name not in _OPTIONAL or any(_OPTIONAL[name] in row for row in rows)}
    cells = [tuple(_cells(row, rows)[name] for name in titles) for row in sorted(measured, key=lambda row: (row["batch"], row["seconds"]))]
    parts = [f"**On a {device}**, {threads(first['threads'])}: {work}; {note}.\n", markdown(titles, cells)]
    failures = "".join(f"- {failure}\n" for failure in _failures(failed))
    return [*parts, *([f"Not measured:\n\n{failures}"] if failures else [])]


def _failures(rows: Rows) -> Iterator[str]:
    """Every reason once, with the engine, the precisions and the batches that it is for."""
    for (engine, reason), group in groupby(sorted(rows, key=_failure), key=_failure):
        failed = list(group)
        precisions = ", ".join(dict.fromkeys(map(precision, failed)))
        batches = ", ".join(dict.fromkeys(str(row["batch"]) for row in failed))
        yield f"{engine} {precisions}, batch {batches}: {reason}"


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
    """Commits, machines and packages that the rows were measured with, and what the columns mean."""
    rows = content["result"]["rows"]
    machines = [row["measured"].get("machine", content["provenance"]["machine"]) for row in rows]
    where = " and ".join(dict.fromkeys(f"an {machine['cpu']}, {machine['gpu'] or 'no GPU'}" for machine in machines))
    by_date = sorted((row["measured"] for row in rows), key=lambda measured: measured["date"])
    first_and_last = dict.fromkeys(f"`{measured['commit'][:7]}`" for measured in (by_date[0], by_date[-1]))
    commits = " to ".join(first_and_last) + " with changes" * any(measured["dirty"] for measured in by_date)
    packages = dict.fromkeys(row["package"] for row in rows if row.get("package"))
    return (
        f"Measured by `python -m bench engines` at {commits} on {where}, {', '.join(packages)}.\n"
        "Each row runs in a separate process and decodes every window once, greedily. Time is wall time of the whole set; "
        f"latency × is that over engine `{BASELINE[0]}`'s in {BASELINE[1]},\n"
        "processor × the same of the process's processor time, which a busy machine hardly changes; CPU is the processor's share of the "
        "time, 100% being one core.\n"
        "Normalized: WER by Whisper's own normalizer. Load: from the process's start to the weights in memory, imports and all. On disk: "
        "what the engine reads. —: there is none.\n"
    )
