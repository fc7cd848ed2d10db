"""The accuracy bench's tables, from accuracy.json and nothing else: the README's one table, and all rows for docs/measured.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import goals
from .goals import BATCHED, OURS, OURS_EXACT, REFERENCE, TITLES, Row, find, percent, pooled, rate_of, row_name
from .results import RESULTS, load
from .table import MEASURED, README, block, markdown, put

BEGIN, END = "<!-- accuracy -->\n", "<!-- /accuracy -->"

CORE = ("test-clean", "chapters", "dictation", "silence", "noisy-10dB")
"""The sets that every row hears: time, processor and memory are of these."""
WORDS = (*(name for name in goals.WORDS if not name.startswith("languages")), "mix", "heldout", "espeak")
QUIET = {"sounds": "three hours", "sounds-10min": "ten minutes", "quiet": "28 recordings of up to 40 s"}
README_ROWS = (REFERENCE, "faster-whisper:sequential:int8", BATCHED, "ct2:sequential:int8", OURS, OURS_EXACT)
README_WORDS = ("test-clean", "test-other", "chapters", "dictation", "noisy-10dB", "noisy-0dB", "telephone", "silence")


def line(label: str, name: str, figures: dict[str, Any]) -> str:
    """A row's set in one line, as it is done."""
    counts = f"{figures['insertions']} ins {figures['deletions']} del {figures['substitutions']} sub of {figures['words']}"
    parts = [f"{figures['insertions']} words where nobody speaks"] if figures["wer"] is None else [f"WER {figures['wer']:.2%}", counts]
    right, of = figures.get("language_right"), figures["recordings"]
    parts += [f"language right {right} of {of}"] if right is not None and right < of else []
    for kind in ("segment_times", "word_times"):
        parts += [f"{kind.replace('_', ' ')}: {_times(figures[kind])}"] if kind in figures else []
    parts.append(f"{figures['seconds']:.0f} s, processor {figures['cpu_seconds']:.0f} s, {figures['peak_rss_mb']:.0f} MB")
    parts += [f"{figures['failed']} failed: {figures['failures'][0]}"] if figures["failed"] else []
    return f"{label} {name}: {', '.join(parts)}"


def _times(found: dict[str, Any]) -> str:
    if "start" in found:
        start = found["start"]
        return f"median {start['median']} s, p90 {start['p90']} s" if start["compared"] else "none"
    return f"{found['within']:.0%} of {found['compared']} within 0.2 s" if found["compared"] else "none"


def readme(folder: Path = RESULTS) -> str:
    """The README's table: the default beside the peers, on `base`; empty when that has not been measured."""
    content, rows = _rows(folder, "base")
    shown = [row for name in README_ROWS for row in rows if row["row"] == name and "test-other" in row["sets"]]
    if not shown:
        return ""
    titles = {"base": "---"} | {TITLES.get(name, name): "--:" for name in README_WORDS}
    titles |= {"21 languages": "--:", "language right": "--:", "segment starts": "--:", "word starts": "--:", "processor": "--:"}
    cells = [(*_cells(row, README_WORDS), _mean(row), _right(row), _segments(row), _words(row), _processor(row)) for row in shown]
    return (
        f"Error rates by Whisper's normalizer, greedy with fallback, the language not told. {_where(content, shown)}\n"
        f"{_HOW}Every row and every set: [docs/measured.md](docs/measured.md#words).\n\n{markdown(titles, cells)}"
    )


_HOW = (
    "Languages: the mean of each one's error rate, of characters for Chinese and Japanese. Segment starts: the share within 0.2 s\n"
    "of the truth. Word starts: the median of how far off they are. Processor: seconds for the five sets that every row hears.\n"
)


def full(folder: Path = RESULTS) -> str:
    """Everything that has been measured, model by model, and the goals; empty when nothing has."""
    content = load(folder, "accuracy")
    if not content:
        return ""
    models = sorted({row["model"] for row in content["result"]["rows"]}, key=lambda name: (name == "nano", name))
    parts = [part for model in models for part in _model(folder, model)]
    picture = "![Error rates and processor time of every row](../bench/results/accuracy.svg)\n"
    return "\n".join([*parts, *([picture] if (folder / "accuracy.svg").exists() and folder == RESULTS else [])])


