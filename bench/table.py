"""The README's table, written from the committed results and from nothing else: `python -m bench table`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .results import RESULTS, load
from .work import ROOT

README = ROOT / "README.md"
BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->"
MEASUREMENTS = ("startup", "overhead", "throughput", "memory")

MAX_OVERHEAD_MS = 15.0
MIN_THROUGHPUT_RATIO = 4.0

_SIZES = {"nano": "the bundled model", "base": "base-sized random weights"}
_TITLES = ("", "this server", "plain handler", "")


def table(folder: Path = RESULTS) -> str:
    """The Markdown of everything that has been measured; empty when nothing has."""
    found = {name: content for name in MEASUREMENTS if (content := load(folder, name))}
    if not found:
        return ""
    rows = [row for name, content in found.items() for row in _ROWS[name](content)]
    lines = [_TITLES, ("---", "--:", "--:", "---"), *rows]
    return f"{_origin(list(found.values()))}\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def block(page: str) -> str:
    """What lies between the page's markers."""
    return page.partition(BEGIN)[2].partition(END)[0]


def update(readme: Path = README, folder: Path = RESULTS) -> None:
    """Put the table between the README's markers."""
    page = readme.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise ValueError(f"{readme.name} needs the lines {BEGIN.strip()} and {END}")
    head, _, rest = page.partition(BEGIN)
    readme.write_text(head + BEGIN + table(folder) + END + rest.partition(END)[2], encoding="utf-8")


def _origin(contents: list[dict[str, Any]]) -> str:
    """Where the figures come from."""
    seen = [content["provenance"] for content in contents]
    machine, versions = seen[0]["machine"], seen[0]["versions"]
    commits = ", ".join(dict.fromkeys(f"`{one['commit'][:7]}`" + (" with changes" if one["dirty"] else "") for one in seen))
    device = machine["gpu"] or "no GPU"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "ctranslate2", "torchserve"))
    return (
        f"Measured by `python -m bench` at {commits} on {machine['cores']} cores of an {machine['cpu']}, {device}, {packages}.\n"
        "Medians; in brackets the least and the greatest round. The plain handler runs `whisper.transcribe`, one request at a time."
    )


def _startup(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, plain = content["result"]["whisper"], content["result"]["plain"]
    remark = f"TorchServe itself answers after {ours['ping_seconds']['median']:.1f} s"
    yield "start-up to the first reply", _spread(ours["reply_seconds"], 1, " s"), _spread(plain["reply_seconds"], 1, " s"), remark


def _overhead(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for size, seen in content["result"].items():
        what = f"overhead of serving a {content['settings']['clip_seconds']} s clip, {_SIZES.get(size, size)}"
        goal = _goal(seen["overhead_ms"]["median"] <= MAX_OVERHEAD_MS, f"at most {MAX_OVERHEAD_MS:g} ms")
        yield what, _spread(seen["overhead_ms"], 1, " ms"), "", f"the call in process: {seen['call_ms']['median']:.0f} ms; {goal}"


def _throughput(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    settings = content["settings"]
    name = _SIZES.get(settings["model"].partition(",")[0], settings["model"])
    work = f"{settings['clip_seconds']} s clips, {name}, {settings['tokens']} tokens each"
    for concurrency, seen in content["result"].items():
        ratio, goal = seen["ratio"], f"at least {MIN_THROUGHPUT_RATIO:g} times"
        remark = f"{_spread(ratio, 1, ' times')}; {_goal(ratio['median'] >= MIN_THROUGHPUT_RATIO, goal)}"
        rates = (_spread(seen[server]["audio_per_second"], 1) for server in ("whisper", "plain"))
        yield f"seconds of audio per second, {concurrency} at once; {work}", *rates, remark


def _memory(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, plain = content["result"]["whisper"], content["result"]["plain"]
    for seconds, seen in ours.items():
        other = plain.get(seconds)
        remark = f"transcribed in {_duration(seen['seconds'])}" + (f", plain in {_duration(other['seconds'])}" if other else "")
        yield f"peak memory, worker + Java, {_duration(float(seconds))} of audio", _megabytes(seen), _megabytes(other), remark


_ROWS = {"startup": _startup, "overhead": _overhead, "throughput": _throughput, "memory": _memory}


def _spread(value: dict[str, float], digits: int, unit: str = "") -> str:
    return f"{value['median']:.{digits}f}{unit} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"


def _goal(met: bool, goal: str) -> str:
    return f"goal: {goal}, {'met' if met else '**missed**'}"


def _megabytes(seen: dict[str, Any] | None) -> str:
    return f"{seen['worker_mb']} + {seen['jvm_mb']} MB" if seen else ""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:g} h"
