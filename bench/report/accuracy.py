"""The tables of `bench accuracy`: one table in README.md, every row in docs/measured.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..datasets import CORE
from ..results import RESULTS, load
from .goals import (
    BATCHED,
    DEFAULT,
    GOAL_SETS,
    OPENAI,
    PUBLISHED,
    TITLES,
    Row,
    error_rate,
    figures,
    goals,
    percent,
    pooled,
    row_name,
    segment_times,
    study,
)
from .page import MEASURED, README, Block, markdown

BLOCK = Block("accuracy")
WORD_SETS = (*(name for name in GOAL_SETS if not name.startswith("languages")), "mix", "heldout", "espeak")
"""The sets in the table of error rates."""
QUIET_SETS = {"sounds": "three hours", "sounds-10min": "ten minutes", "quiet": "28 recordings of up to 40 s"}
"""The sets without speech, and their column titles."""
README_ROWS = (OPENAI, "faster-whisper:sequential:int8", BATCHED, "ct2:sequential:int8", DEFAULT)
README_SETS = ("test-clean", "test-other", "chapters", "dictation", "noisy-10dB", "noisy-0dB", "telephone", "silence")

_COLUMNS = (
    "Languages: the mean of each one's error rate, of characters for Chinese and Japanese. Segment starts: the share within 0.2 s\n"
    "of the truth. Word starts: the median of how far off they are. Processor: seconds for the five sets that every row was run on.\n"
)


def line(label: str, name: str, values: dict[str, Any]) -> str:
    """A finished set in one line, for the console. `label`: the row; `name`: the set."""
    counts = f"{values['insertions']} ins {values['deletions']} del {values['substitutions']} sub of {values['words']}"
    parts = [f"{values['insertions']} words in audio without speech"] if values["wer"] is None else [f"WER {values['wer']:.2%}", counts]
    right, recordings = values.get("language_right"), values["recordings"]
    parts += [f"language right {right} of {recordings}"] if right is not None and right < recordings else []
    for kind in ("segment_times", "word_times"):
        parts += [f"{kind.replace('_', ' ')}: {_times(values[kind])}"] if kind in values else []
    parts.append(f"{values['seconds']:.0f} s, processor {values['cpu_seconds']:.0f} s, {values['peak_rss_mb']:.0f} MB")
    parts += [f"{values['failed']} failed: {values['failures'][0]}"] if values["failed"] else []
    return f"{label} {name}: {', '.join(parts)}"


def _times(times: dict[str, Any]) -> str:
    if "start" in times:
        start = times["start"]
        return f"median {start['median']} s, p90 {start['p90']} s" if start["compared"] else "none"
    return f"{times['within']:.0%} of {times['compared']} within 0.2 s" if times["compared"] else "none"


def readme(folder: Path = RESULTS) -> str:
    """The README's table: the default and the peers on `base`. Empty when they have not been measured."""
    content, rows = _rows(folder, "base")
    shown = [row for name in README_ROWS for row in rows if row["row"] == name and "test-other" in row["sets"]]
    if not shown:
        return ""
    titles = {"base": "---"} | {TITLES.get(name, name): "--:" for name in README_SETS}
    titles |= {"21 languages": "--:", "language right": "--:", "segment starts": "--:", "word starts": "--:", "processor": "--:"}
    cells = [
        (*_error_rates(row, README_SETS), _mean(row), _language_right(row), _segment_cells(row)[1], _word_cells(row)[1], _processor(row))
        for row in shown
    ]
    return (
        f"Error rates by Whisper's normalizer, greedy with fallback, without giving the language. {_origin(content, shown)} "
        f"Every row and every set: [docs/measured.md](docs/measured.md#words).\n{' '.join(_COLUMNS.split())}\n\n{markdown(titles, cells)}"
    )


def tables(folder: Path = RESULTS) -> str:
    """All tables, model by model, each with its goals; empty when nothing has been measured."""
    content = load(folder, "accuracy")
    if not content:
        return ""
    models = sorted({row["model"] for row in content["result"]["rows"]}, key=lambda name: (name == "nano", name))
    parts = [part for model in models for part in _model(folder, model)]
    plot = "![Error rates and processor time of every row](../bench/results/accuracy.svg)\n"
    return "\n".join([*parts, *([plot] if (folder / "accuracy.svg").exists() and folder == RESULTS else [])])


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Write all tables into the page. Raises ValueError when the page has no block for them."""
    BLOCK.put(page, tables(folder))


def update_readme(page: Path = README, folder: Path = RESULTS) -> bool:
    """Write the README's table into the page; False when the page has no block for it."""
    text = page.read_text(encoding="utf-8")
    if BLOCK.begin not in text or BLOCK.end not in text:
        return False
    BLOCK.put(page, readme(folder))
    return True


