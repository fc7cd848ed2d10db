"""From what was said to what was heard: insertions, deletions and substitutions, after Whisper's normalizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import jiwer
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})
"""Languages whose words have no spaces between them: their error rate counts characters, as Whisper's paper does."""


def words_of(text: str, language: str) -> list[str]:
    """The units that a language's error rate counts, after Whisper's normalizer: words, or characters where words have no spaces."""
    if language in SPACELESS:
        return list(_SPLIT(text).split())
    return list(normalizer(language)(text).split())


_SPLIT = BasicTextNormalizer(split_letters=True)


@cache
def normalizer(language: str | None) -> Callable[[str], str]:
    """Whisper's own for the language: English has one of its own, all others share the basic one."""
    normalize: Callable[[str], str] = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    return normalize


@dataclass(frozen=True, slots=True)
class Edits:
    """How many units were said, and what it takes to get from them to what was heard."""

    said: int = 0
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
        """Errors for every unit said; None where nothing was said."""
        return round(self.errors / self.said, 6) if self.said else None

    @property
    def figures(self) -> dict[str, Any]:
        """As results keep them; `words`: the units that were said."""
        counts = {"insertions": self.insertions, "deletions": self.deletions, "substitutions": self.substitutions}
        return {"words": self.said, "wer": self.rate} | counts


def edits(said: str, heard: str, language: str) -> Edits:
    """The edits of one recording, in the units of its language."""
    reference, hypothesis = words_of(said, language), words_of(heard, language)
    if not reference:
        return Edits(insertions=len(hypothesis))
    found = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return Edits(len(reference), found.insertions, found.deletions, found.substitutions)


def difference(said: str, heard: str, language: str, around: int = 4) -> str:
    """What was heard otherwise, with `around` equal words on each side: [-lost-], {+inserted+}, [-said-]{+heard+}."""
    reference, hypothesis = words_of(said, language), words_of(heard, language)
    parts: list[str] = []
    for kind, first, last, start, stop in SequenceMatcher(None, reference, hypothesis, autojunk=False).get_opcodes():
        lost, found = " ".join(reference[first:last]), " ".join(hypothesis[start:stop])
        if kind == "equal":
            equal = reference[first:last]
            parts.append(lost if len(equal) <= 2 * around else " ".join([*equal[:around], "…", *equal[-around:]]))
        else:
            parts.append(f"[-{lost}-]" * bool(lost) + f"{{+{found}+}}" * bool(found))
    return " ".join(parts)
