"""Insertions, deletions and substitutions between a reference and a hypothesis, after Whisper's normalizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import jiwer
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})
"""Languages without spaces between words: their error rate counts characters, as in Whisper's paper."""


def words_of(text: str, language: str) -> list[str]:
    """The text in the units that the language's error rate counts: normalized words, or characters for `SPACELESS`."""
    if language in SPACELESS:
        return list(_SPLIT(text).split())
    return list(normalizer(language)(text).split())


_SPLIT = BasicTextNormalizer(split_letters=True)


@cache
def normalizer(language: str | None) -> Callable[[str], str]:
    """Whisper's normalizer: the English one, or the basic one for all other languages."""
    normalize: Callable[[str], str] = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    return normalize


@dataclass(frozen=True, slots=True)
class Edits:
    """The number of units in the reference, and the edits that turn it into the hypothesis. Instances add up."""

    words: int = 0
    insertions: int = 0
    deletions: int = 0
    substitutions: int = 0

    def __add__(self, other: Edits) -> Edits:
        return Edits(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def errors(self) -> int:
        """Insertions, deletions and substitutions."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float | None:
        """Errors per unit of the reference; None for an empty reference."""
        return round(self.errors / self.words, 6) if self.words else None

    @property
    def figures(self) -> dict[str, Any]:
        """The counts and the rate by their names in the results."""
        counts = {"insertions": self.insertions, "deletions": self.deletions, "substitutions": self.substitutions}
        return {"words": self.words, "wer": self.rate} | counts


def edits(reference: str, hypothesis: str, language: str) -> Edits:
    """The edits of one recording, in the units of its language."""
    expected, actual = words_of(reference, language), words_of(hypothesis, language)
    if not expected:
        return Edits(insertions=len(actual))
    output = jiwer.process_words(" ".join(expected), " ".join(actual))
    return Edits(len(expected), output.insertions, output.deletions, output.substitutions)


def difference(reference: str, hypothesis: str, language: str, context: int = 4) -> str:
    """The differences with `context` equal words on each side: [-deleted-], {+inserted+},
    [-reference-]{+hypothesis+}."""
    expected, actual = words_of(reference, language), words_of(hypothesis, language)
    parts: list[str] = []
    for kind, first, last, start, stop in SequenceMatcher(None, expected, actual, autojunk=False).get_opcodes():
        deleted, inserted = " ".join(expected[first:last]), " ".join(actual[start:stop])
        if kind == "equal":
            equal = expected[first:last]
            parts.append(deleted if len(equal) <= 2 * context else " ".join([*equal[:context], "…", *equal[-context:]]))
        else:
            parts.append(f"[-{deleted}-]" * bool(deleted) + f"{{+{inserted}+}}" * bool(inserted))
    return " ".join(parts)
