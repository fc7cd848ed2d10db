"""What was heard against what was said: word and character error rates, words made up in silence, errors of word times."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import jiwer
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from whispercore.types import Word

from .datasets import Recording, Set
from .espeak import TrueWord
from .peers import Heard

WITHIN = (0.1, 0.2, 0.5)
"""Seconds a word's time may be off, for the shares of words that are no further."""

Time = float | None


def plain(text: str) -> str:
    """Lower case, no punctuation, and nothing else: "one two" stays two words, which Whisper's own normalizer makes "12"."""
    return " ".join(re.sub(r"[^\w' ]|_", " ", text.lower().replace("’", "'")).split())


@cache
def normalizer(language: str | None) -> Callable[[str], str]:
    """Whisper's own for the language: English has one of its own, all others share the basic one."""
    normalize: Callable[[str], str] = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    return normalize


def errors(said: Sequence[str], heard: Sequence[str], language: str | None) -> dict[str, Any]:
    """Error rates over all recordings together, after `plain` and after Whisper's normalizer; a rate of no words at all is None."""
    return {"recordings": len(said)} | _rates(said, heard, plain) | {"whisper_normalizer": _rates(said, heard, normalizer(language))}


SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})
"""Languages whose words have no spaces between them: their error rate is of characters, as in Whisper's paper."""


def words_of(text: str, language: str) -> list[str]:
    """The units that a language's error rate counts, after Whisper's normalizer: words, or characters where words have no spaces."""
    if language in SPACELESS:
        return list(_SPLIT(text).split())
    return list(normalizer(language)(text).split())


_SPLIT = BasicTextNormalizer(split_letters=True)


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


def of(heard_set: Set, heard: Sequence[Heard]) -> dict[str, Any]:
    """The figures of a set: its words, and as far as their truth is known its languages, word times and segment times."""
    pairs = list(zip(heard_set.recordings, heard, strict=True))
    found: dict[str, Any] = {"recordings": len(pairs)} | _sum(pairs).figures
    languages = sorted({one.language for one, _ in pairs})
    if len(languages) > 1:
        found["languages"] = {name: _sum([pair for pair in pairs if pair[0].language == name]).figures for name in languages}
    if not heard_set.told:
        found["language_right"] = sum(one.language == it.language for one, it in pairs)
        wrong = [f"{one.path.name}: {one.language}, heard as {it.language}" for one, it in pairs if one.language != it.language]
        found["language_wrong"] = wrong
    if heard_set.timed:
        found["word_times"] = word_times([one.words for one, _ in pairs], [it.words for _, it in pairs])
    return found


def _sum(pairs: Iterable[tuple[Recording, Heard]]) -> Edits:
    return sum((edits(one.text, it.text, one.language) for one, it in pairs), Edits())
