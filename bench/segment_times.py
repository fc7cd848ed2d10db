"""Errors of segment starts against reference utterances.

A reference utterance starts at its cut, and its voice up to 0.6 s later, because LibriSpeech keeps some silence before it. A segment
start between the two has no error; otherwise the error is the distance to the nearer of them.

An utterance is compared when a segment begins with its first word, by the alignment of words. The first utterance of a recording, and
an utterance after a pause of a second or more, is always compared: where no segment begins with its first word, the nearest segment
start is taken. Segments that begin within an utterance have no reference and are not compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import jiwer
import numpy as np

from whispercore.audio.recording import read_samples
from whispercore.types import SAMPLE_RATE, Samples

from .datasets import Recording, Utterance
from .edits import words_of

WITHIN = 0.2
"""The tolerance for a segment's start, in seconds."""
PAUSE = 1.0
"""Seconds of silence after which a segment must begin."""
NONE = 9999.0
"""The error in seconds where there is no segment at all."""
AROUND = 0.5
"""Seconds before and after an utterance in which a segment may be shown."""

_FRAME = SAMPLE_RATE // 100
_QUIETER = 10 ** (-25 / 20)
"""The voice begins where four of five frames of 10 ms are louder than this share of the utterance's 95th percentile."""


def of(pairs: Iterable[tuple[Recording, Sequence[Utterance]]]) -> dict[str, Any]:
    """Figures over recordings and the segments of their hypotheses.

    `within`: the share of compared starts no more than 0.2 s off; `within_cut`: the same against the utterance's cut alone.
    `shown_in_silence`: seconds in which a segment is shown half a second or more away from any utterance.
    """
    utterances, errors, cut_errors, silent = 0, list[float](), list[float](), 0.0
    for recording, segments in pairs:
        samples = read_samples(recording.path)
        utterances += len(recording.utterances)
        for utterance, start in _compared(recording, segments):
            spoken = samples[round(utterance.start * SAMPLE_RATE) : round(utterance.end * SAMPLE_RATE)]
            onset = utterance.start + voice_onset(spoken)
            errors.append(max(utterance.start - start, start - onset, 0.0))
            cut_errors.append(abs(start - utterance.start))
        silent += _shown_in_silence(recording.utterances, segments)
    figures: dict[str, Any] = {"utterances": utterances, "compared": len(errors), "shown_in_silence": round(silent, 2)}
    if errors:
        figures |= {"median": round(statistics.median(errors), 3), "worst": round(max(errors), 3)}
        figures |= {"within": _share_within(errors), "within_cut": _share_within(cut_errors)}
    return figures


def _share_within(errors: Sequence[float]) -> float:
    return round(sum(error <= WITHIN + 1e-9 for error in errors) / len(errors), 4)


def voice_onset(samples: Samples) -> float:
    """Seconds from the start of an utterance's samples, shape (n,), to the start of its voice; 0 when it is shorter
    than 50 ms."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    if len(frames) < 5:
        return 0.0
    loudness = np.sqrt(np.mean(np.square(frames), axis=1))
    loud = (loudness > _QUIETER * np.quantile(loudness, 0.95)).astype(int)
    return float(np.argmax(np.convolve(loud, np.ones(5, int), "valid") >= 4)) / 100


def _compared(recording: Recording, segments: Sequence[Utterance]) -> list[tuple[Utterance, float]]:
    """Every utterance that is compared, and the start of its segment."""
    begins = _beginnings(recording, segments)
    starts = sorted(segment.start for segment in segments)
    pairs, silent_since = list[tuple[Utterance, float]](), -PAUSE
    for number, utterance in enumerate(recording.utterances):
        if number in begins:
            pairs.append((utterance, begins[number]))
        elif utterance.start - silent_since >= PAUSE:
            errors = {start: abs(start - utterance.start) for start in starts}
            pairs.append((utterance, min(errors, key=errors.__getitem__, default=utterance.start + NONE)))
        silent_since = utterance.end
    return pairs


def _beginnings(recording: Recording, segments: Sequence[Utterance]) -> dict[int, float]:
    """The numbers of the utterances at whose first word a segment begins → the segment's start."""
    expected = [words_of(utterance.text, recording.language) for utterance in recording.utterances]
    actual = [words_of(segment.text, recording.language) for segment in segments]
    if not any(expected) or not any(actual):
        return {}
    first_expected, first_actual = ([0, *accumulate(map(len, texts))][:-1] for texts in (expected, actual))
    reference, hypothesis = (" ".join(word for words in texts for word in words) for texts in (expected, actual))
    aligned = {
        chunk.ref_start_idx + step: chunk.hyp_start_idx + step
        for chunk in jiwer.process_words(reference, hypothesis).alignments[0]
        if chunk.type in ("equal", "substitute")
        for step in range(chunk.ref_end_idx - chunk.ref_start_idx)
    }
    starts = {first: segment.start for first, segment, words in zip(first_actual, segments, actual, strict=True) if words}
    return {
        number: starts[aligned[first]] for number, first in enumerate(first_expected) if expected[number] and aligned.get(first) in starts
    }


def _shown_in_silence(utterances: Sequence[Utterance], segments: Sequence[Utterance]) -> float:
    """Seconds of segments further than `AROUND` from every utterance, at a resolution of 10 ms."""
    last = max((span.end for span in (*utterances, *segments)), default=0.0) + 1
    spoken, shown = (np.zeros(round(100 * last) + 1, bool) for _ in range(2))
    for utterance in utterances:
        spoken[max(0, round(100 * (utterance.start - AROUND))) : round(100 * (utterance.end + AROUND))] = True
    for segment in segments:
        shown[round(100 * segment.start) : round(100 * segment.end)] = True
    return float((shown & ~spoken).sum()) / 100