def _model(folder: Path, model: str) -> Iterator[str]:
    content, rows = _rows(folder, model)
    yield f"### {model}\n"
    yield f"{_where(content, rows)}\n"
    known = [name for name in WORDS if any(name in row["sets"] for row in rows)]
    titles = {"error rate": "---"} | {TITLES.get(name, name): "--:" for name in known}
    titles |= {"processor": "--:", "× real time": "--:", "peak memory": "--:"}
    yield _filled(titles, [(*_cells(row, known), _processor(row), _speed(row), _memory(row)) for row in rows])
    yield from _failed(rows)
    yield from _whole(rows)
    yield from _languages(rows)
    yield from _all_times(rows)
    yield from _sounds(rows)
    yield from goals.goals(rows)
    if model == "base":
        yield from goals.study(rows)


def _filled(titles: dict[str, str], cells: list[tuple[str, ...]]) -> str:
    """The table without the columns that no row fills."""
    kept = [number for number in range(len(titles)) if any(row[number] for row in cells)]
    some = [item for number, item in enumerate(titles.items()) if number in kept]
    return markdown(dict(some), [tuple(row[number] for number in kept) for row in cells])


def _failed(rows: list[Row]) -> Iterator[str]:
    failed = [f"- {row['row']}: {row['failure']}\n" for row in rows if "failure" in row]
    if failed:
        yield "Not measured to the end:\n\n" + "".join(failed)


def _whole(rows: list[Row]) -> Iterator[str]:
    heard = [(row_name(row), row["sets"]["whole"]) for row in rows if "whole" in row["sets"]]
    if heard:
        one = heard[0][1]
        titles = {f"test-clean, whole: {one['recordings']} utterances": "---", "WER": "--:", "ins / del / sub": "--:", "processor": "--:"}
        yield _filled(titles, [(name, percent(it["wer"]), _counts(it), f"{it['cpu_seconds']:.0f} s") for name, it in heard])


def _languages(rows: list[Row]) -> Iterator[str]:
    for name, how in (("languages", "detected"), ("languages-told", "told")):
        heard = [row for row in rows if "languages" in row["sets"].get(name, {})]
        if not heard:
            continue
        known = sorted({language for row in heard for language in row["sets"][name]["languages"]})
        titles = {f"language {how}": "---", "mean": "--:"} | ({"right": "--:"} if how == "detected" else {})
        titles |= dict.fromkeys(known, "--:")
        cells = []
        for row in heard:
            each = row["sets"][name]["languages"]
            right = (_right(row),) if how == "detected" else ()
            rates = (f"{100 * each[one]['wer']:.0f}" if one in each else "" for one in known)
            cells.append((row_name(row), _mean(row, name), *right, *rates))
        yield _filled(titles, cells)
    if any("languages" in row["sets"] for row in rows):
        yield "Error rates in %, of characters for zh and ja, of words for all others; six recordings of each language.\n"


def _all_times(rows: list[Row]) -> Iterator[str]:
    heard = [row for row in rows if any(find(row, name) for name in ("word-times", "silence", "espeak"))]
    if not heard:
        return
    titles = {"times": "---", "segment starts compared": "--:", "within 0.2 s": "--:", "of the cut": "--:", "median": "--:", "worst": "--:"}
    titles |= {"shown in silence": "--:", "word starts compared": "--:", "median off": "--:", "p90 off": "--:"}
    yield _filled(titles, [(row_name(row), *_segment_cells(row), *_word_cells(row)) for row in heard])
    yield (
        "Segment starts: chapters and silence. A reference utterance is cut in at one time and its voice begins up to 0.6 s later:\n"
        "between the two a start is right. Compared are the utterances at whose first word a segment begins, and in any case those\n"
        "after a pause of a second or more, with the nearest segment. *Of the cut*: the share within 0.2 s of the cut itself.\n"
        "*Shown in silence*: seconds of segments half a second or more from any utterance. Words: nathalie and mfa, whose truth\n"
        "is a forced alignment, the language told; of the bundled model its synthetic speech, whose truth is exact.\n"
    )


def _segment_cells(row: Row) -> tuple[str, ...]:
    found = [seen["segment_times"] for name in ("chapters", "silence") if (seen := find(row, name)) and seen["segment_times"]["compared"]]
    if not found:
        return ("",) * 6
    compared = sum(one["compared"] for one in found)
    median = max(found, key=lambda one: one["compared"])["median"]
    return (
        f"{compared} of {sum(one['utterances'] for one in found)}",
        percent(pooled(found, "within")),
        percent(pooled(found, "within_cut")),
        f"{median:.2f} s",
        f"{max(one['worst'] for one in found):.1f} s",
        f"{sum(one['shown_in_silence'] for one in found):.0f} s",
    )


