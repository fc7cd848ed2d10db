"""The tables of servers under load and of the worker's memory in docs/measured.md, and the table of speed in README.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..contenders import BATCHED, CORE, LARGE_BATCHED, OURS, SEQUENTIAL, WORKERS
from ..results import RESULTS, load
from ..work import ROOT
from .page import MEASURED, README, Block, duration, markdown, median, threads, verdict

BLOCK, SPEED = Block("serve"), Block("speed")
GOALS = (
    ("chunked", "the long recording chunked", (BATCHED, LARGE_BATCHED), 1.5),
    ("sequential", "the long recording sequentially", (SEQUENTIAL,), 1.3),
    ("8", "8 clips at once", (WORKERS,), 2.0),
    ("32", "32 clips at once", (CORE,), 0.97),
)
"""Goals of throughput: the load, its title, the contenders of which the fastest counts, and how many times as fast ours is to be."""
EQUAL_POINTS = 0.5
"""How many points a WER may be above another and still be called equal: about the standard error over a chapter of 1,400 words."""

_ORDER = ("base", "small", "large-v3-turbo", "large-v3")
_PACKAGES = ("torch", "ctranslate2", "torchserve", "openai-whisper", "faster-whisper", "transformers", "pywhispercpp")
_README_ROWS = {
    "chunked": "a recording of {long}, chunked or batched",
    "sequential": "the same, one window after the other",
    "8": "sentences, 8 at once",
}
"""The loads in the README's table, and their titles."""
_README_COLUMNS = (OURS, "faster-whisper", "whisper.cpp", "openai-whisper", "transformers")
"""The programs in the README's table; each has the fastest of its modes."""

Content = dict[str, Any]
"""A result file."""


def tables(folder: Path = RESULTS) -> str:
    """The tables of every model measured under load, then the worker's memory; empty when no model was measured."""
    results = _contents(folder)
    if not results:
        return ""
    parts = [table(content) for content in results]
    if not any(content["provenance"]["machine"]["gpu"] for content in results):
        parts.append("On a GPU (large-v3-turbo, large-v3): not measured yet.\n")
    if folder == RESULTS:
        parts += [f"![Throughput and latency under load](../{(folder / results[0]['measured']).relative_to(ROOT)}.svg)\n"]
    memory = load(folder, "serve-memory")
    return "\n".join([*parts, *([_memory(memory)] if memory else [])])


def _contents(folder: Path) -> list[Content]:
    """The result files: trained weights first, then by size and by processor."""
    names = sorted(path.stem for path in folder.glob("serve-*.json"))
    contents = [load(folder, name) for name in names if name != "serve-memory"]
    return sorted((content for content in contents if content), key=_place)


def _place(content: Content) -> tuple[bool, int]:
    size = content["settings"]["model"].partition(",")[0]
    return content["settings"]["tokens"] > 0, _ORDER.index(size) if size in _ORDER else len(_ORDER)


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Write the tables into the page. Raises ValueError when the page has no block for them."""
    BLOCK.put(page, tables(folder))


def update_readme(page: Path = README, folder: Path = RESULTS) -> None:
    """Write the README's table into the page. Raises ValueError when the page has no block for it."""
    SPEED.put(page, readme(folder))


def readme(folder: Path = RESULTS) -> str:
    """The README's table: the speed of `base` with its own weights, each program in its fastest mode. Empty when it has not been
    measured."""
    content = next((content for content in _contents(folder) if content["settings"]["model"] == "base"), None)
    if not content:
        return ""
    settings, result, machine = content["settings"], content["result"], content["provenance"]["machine"]
    contenders = result["contenders"]
    shown = [name for name in _README_COLUMNS if _modes(name, contenders)]
    long = duration(settings["long_seconds"])
    rows = [(title.format(long=long), *(_fastest(name, contenders, key) for name in shown)) for key, title in _README_ROWS.items()]
    waits = ""
    if mixed := result["mixed"].get(OURS):
        idle, during = mixed["idle_seconds"], mixed["during_seconds"]
        beside = f"{during['median']:.1f} s beside that recording, {during['high']:.1f} s at worst"
        waits = f" A sentence takes {idle['median']:.1f} s on an idle server, {beside}."
    titles = {f"`{settings['model']}`: × real time, WER": "---"} | dict.fromkeys(shown, "--:")
    return (
        f"Speed of {_weights(settings)} on LibriSpeech, {machine['cores']} cores of an {_processor(machine)}, each program in its fastest "
        f"mode.{waits} All contenders and loads: [docs/measured.md](docs/measured.md#servers-under-load).\n\n{markdown(titles, rows)}"
    )


