"""What accuracy was to be reached, and what of the large-v3-turbo study is reproduced, by the figures of accuracy.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from whispercore.catalogue import ENGINES

from .table import markdown

OURS, OURS_EXACT = "ct2:chunked:int8", "ct2:chunked:float32"
REFERENCE, BATCHED, PLAIN = "openai-whisper:sequential:float32", "faster-whisper:batched:int8", "faster-whisper:sequential:float32"
INT8 = {
    OURS: OURS_EXACT,
    "torch:chunked:int8_float32": "torch:chunked:float32",
    "onnx:chunked:int8": "onnx:chunked:float32",
    "onnx:chunked:uint8": "onnx:chunked:float32",
    "sherpa:chunked:int8": "sherpa:chunked:float32",
}
"""Rows of 8-bit weights, and the same in float32."""
STUDY_ROWS = (
    "torch:sequential:float32",
    "torch:chunked:float32",
    "torch:chunked:bfloat16",
    "torch:chunked:int8_float32",
    "onnx:chunked:float32",
    "onnx:chunked:int8",
    "onnx:chunked:uint8",
    PLAIN,
    BATCHED,
)
"""The variants of the large-v3-turbo study."""

TITLES = {"noisy-10dB": "noise at 10 dB", "noisy-0dB": "at 0 dB", "word-times": "word times"}
WORDS = (
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
NEAR, EXACT = 0.1, 0.2
"""Points of error rate: how close chunked is to openai-whisper, and int8 to float32."""
WHOLE_RATE = 0.052
SEGMENTS, WORD_SECONDS = 0.95, 0.08

Row = dict[str, Any]


def goals(rows: list[Row]) -> Iterator[str]:
    """What was to be reached, each with its figures."""
    by_name = {row["row"]: row for row in rows}
    ours = by_name.get(OURS)
    if not ours or REFERENCE not in by_name:
        return
    goals = [
        *_compare("chunked, the default, within 0.1 points of openai-whisper", ours, by_name[REFERENCE], NEAR),
        *(_compare("chunked never worse than faster-whisper batched", ours, by_name[BATCHED], 0.0) if BATCHED in by_name else ()),
        *(
            goal
            for name, exact in INT8.items()
            if name in by_name and exact in by_name
            for goal in _compare(f"{name} within 0.2 points of float32", by_name[name], by_name[exact], EXACT)
        ),
        *_single(ours, by_name[REFERENCE]),
    ]
    if goals:
        yield "Goals:\n\n" + "".join(f"- {goal}\n" for goal in goals)


def _compare(goal: str, ours: Row, other: Row, points: float) -> Iterator[str]:
    pairs = [(name, rate_of(ours, name), rate_of(other, name)) for name in WORDS]
    known = [(name, mine, theirs) for name, mine, theirs in pairs if mine is not None and theirs is not None]
    missed = [
        f"{TITLES.get(name, name)} {mine:.1%} against {theirs:.1%}" for name, mine, theirs in known if mine > theirs + points / 100 + 5e-5
    ]
    if known:
        of = f"{len(known) - len(missed)} of {len(known)} sets"
        yield f"{goal}: {of}, {_verdict(not missed)}" + (f": {'; '.join(missed)}" if missed else "")


def _single(ours: Row, reference: Row) -> Iterator[str]:
    if whole := find(ours, "whole"):
        yield f"all of test-clean at most {WHOLE_RATE:.1%}: {whole['wer']:.2%}, {_verdict(whole['wer'] <= WHOLE_RATE)}"
    found = [seen["segment_times"] for name in ("chapters", "silence") if (seen := find(ours, name)) and seen["segment_times"]["compared"]]
    if found:
        share = pooled(found, "within")
        yield f"segment starts within 0.2 s of the truth for 95 %: {share:.1%}, {_verdict(share >= SEGMENTS)}"
    if (seen := find(ours, "word-times")) and (start := seen["word_times"]["start"])["compared"]:
        yield f"words within 80 ms in the median: {1000 * start['median']:.0f} ms, {_verdict(start['median'] <= WORD_SECONDS)}"
    mine, theirs = find(ours, "languages"), find(reference, "languages")
    if mine and theirs:
        right = f"{mine['language_right']} against {theirs['language_right']} of {mine['recordings']}"
        yield f"the language right as often as by openai-whisper: {right}, {_verdict(mine['language_right'] >= theirs['language_right'])}"
    if sounds := find(ours, "sounds"):
        yield f"no word in three hours without speech: {sounds['insertions']}, {_verdict(sounds['insertions'] == 0)}"


def study(rows: list[Row]) -> Iterator[str]:
    """The comparison of the large-v3-turbo study, on LibriSpeech test-clean: variants by error rate, time and memory."""
    heard = {row["row"]: row for row in rows if "test-clean" in row["sets"]}
    base = heard.get(STUDY_ROWS[0])
    if not base:
        return
    first = base["sets"]["test-clean"]
    titles = {"test-clean": "---", "WER": "--:", "time × torch": "--:", "processor × torch": "--:", "peak memory": "--:"}
    cells = []
    for name in STUDY_ROWS:
        if seen := heard.get(name, {"sets": {}})["sets"].get("test-clean"):
            times = (f"{seen[kind] / first[kind]:.2f}" for kind in ("seconds", "cpu_seconds"))
            cells.append((row_name(heard[name]), percent(seen["wer"]), *times, f"{seen['peak_rss_mb']:.0f} MB"))
    yield markdown(titles, cells)
    if PLAIN in heard and REFERENCE in heard:
        plain, reference = (heard[name]["sets"]["test-clean"]["wer"] for name in (PLAIN, REFERENCE))
        yield (
            f"The study's faster-whisper plain mode had {0.145 / 0.031:.1f} times the word error rate of PyTorch (0.145 to 0.031). "
            f"Here it has {plain:.1%} beside openai-whisper's {reference:.1%}: {plain / reference:.1f} times.\n"
        )


def row_name(row: Row) -> str:
    """As the tables show it."""
    parts = ["**this server**, " * (row["runner"] in ENGINES) + row["runner"], row["mode"], row["compute_type"]]
    parts += [f"{row['together']} at once"] * (row["together"] > 1) + [f"{row['beam_size']} beams"] * bool(row["beam_size"])
    return ", ".join(parts)


def find(row: Row, name: str) -> Any:
    """The figures of a set, None when the row has not heard it."""
    return row["sets"].get(name)


def rate_of(row: Row, name: str) -> float | None:
    """The set's error rate; of several languages the mean."""
    rate: float | None = (find(row, name) or {}).get("mean_rate" if name.startswith("languages") else "wer")
    return rate


def percent(rate: float | None) -> str:
    """With one digit after the point; empty for none."""
    return "" if rate is None else f"{rate:.1%}"


def pooled(found: list[dict[str, Any]], name: str) -> float:
    """A share over the sets together, each weighted by how much it compared."""
    return float(sum(one[name] * one["compared"] for one in found) / sum(one["compared"] for one in found))


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"
