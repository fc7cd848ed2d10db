"""The accuracy goals and the comparison of the large-v3-turbo study, from the rows of accuracy.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from whispercore.catalogue import ENGINES

from .page import markdown, verdict

DEFAULT, DEFAULT_FLOAT32 = "ct2:chunked:int8", "ct2:chunked:float32"
OPENAI, BATCHED = "openai-whisper:sequential:float32", "faster-whisper:batched:int8"
PLAIN, PLAIN_INT8 = "faster-whisper:sequential:float32", "faster-whisper:sequential:int8"
INT8 = {
    DEFAULT: DEFAULT_FLOAT32,
    "torch:chunked:int8_float32": "torch:chunked:float32",
    "onnx:chunked:int8": "onnx:chunked:float32",
    "onnx:chunked:uint8": "onnx:chunked:float32",
    "sherpa:chunked:int8": "sherpa:chunked:float32",
}
"""Rows with 8-bit weights, and the same engine in float32."""
STUDY_ROWS = (
    "torch:sequential:float32",
    "torch:chunked:float32",
    "torch:chunked:bfloat16",
    "torch:chunked:int8_float32",
    "onnx:chunked:float32",
    "onnx:chunked:int8",
    "onnx:chunked:uint8",
    PLAIN,
    PLAIN_INT8,
    BATCHED,
)
"""The variants of the large-v3-turbo study.

The first that is measured of the two in float32 by PyTorch is the baseline.
"""

TITLES = {"noisy-10dB": "noise at 10 dB", "noisy-0dB": "at 0 dB", "word-times": "word times"}
"""Column titles of the sets whose names are not."""
GOAL_SETS = (
    "test-clean",
    "test-other",
    "chapters",
    "dictation",
    "noisy-10dB",
    "noisy-0dB",
    "telephone",
    "silence",
    "commands",
    "kerstin",
    "languages",
    "languages-told",
)
"""The sets whose error rates have a goal."""
OPENAI_POINTS, INT8_POINTS = 0.1, 0.2
"""Points of error rate: how far chunked may be above openai-whisper, and int8 above float32."""
WHOLE_RATE = {"base": 0.052}
"""The most that a model's WER on all of LibriSpeech test-clean may be."""
PUBLISHED = {"tiny": 0.076, "tiny.en": 0.056, "base": 0.050, "base.en": 0.042}
"""WER on all of LibriSpeech test-clean, greedy, in Whisper's paper (Radford et al. 2022, appendix D.1.1)."""
SEGMENTS_WITHIN, WORD_SECONDS = 0.95, 0.08

Row = dict[str, Any]
"""A row of accuracy.json."""


def goals(rows: list[Row]) -> Iterator[str]:
    """The goals that one model's rows have been measured for, each with its figures."""
    by_name = {row["row"]: row for row in rows}
    default, reference = by_name.get(DEFAULT), by_name.get(OPENAI)
    if not default or not reference:
        return
    lines = list(_compare("chunked, the default, within 0.1 points of openai-whisper", default, reference, OPENAI_POINTS))
    if BATCHED in by_name:
        lines += _compare("chunked never worse than faster-whisper batched", default, by_name[BATCHED], 0.0)
    for name, float32 in INT8.items():
        if name in by_name and float32 in by_name:
            lines += _compare(f"{name} within 0.2 points of float32", by_name[name], by_name[float32], INT8_POINTS)
    lines += _single(default, reference)
    if lines:
        yield "Goals:\n\n" + "".join(f"- {line}\n" for line in lines)


def _compare(goal: str, ours: Row, other: Row, points: float) -> Iterator[str]:
    """Error rates of all sets that both rows have: at most `points` above the other's.

    Rates are compared as the tables print them.
    """
    rates = [(name, error_rate(ours, name), error_rate(other, name)) for name in GOAL_SETS]
    compared = [(name, mine, theirs) for name, mine, theirs in rates if mine is not None and theirs is not None]
    missed = [
        f"{TITLES.get(name, name)} {mine:.1%} against {theirs:.1%}"
        for name, mine, theirs in compared
        if mine > theirs + points / 100 + 5e-5
    ]
    if compared:
        counts = f"{len(compared) - len(missed)} of {len(compared)} sets"
        yield f"{goal}: {counts}, {verdict(not missed)}" + (f": {'; '.join(missed)}" if missed else "")


