"""The tables of docs/measured.md, written from the committed results and from nothing else: `python -m bench table`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .results import RESULTS, load
from .work import ROOT

README, MEASURED = ROOT / "README.md", ROOT / "docs" / "measured.md"
BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->"
SERVE_BEGIN, SERVE_END = "<!-- serve -->\n", "<!-- /serve -->"
MEASUREMENTS = ("startup", "overhead", "memory")

MAX_OVERHEAD_MS = 15.0
MIN_PLAIN_RATIO, MIN_PEER_RATIO, MIN_LONG_RATIO, MIN_ROAD_SHARE = 4.0, 1.3, 1.0, 0.97
"""Goals at 8 clips at once, of the long file beside faster-whisper's batches, and of the server beside its own core."""

_SIZES = {"nano": "the bundled model", "base": "base-sized random weights"}
_TITLES = {"": "---", "this server": "--:", "plain handler": "--:", " ": "---"}


def table(folder: Path = RESULTS) -> str:
    """The Markdown of everything that has been measured; empty when nothing has."""
    found = {name: content for name in MEASUREMENTS if (content := load(folder, name))}
    if not found:
        return ""
    rows = [row for name, content in found.items() for row in _ROWS[name](content)]
    return f"{_origin(list(found.values()))}\n\n" + markdown(_TITLES, rows)


def block(page: str, begin: str = BEGIN, end: str = END) -> str:
    """What lies between the page's markers."""
    return page.partition(begin)[2].partition(end)[0]


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Put the table between the page's markers."""
    put(page, table(folder), BEGIN, END)