def _word_cells(row: Row) -> tuple[str, ...]:
    seen = find(row, "word-times") or find(row, "espeak")
    start = seen["word_times"]["start"] if seen else {"compared": 0}
    if not start["compared"]:
        return ("",) * 3
    return f"{start['compared']} of {seen['word_times']['words']}", f"{start['median']:.3f} s", f"{start['p90']:.3f} s"


def _sounds(rows: list[Row]) -> Iterator[str]:
    known = {name: title for name, title in QUIET.items() if any(name in row["sets"] for row in rows)}
    if not known:
        return
    titles = {"words where nobody speaks": "---"} | dict.fromkeys(known.values(), "--:") | {"examples": "---"}
    cells = []
    for row in rows:
        if seen := {name: row["sets"][name] for name in known if name in row["sets"]}:
            made = [text for one in seen.values() for text in one.get("made_up", [])]
            counts = (str(seen[name]["insertions"]) if name in seen else "" for name in known)
            cells.append((row_name(row), *counts, "; ".join(made[:2]).replace("|", "\\|")))
    yield _filled(titles, cells)


def _rows(folder: Path, model: str) -> tuple[dict[str, Any], list[Row]]:
    content = load(folder, "accuracy")
    if not content:
        return {}, []
    whole = [row for row in content["result"]["rows"] if row["model"] == model and not row["limit"]]
    return content, whole


def _where(content: dict[str, Any], rows: Iterable[Row]) -> str:
    """Commit, machine, versions; more commits than one where the rows were measured at several."""
    origin, seen = content["provenance"], [one["measured"] for row in rows for one in row["sets"].values()]
    commits = ", ".join(dict.fromkeys(f"`{one['commit'][:7]}`" + " with changes" * one["dirty"] for one in seen))
    machine, versions = origin["machine"], origin["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("openai-whisper", "faster-whisper", "ctranslate2", "torch"))
    threads = max((row["threads"] for row in rows), default=1)
    flags = f" ({', '.join(machine['flags'])})" if machine.get("flags") else ""
    return (
        f"Measured by `python -m bench accuracy` at {commits}, {threads} core{'s' * (threads > 1)} of an {machine['cpu']}{flags} a row, "
        f"{machine['gpu'] or 'no GPU'}, {packages}."
    )


def _cells(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    return (row_name(row), *(percent(rate_of(row, name)) for name in names))


def _mean(row: Row, name: str = "languages") -> str:
    return percent(rate_of(row, name))


def _right(row: Row) -> str:
    seen = find(row, "languages")
    return f"{seen['language_right']} of {seen['recordings']}" if seen and "language_right" in seen else ""


def _segments(row: Row) -> str:
    return _segment_cells(row)[1]


def _words(row: Row) -> str:
    return _word_cells(row)[1]


def _core(row: Row) -> list[dict[str, Any]]:
    """The figures of the sets that every row hears; none when one of them is missing."""
    seen = [row["sets"][name] for name in CORE if name in row["sets"]]
    return seen if len(seen) == len(CORE) else []


def _processor(row: Row) -> str:
    seen = _core(row)
    return f"{sum(one['cpu_seconds'] for one in seen):.0f} s" if seen else ""


def _speed(row: Row) -> str:
    seen = _core(row)
    return f"{sum(one['audio_seconds'] for one in seen) / sum(one['seconds'] for one in seen):.1f}" if seen else ""


def _memory(row: Row) -> str:
    return f"{max(one['peak_rss_mb'] for one in seen):.0f} MB" if (seen := _core(row)) else ""


def _counts(seen: dict[str, Any]) -> str:
    return f"{seen['insertions']} / {seen['deletions']} / {seen['substitutions']}"


def shown(page: str) -> str:
    """What lies between the page's markers."""
    return block(page, BEGIN, END)


def update(measured: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Put all tables between the page's markers. Raises ValueError when it has none."""
    put(measured, full(folder), BEGIN, END)


def update_readme(page: Path = README, folder: Path = RESULTS) -> bool:
    """Put the one table between the README's markers; False when it has none."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        return False
    put(page, readme(folder), BEGIN, END)
    return True