def _single(ours: Row, reference: Row) -> Iterator[str]:
    """The goals of single sets."""
    whole, limit = figures(ours, "whole"), WHOLE_RATE.get(ours.get("model", ""))
    if whole and limit:
        published = percent(PUBLISHED.get(ours["model"]))
        yield f"all of test-clean at most {limit:.1%} (published {published}): {whole['wer']:.2%}, {verdict(whole['wer'] <= limit)}"
    if segments := segment_times(ours):
        share = pooled(segments, "within")
        yield f"segment starts within 0.2 s of the truth for 95 %: {share:.1%}, {verdict(share >= SEGMENTS_WITHIN)}"
    if (timed := figures(ours, "word-times")) and (start := timed["word_times"]["start"])["compared"]:
        yield f"words within 80 ms in the median: {1000 * start['median']:.0f} ms, {verdict(start['median'] <= WORD_SECONDS)}"
    mine, theirs = figures(ours, "languages"), figures(reference, "languages")
    if mine and theirs:
        right = f"{mine['language_right']} against {theirs['language_right']} of {mine['recordings']}"
        yield f"the language right as often as by openai-whisper: {right}, {verdict(mine['language_right'] >= theirs['language_right'])}"
    if sounds := figures(ours, "sounds"):
        yield f"no word in three hours without speech: {sounds['insertions']}, {verdict(sounds['insertions'] == 0)}"


def study(rows: list[Row]) -> Iterator[str]:
    """The comparison of the large-v3-turbo study on LibriSpeech test-clean: every variant's error rate, time and
    memory."""
    measured = {row["row"]: row for row in rows if "test-clean" in row["sets"]}
    baseline = measured.get(STUDY_ROWS[0]) or measured.get(STUDY_ROWS[1])
    if not baseline:
        return
    torch = baseline["sets"]["test-clean"]
    titles = {"test-clean": "---", "WER": "--:", "time × torch": "--:", "processor × torch": "--:", "peak memory": "--:"}
    cells = []
    for name in STUDY_ROWS:
        if row := measured.get(name):
            values = row["sets"]["test-clean"]
            times = (f"{values[kind] / torch[kind]:.2f}" for kind in ("seconds", "cpu_seconds"))
            cells.append((row_name(row), percent(values["wer"]), *times, f"{values['peak_rss_mb']:.0f} MB"))
    yield markdown(titles, cells)
    plain_row = measured.get(PLAIN) or measured.get(PLAIN_INT8)
    if plain_row and OPENAI in measured:
        plain, reference = (row["sets"]["test-clean"]["wer"] for row in (plain_row, measured[OPENAI]))
        yield (
            f"The study's faster-whisper plain mode had {0.145 / 0.031:.1f} times the word error rate of PyTorch (0.145 to 0.031). "
            f"Here it has {plain:.1%} beside openai-whisper's {reference:.1%}: {plain / reference:.1f} times.\n"
        )


def row_name(row: Row) -> str:
    """The row's name in the tables."""
    parts = ["**this server**, " * (row["runner"] in ENGINES) + row["runner"], row["mode"], row["compute_type"]]
    parts += [f"{row['together']} at once"] * (row["together"] > 1) + [f"{row['beam_size']} beams"] * bool(row["beam_size"])
    return ", ".join(parts)


def figures(row: Row, name: str) -> Any:
    """The row's figures of a set; None when it was not measured."""
    return row["sets"].get(name)


def error_rate(row: Row, name: str) -> float | None:
    """A set's error rate; of the sets of several languages, the mean of the languages' rates."""
    rate: float | None = (figures(row, name) or {}).get("mean_rate" if name.startswith("languages") else "wer")
    return rate


def segment_times(row: Row) -> list[dict[str, Any]]:
    """The segment times of the two sets that have references for them, where segments were compared."""
    sets = (figures(row, name) for name in ("chapters", "silence"))
    return [values["segment_times"] for values in sets if values and values["segment_times"]["compared"]]


def pooled(shares: list[dict[str, Any]], name: str) -> float:
    """A share over several sets together, weighted by the number of comparisons in each."""
    return float(sum(share[name] * share["compared"] for share in shares) / sum(share["compared"] for share in shares))


def percent(rate: float | None) -> str:
    """With one digit after the point; empty for None."""
    return "" if rate is None else f"{rate:.1%}"
