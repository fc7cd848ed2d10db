"""The tables of servers under load and of the worker's memory in docs/measured.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..results import RESULTS, load
from ..work import ROOT
from .page import MEASURED, Block, duration, markdown, median, threads, verdict

BLOCK = Block("serve")
MIN_PLAIN_RATIO, MIN_PEER_RATIO, MIN_LONG_RATIO, MIN_CORE_SHARE = 4.0, 1.3, 1.0, 0.97
"""Goals: throughput over the plain handler's and over the best peer's with 8 clips at once, throughput of a long file over
faster-whisper's batched mode, and the share of the core's throughput that is left when it is served over HTTP."""

_OURS = ("this server", "core")
_ORDER = [f"serve-{size}" for size in ("base", "small", "large-v3-turbo", "large-v3")]
_PACKAGES = ("torch", "ctranslate2", "torchserve", "openai-whisper", "faster-whisper", "transformers", "pywhispercpp")


def tables(folder: Path = RESULTS) -> str:
    """The tables of every model measured under load, then the worker's memory; empty when no model was measured."""
    paths = sorted(folder.glob("serve-*.json"), key=lambda path: _ORDER.index(path.stem) if path.stem in _ORDER else len(_ORDER))
    results = [content for path in paths if (content := load(folder, path.stem)) and content["measured"] != "serve-memory"]
    if not results:
        return ""
    parts = [table(content) for content in results]
    if not any(content["provenance"]["machine"]["gpu"] for content in results):
        parts.append("On a GPU (large-v3-turbo, large-v3): not measured yet.\n")
    if folder == RESULTS:
        parts += [f"![Throughput and latency under load](../{(folder / results[0]['measured']).relative_to(ROOT)}.svg)\n"]
    memory = load(folder, "serve-memory")
    return "\n".join([*parts, *([_memory(memory)] if memory else [])])


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Write the tables into the page. Raises ValueError when the page has no block for them."""
    BLOCK.put(page, tables(folder))


def table(content: dict[str, Any]) -> str:
    """The tables of one model: every contender's throughput, the goals, and latencies."""
    settings, result, origin = content["settings"], content["result"], content["provenance"]
    counts = [str(count) for count in settings["plan"]["concurrencies"]]
    goal_count = "8" if "8" in counts else counts[-1]
    titles = {"seconds of audio a second": "---"} | {f"{count} at once": "--:" for count in counts}
    titles |= {f"a file of {duration(settings['plan']['long_seconds'])}": "--:", "processor time a clip": "--:"}
    titles |= {f"this server is faster, {goal_count} at once": "--:"}
    rows = [_throughput(name, figures, counts, goal_count) for name, figures in result["contenders"].items()]
    rows += [(name, f"none: {reason}".replace("|", "\\|"), *[""] * (len(titles) - 2)) for name, reason in result["missing"].items()]
    goals = "".join(f"- {goal}\n" for goal in _goals(result["contenders"], goal_count, counts[-1]))
    rates = {f"{rate:g} a second": "--:" for rate in settings["plan"]["rates"]}
    latency_titles = {"seconds a 10 s clip takes": "---", "idle": "--:", "beside the long file": "--:"} | rates
    latencies = [
        _latency(name, figures, result["arrivals"].get(name, {}), settings["plan"]["rates"]) for name, figures in result["mixed"].items()
    ]
    return "\n".join([_origin(settings, origin), markdown(titles, rows), goals, markdown(latency_titles, latencies)])


def _origin(settings: dict[str, Any], origin: dict[str, Any]) -> str:
    """What was decoded, and the commit, machine and versions it was measured with."""
    machine, versions = origin["machine"], origin["versions"]
    commit = f"`{origin['commit'][:7]}`" + (" with changes" if origin["dirty"] else "")
    packages = [f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)]
    return (
        f"**{settings['model']}**, {settings['tokens']} tokens of every window, {settings['clip_seconds']} s clips, no two the same; "
        f"{threads(settings['threads'])} for everybody.\nMeasured by `python -m bench serve` at {commit} on {machine['cores']} cores of "
        f"an {machine['cpu']}, {machine['gpu'] or 'no GPU'}, load average {origin['load_average'][0]:.1f} before; {', '.join(packages)}.\n"
        "Medians; in brackets the least and the greatest round. `core`: what this server serves, without the server.\n"
    )


