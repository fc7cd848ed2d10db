"""What was heard against what was said: word and character error rates, words made up in silence, errors of word times."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jiwer
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from whispercore.types import Word

from .espeak import TrueWord

WITHIN = (0.1, 0.2, 0.5)
"""Seconds a word's time may be off, for the shares of words that are no further."""

Time = float | None


def plain(text: str) -> str:
    """Lower case, no punctuation, and nothing else: "one two" stays two words, which Whisper's own normalizer makes "12"."""
    return " ".join(re.sub(r"[^\w' ]|_", " ", text.lower().replace("’", "'")).split())


def normalizer(language: str | None) -> Callable[[str], str]:
    """Whisper's own for the language: English has one of its own, all others share the basic one."""
    normalize: Callable[[str], str] = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    return normalize


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


def made_up(heard: Sequence[str]) -> dict[str, int]:
    """Words heard where nobody speaks."""
    counts = [len(plain(text).split()) for text in heard]
    return {"recordings": len(heard), "recordings_with_words": sum(count > 0 for count in counts), "words": sum(counts)}


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
        "worst": round(max(offs), 3),
        "within": within,
    }