def _modes(program: str, contenders: dict[str, Any]) -> list[dict[str, Any]]:
    """The loads of every mode of a program."""
    return [figures["loads"] for name, figures in contenders.items() if name.partition(",")[0].removesuffix(" batched") == program]


def _fastest(program: str, contenders: dict[str, Any], key: str) -> str:
    """The program's fastest mode in this load. One that takes a clip at a time is as fast with 8 at once."""
    modes = _modes(program, contenders)
    measured = [loads[key] for loads in modes if key in loads] or [loads["1"] for loads in modes if key.isdigit() and "1" in loads]
    if not measured:
        return ""
    best = max(measured, key=lambda figures: figures["audio_per_second"]["median"])
    return f"{best['audio_per_second']['median']:.1f}, {_wer(best)}"


def table(content: Content) -> str:
    """The tables of one model: every contender's throughput and WER, the goals, and latencies."""
    settings, result = content["settings"], content["result"]
    counts, long = [str(count) for count in settings["plan"]["clips"]], duration(settings["long_seconds"])
    titles = {"× real time" + ", WER" * (not settings["tokens"]): "---", f"{long}, chunked": "--:", f"{long}, sequential": "--:"}
    titles |= {f"{count} clip{'s' * (count != '1')} at once": "--:" for count in counts}
    titles |= {"processor, an hour of the long recording": "--:", "processor, an hour of clips": "--:", "peak memory": "--:"}
    rows = [_row(name, figures, counts, result) for name, figures in result["contenders"].items() if name not in result["missing"]]
    rows += [(name, f"none: {reason}".replace("|", "\\|"), *[""] * (len(titles) - 2)) for name, reason in result["missing"].items()]
    goals = "".join(f"- {goal}\n" for goal in _goals(result))
    return "\n".join([_origin(content), markdown(titles, rows), *([goals] if goals else []), _latencies(settings, result)])


def _origin(content: Content) -> str:
    """What was decoded, and the commit, machine and versions it was measured with."""
    settings, origin = content["settings"], content["provenance"]
    machine, versions = origin["machine"], origin["versions"]
    commit = f"`{origin['commit'][:7]}`" + (" with changes" if origin["dirty"] else "")
    packages = [f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)]
    tokens = f", {settings['tokens']} tokens of every window" if settings["tokens"] else ""
    rounds, slow = settings["plan"]["rounds"], settings["slow"]
    return (
        f"**{settings['model']}**{tokens}; {settings['recordings']}; the language told, greedy; {threads(settings['threads'])} for "
        f"everybody.{_emulated(settings)}\nMeasured by `python -m bench serve` at {commit} on {machine['cores']} cores of an "
        f"{_processor(machine)}, {machine['gpu'] or 'no GPU'}, load average {origin['load_average'][0]:.1f} before; "
        f"{', '.join(packages)}.\nMedians of {rounds} round{'s' * (rounds != 1)}; in brackets the least and the greatest. "
        f"`core`: what this server serves, without the server. ¹: one round, {slow['clips']} clips one after the other, the first "
        f"{duration(slow['long_seconds'])} of the long recording.\n"
    )


def _emulated(settings: dict[str, Any]) -> str:
    if settings["bfloat16"]:
        return ""
    return " Emulated: a CPU without bfloat16 (ONEDNN_MAX_CPU_ISA)."


def _weights(settings: dict[str, Any]) -> str:
    return f"OpenAI's `{settings['model']}`" + (", as on a CPU without bfloat16 (emulated)," if not settings["bfloat16"] else "")


def _processor(machine: dict[str, Any]) -> str:
    """Its name, and the flags that determine its speed; results of earlier versions do not have them."""
    return f"{machine['cpu']} ({', '.join(machine['flags'])})" if machine.get("flags") else str(machine["cpu"])