def _throughput(name: str, figures: dict[str, Any], counts: list[str], goal_count: str) -> tuple[str, ...]:
    """A contender's row. One that takes one recording at a time has a figure for 1 at once only."""
    clips = [figures["clips"].get(count) for count in counts]
    rates = [median(load["audio_per_second"], 1) if load and "clips" in load else "" for load in clips]
    long = median(figures["long"]["audio_per_second"], 1) if figures["long"] else ""
    loads = (figures["clips"].get(goal_count), *clips)
    processor = next((load["processor_seconds"] for load in loads if load and "clips" in load), None)
    compared = name != "this server" and goal_count in figures["clips"]
    ratio = median(figures["clips"][goal_count]["ratio"], 2, " times") if compared else ""
    label = f"**{name}**" if name == "this server" else name
    return (label, *rates, long, f"{processor['median']:.2f} s" if processor else "", ratio)


def _goals(contenders: dict[str, Any], goal_count: str, highest_count: str) -> Iterator[str]:
    """Every goal that has been measured, with its figure."""
    ratios = {name: figures["clips"][goal_count]["ratio"] for name, figures in contenders.items() if goal_count in figures["clips"]}
    peers = {name: ratio for name, ratio in ratios.items() if name not in (*_OURS, "plain handler")}
    if peers:
        best = min(peers, key=lambda name: peers[name]["median"])
        yield _goal(f"{goal_count} clips at once, beside the best peer, {best}", peers[best], MIN_PEER_RATIO)
    if "plain handler" in ratios:
        yield _goal(f"{goal_count} clips at once, beside the plain handler", ratios["plain handler"], MIN_PLAIN_RATIO)
    batched = contenders.get("faster-whisper batched", {}).get("long")
    if batched:
        yield _goal("the long file, beside faster-whisper batched", batched["ratio"], MIN_LONG_RATIO)
    core = contenders.get("core", {"clips": {}})["clips"].get(highest_count)
    if core:
        yield _goal(f"{highest_count} clips at once, beside the core in process", core["ratio"], MIN_CORE_SHARE)


def _goal(label: str, ratio: dict[str, float], minimum: float) -> str:
    return f"{label}: {median(ratio, 2, ' times')}; goal: at least {minimum:g}, {verdict(ratio['median'] >= minimum)}"


def _latency(name: str, figures: dict[str, Any], arrivals: dict[str, Any], rates: list[float]) -> tuple[str, ...]:
    """A server's row: on an idle server, beside the long file, and at every arrival rate."""
    percentiles = [arrivals.get(str(rate)) for rate in rates]
    at_rates = [f"{seconds['p50']:.1f}, p95 {seconds['p95']:.1f}" if seconds else "" for seconds in percentiles]
    return (name, median(figures["idle_seconds"], 1), median(figures["during_seconds"], 1), *at_rates)


def _memory(content: dict[str, Any]) -> str:
    result, settings = content["result"], content["settings"]
    flat = f"goal: flat within {settings['tolerance']:.0%}, {verdict(result['drift'] <= settings['tolerance'])}"
    return (
        f"The worker's memory over {settings['requests']} requests, the bundled model: {result['after_warmup_mb']:.0f} MB "
        f"after the first {settings['warmup']}, then {result['low_mb']:.0f} to {result['high_mb']:.0f} MB, "
        f"{result['last_mb']:.0f} MB at the end; {flat}.\n{_slopes(result.get('processes', {}))}"
    )


def _slopes(processes: dict[str, dict[str, float]]) -> str:
    """How much the memory of each process grows over the second half of the requests."""
    grows = (
        f"{role} {figures['mb_per_1000']:+.1f} MB ({figures['half_mb']:.0f} to {figures['end_mb']:.0f} MB)"
        for role, figures in processes.items()
    )
    return f"In 1,000 requests of the second half: {', '.join(grows)}.\n" if processes else ""
