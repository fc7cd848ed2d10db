"""Figures of hypotheses against references: error rates, languages, words in recordings without speech, word and
segment times."""

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
from .peers import Hypothesis

WITHIN = (0.1, 0.2, 0.5)
"""Limits in seconds. The share of words whose time is off by no more is a figure for each."""

Time = float | None


def plain(text: str) -> str:
    """Lower case without punctuation. "one two" stays two words; Whisper's normalizer makes it "12"."""
    return " ".join(re.sub(r"[^\w' ]|_", " ", text.lower().replace("’", "'")).split())


def errors(references: Sequence[str], hypotheses: Sequence[str], language: str | None) -> dict[str, Any]:
    """Error rates over all recordings together, after `plain` and after Whisper's normalizer; None when the references
    are empty."""
    normalized = {"whisper_normalizer": _rates(references, hypotheses, normalizer(language))}
    return {"recordings": len(references)} | _rates(references, hypotheses, plain) | normalized


def _rates(references: Sequence[str], hypotheses: Sequence[str], normalize: Callable[[str], str]) -> dict[str, Any]:
    expected, actual = ([normalize(text).strip() for text in texts] for texts in (references, hypotheses))
    words = jiwer.process_words(expected, actual)
    characters = jiwer.process_characters(expected, actual)
    return {
        "words": words.hits + words.substitutions + words.deletions,
        "wer": _rate(words),
        "cer": _rate(characters),
        "insertions": words.insertions,
        "deletions": words.deletions,
        "substitutions": words.substitutions,
    }


def _rate(counted: jiwer.WordOutput | jiwer.CharacterOutput) -> float | None:
    """Errors per unit of the references. jiwer divides by 1 when the references are empty; here the rate is None."""
    units = counted.hits + counted.substitutions + counted.deletions
    return round((counted.substitutions + counted.deletions + counted.insertions) / units, 6) if units else None


def word_times(references: Sequence[Sequence[TrueWord]], hypotheses: Sequence[Sequence[Word]]) -> dict[str, Any]:
    """Errors of word starts and ends in seconds, over the correct words whose true times are known."""
    starts: list[float] = []
    ends: list[float] = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for (_, true_start, true_end), (_, start, end) in _correct(_units(reference), _units(hypothesis)):
            starts += _error(true_start, start)
            ends += _error(true_end, end)
    return {"words": sum(map(len, references)), "start": _spread(starts), "end": _spread(ends)}


_Unit = tuple[str, Time, Time]


def _units(words: Iterable[TrueWord | Word]) -> list[_Unit]:
    """Words as `plain` splits them. The first part of a split word keeps its start, the last part its end."""
    units: list[_Unit] = []
    for word in words:
        parts = plain(word.word).split()
        last = len(parts) - 1
        units += [(part, word.start if i == 0 else None, word.end if i == last else None) for i, part in enumerate(parts)]
    return units


def _correct(reference: list[_Unit], hypothesis: list[_Unit]) -> list[tuple[_Unit, _Unit]]:
    """The pairs of equal words in the alignment with the fewest edits."""
    expected, actual = (" ".join(word for word, *_ in units) for units in (reference, hypothesis))
    equal = [chunk for chunk in jiwer.process_words(expected, actual).alignments[0] if chunk.type == "equal"]
    return [
        pair
        for chunk in equal
        for pair in zip(
            reference[chunk.ref_start_idx : chunk.ref_end_idx], hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx], strict=True
        )
    ]


def _error(truth: Time, time: Time) -> list[float]:
    return [] if truth is None or time is None else [abs(truth - time)]


def _spread(errors: list[float]) -> dict[str, Any]:
    if not errors:
        return {"compared": 0}
    within = {str(limit): round(sum(error <= limit + 1e-9 for error in errors) / len(errors), 4) for limit in WITHIN}
    return {
        "compared": len(errors),
        "mean": round(statistics.mean(errors), 4),
        "median": round(statistics.median(errors), 4),
        "p90": round(sorted(errors)[math.ceil(0.9 * len(errors)) - 1], 4),
        "worst": round(max(errors), 3),
        "within": within,
    }


def of(dataset: Set, hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    """The figures of a set: error rates, and languages, word times and segment times where the references have them."""
    pairs = list(zip(dataset.recordings, hypotheses, strict=True))
    figures: dict[str, Any] = {"recordings": len(pairs)} | _edits(pairs).figures
    languages = sorted({recording.language for recording, _ in pairs})
    if len(languages) > 1:
        by_language = {name: _edits(pair for pair in pairs if pair[0].language == name) for name in languages}
        figures["languages"] = {name: total.figures for name, total in by_language.items()}
        figures["mean_rate"] = round(statistics.mean(total.rate or 0.0 for total in by_language.values()), 6)
    spoken = [pair for pair in pairs if pair[0].text]
    if spoken and not dataset.language_given:
        wrong = [(recording, hypothesis) for recording, hypothesis in spoken if recording.language != hypothesis.language]
        figures["language_right"] = len(spoken) - len(wrong)
        figures["language_wrong"] = [f"{recording.path.name}: {hypothesis.language}" for recording, hypothesis in wrong]
    made_up = [
        f"{recording.path.name}: {hypothesis.text[:100]}" for recording, hypothesis in pairs if not recording.text and hypothesis.text
    ]
    if made_up:
        figures["made_up"] = made_up
    with_utterances = [(recording, hypothesis.segments) for recording, hypothesis in pairs if recording.utterances]
    if with_utterances:
        figures["segment_times"] = segment_times.of(with_utterances)
    if dataset.timed:
        figures["word_times"] = word_times([recording.words for recording, _ in pairs], [hypothesis.words for _, hypothesis in pairs])
    return figures


def _edits(pairs: Iterable[tuple[Recording, Hypothesis]]) -> Edits:
    return sum((edits(recording.text, hypothesis.text, recording.language) for recording, hypothesis in pairs), Edits())
