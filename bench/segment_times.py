"""Where segments begin, against where they should.

A reference utterance is cut in at one time, and its voice begins a little later: LibriSpeech keeps up to 0.6 s of quiet before it. A
segment that begins anywhere between the two is right; otherwise its error is how far it lies outside.

Compared are the utterances at whose first word a segment begins, by the alignment of words. An utterance that begins the recording or
follows a pause of a second or more is compared in any case: where no segment begins with its first word, the nearest segment's start is
taken. Segments that begin within an utterance have no truth and are left out.
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
"""Seconds that a segment's start may be off."""
PAUSE = 1.0
"""Seconds of silence after which a segment has to begin."""
NONE = 9999.0
"""Seconds off where nothing was heard at all."""
AROUND = 0.5
"""Seconds around an utterance in which a segment may be shown."""

_FRAME = SAMPLE_RATE // 100
_QUIETER = 10 ** (-25 / 20)
"""A voice has begun where four of five frames of 10 ms are louder than this share of the utterance's loud ones."""


def of(pairs: Iterable[tuple[Recording, Sequence[Utterance]]]) -> dict[str, Any]:
    """Figures over recordings and the segments that were heard in them.

    `within`: the share of compared starts no more than 0.2 s off; `within_cut`: the same against the utterance's cut alone.
    `shown_in_silence`: seconds in which a segment is shown half a second or more away from any utterance.
    """
    utterances, off, off_cut, silent = 0, list[float](), list[float](), 0.0
    for recording, segments in pairs:
        samples = read_samples(recording.path)
        utterances += len(recording.utterances)
        for one, start in _compared(recording, segments):
            onset = one.start + voice_onset(samples[round(one.start * SAMPLE_RATE) : round(one.end * SAMPLE_RATE)])
            off.append(max(one.start - start, start - onset, 0.0))
            off_cut.append(abs(start - one.start))
        silent += _shown_in_silence(recording.utterances, segments)
    found: dict[str, Any] = {"utterances": utterances, "compared": len(off), "shown_in_silence": round(silent, 2)}
    if off:
        found |= {"median": round(statistics.median(off), 3), "worst": round(max(off), 3)}
        found |= {"within": _share(off), "within_cut": _share(off_cut)}
    return found


def _share(off: Sequence[float]) -> float:
    return round(sum(one <= WITHIN + 1e-9 for one in off) / len(off), 4)


def voice_onset(samples: Samples) -> float:
    """Seconds from the beginning of an utterance, shape (n,), to where its voice begins; 0 when it is shorter than 50 ms."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    if len(frames) < 5:
        return 0.0
    loudness = np.sqrt(np.mean(np.square(frames), axis=1))
    loud = (loudness > _QUIETER * np.quantile(loudness, 0.95)).astype(int)
    return float(np.argmax(np.convolve(loud, np.ones(5, int), "valid") >= 4)) / 100


def _compared(recording: Recording, segments: Sequence[Utterance]) -> list[tuple[Utterance, float]]:
    """Each utterance that has a truth to compare, and the start that was heard."""
    begins = _beginnings(recording, segments)
    starts = sorted(one.start for one in segments)
    found, silent_since = list[tuple[Utterance, float]](), -PAUSE
    for number, one in enumerate(recording.utterances):
        if number in begins:
            found.append((one, begins[number]))
        elif one.start - silent_since >= PAUSE:
            nearest = min(starts, key=lambda start: abs(start - one.start), default=one.start + NONE)
            found.append((one, nearest))
        silent_since = one.end
    return found


def _beginnings(recording: Recording, segments: Sequence[Utterance]) -> dict[int, float]:
    """Utterances by number at whose first word a segment begins, and the segment's start."""
    said = [words_of(one.text, recording.language) for one in recording.utterances]
    heard = [words_of(one.text, recording.language) for one in segments]
    first_said, first_heard = ([0, *accumulate(map(len, some))][:-1] for some in (said, heard))
    if not any(said) or not any(heard):
        return {}
    reference, hypothesis = (" ".join(word for words in some for word in words) for some in (said, heard))
    where = {
        chunk.ref_start_idx + step: chunk.hyp_start_idx + step
        for chunk in jiwer.process_words(reference, hypothesis).alignments[0]
        if chunk.type in ("equal", "substitute")
        for step in range(chunk.ref_end_idx - chunk.ref_start_idx)
    }
    start_of = {first: one.start for first, one, words in zip(first_heard, segments, heard, strict=True) if words}
    return {number: start_of[where[first]] for number, first in enumerate(first_said) if said[number] and where.get(first) in start_of}


def _shown_in_silence(utterances: Sequence[Utterance], segments: Sequence[Utterance]) -> float:
    """Seconds of segments that lie further than `AROUND` from every utterance, at a resolution of 10 ms."""
    last = max((one.end for one in (*utterances, *segments)), default=0.0) + 1
    spoken, shown = (np.zeros(round(100 * last) + 1, bool) for _ in range(2))
    for one in utterances:
        spoken[max(0, round(100 * (one.start - AROUND))) : round(100 * (one.end + AROUND))] = True
    for one in segments:
        shown[round(100 * one.start) : round(100 * one.end)] = True
    return float((shown & ~spoken).sum()) / 100