def update_serve(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Put the tables of servers under load between the page's markers."""
    put(page, serve(folder), SERVE_BEGIN, SERVE_END)


def serve(folder: Path = RESULTS) -> str:
    """The Markdown of every model that has been served under load, then the worker's memory; empty when none has."""
    paths = sorted(folder.glob("serve-*.json"), key=lambda path: _SERVE_ORDER.index(path.stem) if path.stem in _SERVE_ORDER else 99)
    known = [content for path in paths if (content := load(folder, path.stem)) and content["measured"] != "serve-memory"]
    if not known:
        return ""
    parts = [serve_one(content) for content in known]
    if not any(content["provenance"]["machine"]["gpu"] for content in known):
        parts.append("On a GPU (large-v3-turbo, large-v3): not measured yet.\n")
    if folder == RESULTS:
        parts += [f"![Throughput and latency under load](../{(folder / known[0]['measured']).relative_to(ROOT)}.svg)\n"]
    memory = load(folder, "serve-memory")
    return "\n".join([*parts, *([_serve_memory(memory)] if memory else [])])


def serve_one(content: dict[str, Any]) -> str:
    """The Markdown of one model: throughput of every contender, what of it was to be reached, latencies."""
    settings, result, origin = content["settings"], content["result"], content["provenance"]
    counts = [str(count) for count in settings["plan"]["concurrencies"]]
    at = _goal_count(counts)
    titles = {"seconds of audio a second": "---"} | {f"{count} at once": "--:" for count in counts}
    titles |= {f"a file of {duration(settings['plan']['long_seconds'])}": "--:", "processor time a clip": "--:"}
    titles |= {f"this server is faster, {at} at once": "--:"}
    rows = [_serve_row(name, seen, counts, at) for name, seen in result["contenders"].items()]
    rows += [(name, f"none: {reason}".replace("|", "\\|"), *[""] * (len(titles) - 2)) for name, reason in result["missing"].items()]
    waits = [_wait_row(name, seen, result["arrivals"].get(name, {}), settings["plan"]["rates"]) for name, seen in result["mixed"].items()]
    goals = "".join(f"- {goal}\n" for goal in _serve_goals(result["contenders"], at, counts[-1]))
    rates = {f"{rate:g} a second": "--:" for rate in settings["plan"]["rates"]}
    wait_titles = {"seconds a 10 s clip takes": "---", "idle": "--:", "beside the long file": "--:"} | rates
    return "\n".join([_serve_origin(settings, origin), markdown(titles, rows), goals, markdown(wait_titles, waits)])


_SERVE_ORDER = [f"serve-{size}" for size in ("base", "small", "large-v3-turbo", "large-v3")]


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _goal_count(counts: list[str]) -> str:
    """The number at once at which the goals are: 8, or the last one where it was not measured."""
    return "8" if "8" in counts else counts[-1]


def _serve_origin(settings: dict[str, Any], origin: dict[str, Any]) -> str:
    machine, versions = origin["machine"], origin["versions"]
    commit = f"`{origin['commit'][:7]}`" + (" with changes" if origin["dirty"] else "")
    known = [f"{name} {versions[name]}" for name in _SERVE_PACKAGES if versions.get(name)]
    return (
        f"**{settings['model']}**, {settings['tokens']} tokens of every window, {settings['clip_seconds']} s clips, no two the same; "
        f"{_threads(settings['threads'])} for everybody.\nMeasured by `python -m bench serve` at {commit} on {machine['cores']} cores of "
        f"an {machine['cpu']}, {machine['gpu'] or 'no GPU'}, load average {origin['load_average'][0]:.1f} before; {', '.join(known)}.\n"
        "Medians; in brackets the least and the greatest round. `core`: what this server serves, without the server.\n"
    )


_SERVE_PACKAGES = ("torch", "ctranslate2", "torchserve", "openai-whisper", "faster-whisper", "transformers", "pywhispercpp")


def _serve_row(name: str, seen: dict[str, Any], counts: list[str], at: str) -> tuple[str, ...]:
    """A contender that takes one after the other has one figure, for 1 at once."""
    clips = [seen["clips"].get(count) for count in counts]
    rates = [_spread(one["audio_per_second"], 1) if one and "clips" in one else "" for one in clips]
    long = _spread(seen["long"]["audio_per_second"], 1) if seen["long"] else ""
    used = next((one["processor_seconds"] for one in (seen["clips"].get(at), *clips) if one and "clips" in one), None)
    ratio = "" if name == "this server" or at not in seen["clips"] else _spread(seen["clips"][at]["ratio"], 2, " times")
    return (f"**{name}**" if name == "this server" else name, *rates, long, f"{used['median']:.2f} s" if used else "", ratio)


def _serve_goals(contenders: dict[str, Any], at: str, most: str) -> Iterator[str]:
    """What was to be reached, each with its figure."""
    ratios = {name: seen["clips"][at]["ratio"] for name, seen in contenders.items() if at in seen["clips"]}
    peers = {name: ratio for name, ratio in ratios.items() if name not in ("this server", "core", "plain handler")}
    if peers:
        best = min(peers, key=lambda name: peers[name]["median"])
        yield _ratio_goal(f"{at} clips at once, beside the best peer, {best}", peers[best], MIN_PEER_RATIO)
    if "plain handler" in ratios:
        yield _ratio_goal(f"{at} clips at once, beside the plain handler", ratios["plain handler"], MIN_PLAIN_RATIO)
    batched = contenders.get("faster-whisper batched", {}).get("long")
    if batched:
        yield _ratio_goal("the long file, beside faster-whisper batched", batched["ratio"], MIN_LONG_RATIO)
    core = contenders.get("core", {"clips": {}})["clips"].get(most)
    if core:
        yield _ratio_goal(f"{most} clips at once, beside the core in process", core["ratio"], MIN_ROAD_SHARE)


def _ratio_goal(what: str, ratio: dict[str, float], least: float) -> str:
    return f"{what}: {_spread(ratio, 2, ' times')}; {_goal(ratio['median'] >= least, f'at least {least:g}')}"


def _wait_row(name: str, seen: dict[str, Any], arrivals: dict[str, Any], rates: list[float]) -> tuple[str, ...]:
    late = [arrivals.get(str(rate)) for rate in rates]
    shares = [f"{one['p50']:.1f}, p95 {one['p95']:.1f}" if one else "" for one in late]
    return (name, _spread(seen["idle_seconds"], 1), _spread(seen["during_seconds"], 1), *shares)


def _serve_memory(content: dict[str, Any]) -> str:
    result, settings = content["result"], content["settings"]
    flat = _goal(result["drift"] <= settings["tolerance"], f"flat within {settings['tolerance']:.0%}")
    return (
        f"The worker's memory over {settings['requests']} requests, the bundled model: {result['after_warmup_mb']:.0f} MB "
        f"after the first {settings['warmup']}, then {result['low_mb']:.0f} to {result['high_mb']:.0f} MB, "
        f"{result['last_mb']:.0f} MB at the end; {flat}.\n"
    )


def put(readme: Path, text: str, begin: str, end: str) -> None:
    """Put a text between a page's markers. Raises ValueError when it has none."""
    page = readme.read_text(encoding="utf-8")
    if begin not in page or end not in page:
        raise ValueError(f"{readme.name} needs the lines {begin.strip()} and {end}")
    head, _, rest = page.partition(begin)
    readme.write_text(head + begin + text + end + rest.partition(end)[2], encoding="utf-8")


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


def markdown(titles: dict[str, str], rows: list[tuple[str, ...]]) -> str:
    """A table whose columns are `titles` and how they align."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [tuple(title.strip() for title in titles), tuple(titles.values()), *rows])


def _startup(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, plain = content["result"]["whisper"], content["result"]["plain"]
    remark = f"TorchServe itself answers after {ours['ping_seconds']['median']:.1f} s"
    yield "start-up to the first reply", _spread(ours["reply_seconds"], 1, " s"), _spread(plain["reply_seconds"], 1, " s"), remark


def _overhead(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for size, seen in content["result"].items():
        what = f"overhead of serving a {content['settings']['clip_seconds']} s clip, {_SIZES.get(size, size)}"
        goal = _goal(seen["overhead_ms"]["median"] <= MAX_OVERHEAD_MS, f"at most {MAX_OVERHEAD_MS:g} ms")
        yield what, _spread(seen["overhead_ms"], 1, " ms"), "", f"the call in process: {seen['call_ms']['median']:.0f} ms; {goal}"


def _memory(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, plain = content["result"]["whisper"], content["result"]["plain"]
    for seconds, seen in ours.items():
        other = plain.get(seconds)
        remark = f"transcribed in {duration(seen['seconds'])}" + (f", plain in {duration(other['seconds'])}" if other else "")
        yield f"peak memory, worker + Java, {duration(float(seconds))} of audio", _megabytes(seen), _megabytes(other), remark


_ROWS = {"startup": _startup, "overhead": _overhead, "memory": _memory}


def _spread(value: dict[str, float], digits: int, unit: str = "") -> str:
    return f"{value['median']:.{digits}f}{unit} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"


def _goal(met: bool, goal: str) -> str:
    return f"goal: {goal}, {'met' if met else '**missed**'}"


def _megabytes(seen: dict[str, Any] | None) -> str:
    return f"{seen['worker_mb']} + {seen['jvm_mb']} MB" if seen else ""


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:g} h"