def _row(name: str, figures: dict[str, Any], counts: Sequence[str], result: dict[str, Any]) -> tuple[str, ...]:
    """A contender's row: speed and WER of every load, processor time, memory."""
    loads = figures["loads"]
    cells = [_cell(loads[key]) if key in loads else "" for key in ("chunked", "sequential", *counts)]
    long = next((loads[key] for key in ("chunked", "sequential") if key in loads), None)
    clips = next((loads[key] for key in ("8", *counts) if key in loads), None)
    processor = [f"{cost['processor_seconds_an_hour']['median']:.0f} s" if cost else "" for cost in (long, clips)]
    label = f"**{name}**" if name == OURS else name + " ¹" * figures["slow"]
    return (label, *cells, *processor, f"{figures['peak_mb']} MB" if figures["peak_mb"] else "")


def _cell(figures: dict[str, Any]) -> str:
    """Speed, with its spread where there were several rounds, and the WER where words were scored."""
    speed = figures["audio_per_second"]
    shown = median(speed, 1) if speed["count"] > 1 else f"{speed['median']:.1f}"
    return shown + (f", {_wer(figures)}" if figures["wer"] is not None else "")


def _wer(figures: dict[str, Any]) -> str:
    rate: float = figures["wer"]
    return f"{rate:.1%}"


def _goals(result: dict[str, Any]) -> Iterator[str]:
    """Every goal that has been measured, with its figures."""
    contenders = result["contenders"]
    for key, title, names, minimum in GOALS:
        peers = {name: contenders[name]["loads"][key] for name in names if name in contenders and key in contenders[name]["loads"]}
        if peers and key in contenders[OURS]["loads"]:
            best = min(peers, key=lambda name: peers[name]["ratio"]["median"])
            yield _goal(f"{title}, beside {best}", contenders[OURS]["loads"][key], peers[best], minimum)
    core = contenders.get(CORE, {"loads": {}})["loads"].get("chunked")
    if core and core["batch_seconds"] and (mixed := result["mixed"].get(OURS)):
        yield _wait(mixed["idle_seconds"], mixed["during_seconds"], core["batch_seconds"])


def _goal(label: str, ours: dict[str, Any], theirs: dict[str, Any], minimum: float) -> str:
    """A goal of throughput, met only at an equal WER."""
    met, words, condition = theirs["ratio"]["median"] >= minimum, "", ""
    if ours["wer"] is not None and theirs["wer"] is not None:
        met = met and ours["wer"] <= theirs["wer"] + EQUAL_POINTS / 100
        words, condition = f", WER {_wer(ours)} to {_wer(theirs)}", " at an equal WER"
    return f"{label}: {median(theirs['ratio'], 2, ' times')}{words}; goal: at least {minimum:g} times{condition}, {verdict(met)}"


def _wait(idle: dict[str, float], during: dict[str, float], batch: float) -> str:
    """The goal of a clip's latency beside the long recording."""
    met = all(during[kind] <= idle[kind] + batch for kind in ("median", "high"))
    return (
        f"a clip beside the long recording: {during['median']:.2f} s, worst {during['high']:.2f} s; idle {idle['median']:.2f} s, worst "
        f"{idle['high']:.2f} s; the longest batch of the core {batch:.2f} s; goal: at most one batch longer, {verdict(met)}"
    )


def _latencies(settings: dict[str, Any], result: dict[str, Any]) -> str:
    rates = settings["plan"]["rates"]
    titles = {"seconds a clip takes": "---", "idle": "--:", "worst": "--:", "beside the long recording": "--:", "worst ": "--:"}
    titles |= {f"{rate:g} a second": "--:" for rate in rates}
    rows = []
    for name, figures in result["mixed"].items():
        percentiles = [result["arrivals"].get(name, {}).get(str(rate)) for rate in rates]
        at_rates = [f"{seconds['p50']:.1f}, p95 {seconds['p95']:.1f}" if seconds else "" for seconds in percentiles]
        waits = [f"{figures[when][kind]:.1f}" for when in ("idle_seconds", "during_seconds") for kind in ("median", "high")]
        rows.append((name + " ¹" * result["contenders"][name]["slow"], *waits, *at_rates))
    return markdown(titles, rows)


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
