"""What was heard against what was said: error rates, languages, words where nobody speaks, times of words and segments."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jiwer

from whispercore.types import Word

from . import segment_times
from .datasets import Recording, Set
from .edits import Edits, edits, normalizer
from .espeak import TrueWord
from .peers import Heard

WITHIN = (0.1, 0.2, 0.5)
"""Seconds a word's time may be off, for the shares of words that are no further."""

Time = float | None


def plain(text: str) -> str:
    """Lower case, no punctuation, and nothing else: "one two" stays two words, which Whisper's own normalizer makes "12"."""
    return " ".join(re.sub(r"[^\w' ]|_", " ", text.lower().replace("’", "'")).split())


def errors(said: Sequence[str], heard: Sequence[str], language: str | None) -> dict[str, Any]:
    """Error rates over all recordings together, after `plain` and after Whisper's normalizer; a rate of no words at all is None."""
    return {"recordings": len(said)} | _rates(said, heard, plain) | {"whisper_normalizer": _rates(said, heard, normalizer(language))}


def _rates(said: Sequence[str], heard: Sequence[str], normalize: Callable[[str], str]) -> dict[str, Any]:
    references, hypotheses = ([normalize(text).strip() for text in texts] for texts in (said, heard))
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    return {
        "words": words.hits + words.substitutions + words.deletions,
        "wer": _rate(words),
        "cer": _rate(characters),
        "insertions": words.insertions,
        "deletions": words.deletions,
        "substitutions": words.substitutions,
    }


def _rate(counted: jiwer.WordOutput | jiwer.CharacterOutput) -> float | None:
    """Errors for every unit said. jiwer's own rate is of one unit where nothing was said."""
    units = counted.hits + counted.substitutions + counted.deletions
    return round((counted.substitutions + counted.deletions + counted.insertions) / units, 6) if units else None


def word_times(said: Sequence[Sequence[TrueWord]], heard: Sequence[Sequence[Word]]) -> dict[str, Any]:
    """How far off words begin and end, in seconds, over the words that were heard right and whose true times are known."""
    starts: list[float] = []
    ends: list[float] = []
    for truth, words in zip(said, heard, strict=True):
        for (_, start, end), (_, heard_start, heard_end) in _same_words(_units(truth), _units(words)):
            starts += _off(start, heard_start)
            ends += _off(end, heard_end)
    return {"words": sum(map(len, said)), "start": _spread(starts), "end": _spread(ends)}


_Unit = tuple[str, Time, Time]


def _units(words: Iterable[TrueWord | Word]) -> list[_Unit]:
    """Words as `plain` counts them: one that it splits keeps its start with its first part and its end with its last."""
    units: list[_Unit] = []
    for word in words:
        parts = plain(word.word).split()
        last = len(parts) - 1
        units += [(part, word.start if i == 0 else None, word.end if i == last else None) for i, part in enumerate(parts)]
    return units


def _same_words(said: list[_Unit], heard: list[_Unit]) -> list[tuple[_Unit, _Unit]]:
    """The words that the shortest way from one text to the other leaves as they are."""
    reference, hypothesis = (" ".join(word for word, *_ in units) for units in (said, heard))
    equal = [chunk for chunk in jiwer.process_words(reference, hypothesis).alignments[0] if chunk.type == "equal"]
    return [
        pair
        for chunk in equal
        for pair in zip(said[chunk.ref_start_idx : chunk.ref_end_idx], heard[chunk.hyp_start_idx : chunk.hyp_end_idx], strict=True)
    ]


def _off(truth: Time, heard: Time) -> list[float]:
    return [] if truth is None or heard is None else [abs(truth - heard)]


def _spread(offs: list[float]) -> dict[str, Any]:
    if not offs:
        return {"compared": 0}
    within = {str(limit): round(sum(off <= limit + 1e-9 for off in offs) / len(offs), 4) for limit in WITHIN}
    return {
        "compared": len(offs),
        "mean": round(statistics.mean(offs), 4),
        "median": round(statistics.median(offs), 4),
        "p90": round(sorted(offs)[math.ceil(0.9 * len(offs)) - 1], 4),
        "worst": round(max(offs), 3),
        "within": within,
    }


def of(heard_set: Set, heard: Sequence[Heard]) -> dict[str, Any]:
    """The figures of a set: its words, and as far as their truth is known its languages, word times and segment times."""
    pairs = list(zip(heard_set.recordings, heard, strict=True))
    found: dict[str, Any] = {"recordings": len(pairs)} | _sum(pairs).figures
    languages = sorted({one.language for one, _ in pairs})
    if len(languages) > 1:
        each = {name: _sum(pair for pair in pairs if pair[0].language == name) for name in languages}
        found["languages"] = {name: one.figures for name, one in each.items()}
        found["mean_rate"] = round(statistics.mean(one.rate or 0.0 for one in each.values()), 6)
    spoken = [pair for pair in pairs if pair[0].text]
    if spoken and not heard_set.told:
        found["language_right"] = sum(one.language == it.language for one, it in spoken)
        found["language_wrong"] = [f"{one.path.name}: {it.language}" for one, it in spoken if one.language != it.language]
    made_up = [f"{one.path.name}: {it.text[:100]}" for one, it in pairs if not one.text and it.text]
    if made_up:
        found["made_up"] = made_up
    if any(one.utterances for one, _ in pairs):
        found["segment_times"] = segment_times.of([(one, it.segments) for one, it in pairs if one.utterances])
    if heard_set.timed:
        found["word_times"] = word_times([one.words for one, _ in pairs], [it.words for _, it in pairs])
    return found


def _sum(pairs: Iterable[tuple[Recording, Heard]]) -> Edits:
    return sum((edits(one.text, it.text, one.language) for one, it in pairs), Edits())