def _rows(folder: Path, model: str) -> tuple[dict[str, Any], list[Row]]:
    """accuracy.json and the model's rows in it that were not cut to a few recordings."""
    content = load(folder, "accuracy")
    if not content:
        return {}, []
    return content, [row for row in content["result"]["rows"] if row["model"] == model and not row["limit"]]


def _model(folder: Path, model: str) -> Iterator[str]:
    content, rows = _rows(folder, model)
    yield f"### {model}\n"
    yield f"{_origin(content, rows)}\n"
    sets = [name for name in WORD_SETS if any(name in row["sets"] for row in rows)]
    titles = {"error rate": "---"} | {TITLES.get(name, name): "--:" for name in sets}
    titles |= {"processor": "--:", "× real time": "--:", "peak memory": "--:"}
    yield _filled(titles, [(*_error_rates(row, sets), _processor(row), _speed(row), _memory(row)) for row in rows])
    yield from _failures(rows)
    yield from _whole(rows)
    yield from _languages(rows)
    yield from _times_table(rows)
    yield from _sounds(rows)
    yield from goals(rows)
    if model == "base":
        yield from study(rows)


def _origin(content: dict[str, Any], rows: Iterable[Row]) -> str:
    """Commits, machine and versions that the rows were measured with."""
    origin, sets = content["provenance"], [values["measured"] for row in rows for values in row["sets"].values()]
    commits = ", ".join(dict.fromkeys(f"`{measured['commit'][:7]}`" + " with changes" * measured["dirty"] for measured in sets))
    machine, versions = origin["machine"], origin["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("openai-whisper", "faster-whisper", "ctranslate2", "torch"))
    threads = max((row["threads"] for row in rows), default=1)
    flags = f" ({', '.join(machine['flags'])})" if machine.get("flags") else ""
    return (
        f"Measured by `python -m bench accuracy` at {commits}, {threads} core{'s' * (threads > 1)} of an {machine['cpu']}{flags} a row, "
        f"{machine['gpu'] or 'no GPU'}, {packages}."
    )


def _filled(titles: dict[str, str], cells: Sequence[tuple[str, ...]]) -> str:
    """The table without the columns that are empty in every row."""
    columns = [number for number in range(len(titles)) if any(row[number] for row in cells)]
    filled = [item for number, item in enumerate(titles.items()) if number in columns]
    return markdown(dict(filled), [tuple(row[number] for number in columns) for row in cells])


def _failures(rows: list[Row]) -> Iterator[str]:
    failed = [f"- {row['row']}: {row['failure']}\n" for row in rows if "failure" in row]
    if failed:
        yield "Not measured to the end:\n\n" + "".join(failed)


def _whole(rows: list[Row]) -> Iterator[str]:
    """The set `whole`, which `--root` gives."""
    measured = [(row_name(row), row["sets"]["whole"]) for row in rows if "whole" in row["sets"]]
    if measured:
        utterances = measured[0][1]["recordings"]
        titles = {f"test-clean, whole: {utterances:,} utterances": "---", "WER": "--:", "published": "--:", "ins / del / sub": "--:"}
        titles |= {"processor": "--:"}
        published = percent(PUBLISHED.get(rows[0]["model"]))
        cells = [(name, f"{values['wer']:.2%}", published, _counts(values), f"{values['cpu_seconds']:.0f} s") for name, values in measured]
        yield _filled(titles, cells)


def _counts(values: dict[str, Any]) -> str:
    return f"{values['insertions']} / {values['deletions']} / {values['substitutions']}"


def _languages(rows: list[Row]) -> Iterator[str]:
    """A table of every language's error rate with the language detected, and one with it told."""
    for name, how in (("languages", "detected"), ("languages-told", "told")):
        measured = [row for row in rows if "languages" in row["sets"].get(name, {})]
        if not measured:
            continue
        languages = sorted({language for row in measured for language in row["sets"][name]["languages"]})
        titles = {f"language {how}": "---", "mean": "--:"} | ({"right": "--:"} if how == "detected" else {})
        titles |= dict.fromkeys(languages, "--:")
        cells = []
        for row in measured:
            by_language = row["sets"][name]["languages"]
            right = (_language_right(row),) if how == "detected" else ()
            rates = (f"{100 * by_language[language]['wer']:.0f}" if language in by_language else "" for language in languages)
            cells.append((row_name(row), _mean(row, name), *right, *rates))
        yield _filled(titles, cells)
    if any("languages" in row["sets"] for row in rows):
        yield "Error rates in %, of characters for zh and ja, of words for all others; six recordings of each language.\n"


def _times_table(rows: list[Row]) -> Iterator[str]:
    """The times of segments and words, with the meaning of the columns."""
    measured = [row for row in rows if any(figures(row, name) for name in ("word-times", "silence", "espeak"))]
    if not measured:
        return
    titles = {"times": "---", "segment starts compared": "--:", "within 0.2 s": "--:", "of the cut": "--:", "median": "--:", "worst": "--:"}
    titles |= {"shown in silence": "--:", "word starts compared": "--:", "median off": "--:", "p90 off": "--:"}
    yield _filled(titles, [(row_name(row), *_segment_cells(row), *_word_cells(row)) for row in measured])
    yield (
        "Segment starts: chapters and silence. A reference utterance is cut in at one time and its voice begins up to 0.6 s later:\n"
        "between the two a start is right. Compared are the utterances at whose first word a segment begins, and in any case those\n"
        "after a pause of a second or more, with the nearest segment. *Of the cut*: the share within 0.2 s of the cut itself.\n"
        "*Shown in silence*: seconds of segments half a second or more from any utterance. Words: nathalie and mfa, whose truth\n"
        "is a forced alignment, the language told; of the bundled model its synthetic speech, whose truth is exact.\n"
    )


def _segment_cells(row: Row) -> tuple[str, ...]:
    """Compared, within 0.2 s, within 0.2 s of the cut, median, worst, shown in silence."""
    times = segment_times(row)
    if not times:
        return ("",) * 6
    return (
        f"{sum(values['compared'] for values in times)} of {sum(values['utterances'] for values in times)}",
        percent(pooled(times, "within")),
        percent(pooled(times, "within_cut")),
        f"{max(times, key=lambda values: values['compared'])['median']:.2f} s",
        f"{max(values['worst'] for values in times):.1f} s",
        f"{sum(values['shown_in_silence'] for values in times):.0f} s",
    )


def _word_cells(row: Row) -> tuple[str, ...]:
    """Compared, median, 90th percentile."""
    values = figures(row, "word-times") or figures(row, "espeak")
    start = values["word_times"]["start"] if values else {"compared": 0}
    if not start["compared"]:
        return ("",) * 3
    return f"{start['compared']} of {values['word_times']['words']}", f"{start['median']:.3f} s", f"{start['p90']:.3f} s"


def _sounds(rows: list[Row]) -> Iterator[str]:
    """Words that were inserted in audio without speech, with two examples."""
    sets = {name: title for name, title in QUIET_SETS.items() if any(name in row["sets"] for row in rows)}
    if not sets:
        return
    titles = {"words in audio without speech": "---"} | dict.fromkeys(sets.values(), "--:") | {"examples": "---"}
    cells = []
    for row in rows:
        if measured := {name: row["sets"][name] for name in sets if name in row["sets"]}:
            made_up = [text for values in measured.values() for text in values.get("made_up", [])]
            counts = (str(measured[name]["insertions"]) if name in measured else "" for name in sets)
            cells.append((row_name(row), *counts, "; ".join(made_up[:2]).replace("|", "\\|")))
    yield _filled(titles, cells)


def _error_rates(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    """The row's name, then its error rate of every set."""
    return (row_name(row), *(percent(error_rate(row, name)) for name in names))


def _mean(row: Row, name: str = "languages") -> str:
    return percent(error_rate(row, name))


def _language_right(row: Row) -> str:
    values = figures(row, "languages")
    return f"{values['language_right']} of {values['recordings']}" if values and "language_right" in values else ""


def _core(row: Row) -> list[dict[str, Any]]:
    """The row's figures of the core sets; empty when one of them is missing."""
    sets = [row["sets"][name] for name in CORE if name in row["sets"]]
    return sets if len(sets) == len(CORE) else []


def _processor(row: Row) -> str:
    sets = _core(row)
    return f"{sum(values['cpu_seconds'] for values in sets):.0f} s" if sets else ""


def _speed(row: Row) -> str:
    sets = _core(row)
    return f"{sum(values['audio_seconds'] for values in sets) / sum(values['seconds'] for values in sets):.1f}" if sets else ""


def _memory(row: Row) -> str:
    sets = _core(row)
    return f"{max(values['peak_rss_mb'] for values in sets):.0f} MB" if sets else ""
