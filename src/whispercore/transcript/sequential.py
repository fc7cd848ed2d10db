"""openai-whisper's own strategy, `whisper.transcribe`, as tasks: one window after the other, each begun where the last words ended.

A recording's windows wait for each other, but share the engine's batches with those of every other request. The audio is read twice:
once for its length, its loudest moment, by which openai-whisper scales the whole spectrogram, and where somebody speaks; then window
by window. So no recording is ever in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..audio.cutting import speech
from ..audio.log_mel import loudest
from ..audio.recording import Recording
from ..options import Options
from ..tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer, complete_segments
from ..types import FRAMES_PER_SECOND, HOP, MAX_PROMPT, WINDOW_FRAMES, Decoded, Dropped, Samples, Segment, Window
from . import words
from .chunked import (
    DetectedLanguage,
    PartialTranscript,
    PartTask,
    PartTasks,
    initial_tokens,
    is_silence,
    prompt_tokens,
    silence,
    with_fallback,
)
from .hallucinations import as_dropped, find_hallucination, first_with_words, is_anomalous
from .segments import text_segment

_FRAMES_PER_TIMESTAMP = round(SECONDS_PER_TIMESTAMP * FRAMES_PER_SECOND)
_BEFORE = 2 * HOP
_AFTER = 200
"""Samples around a window that its first and last spectrogram frames see: two hops before, half a transform after."""
_RESET_TEMPERATURE = 0.5
"""Text decoded above it is not told to the next window."""


def sequential(
    open_recording: Callable[[], Recording], options: Options, heard: DetectedLanguage, tokenizer: Tokenizer, n_mels: int
) -> PartTasks:
    """The tasks of a recording, which `open_recording` opens once for each pass; each begins when the one before has returned."""
    with open_recording() as recording:
        survey = yield from _survey(recording, options, n_mels)
    transcription = _Transcription(survey, options, heard, tokenizer)
    recording = open_recording()
    yield from transcription.tasks(_Tape(recording.blocks()))


@dataclass(frozen=True, slots=True)
class Survey:
    """What the first pass tells: `frames` of 10 ms in all, the `loudest` log10 mel power, the clips to transcribe, in frames."""

    frames: int
    loudest: float
    clips: tuple[tuple[int, int], ...]


def _survey(recording: Recording, options: Options, n_mels: int) -> Generator[None, None, Survey]:
    """Read a recording through; yields between its blocks."""
    meter = _Meter(n_mels)
    spans: list[tuple[float, float]] = []
    for span in speech(meter.through(recording.blocks()), options):
        if span:
            spans.append(span)
        yield None
    frames = meter.samples // HOP
    points = ((round(start * FRAMES_PER_SECOND), min(round(end * FRAMES_PER_SECOND), frames)) for start, end in spans)
    return Survey(frames, meter.loudest, tuple(points))


class _Meter:
    """The loudest moment and the length of what runs through it."""

    def __init__(self, n_mels: int) -> None:
        self.samples = 0
        self.loudest = -np.inf
        self._n_mels = n_mels

    def through(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """The blocks, unchanged."""
        tape = _Tape(self._counted(blocks))
        seek = 0
        for block in tape.blocks():
            while tape.end >= (seek + WINDOW_FRAMES) * HOP + _AFTER:
                self._measure(*tape.window(seek, WINDOW_FRAMES))
                seek += WINDOW_FRAMES
            yield block
        while seek * HOP < self.samples:
            frames = min(WINDOW_FRAMES, -(-(self.samples - seek * HOP) // HOP))
            self._measure(*tape.window(seek, frames))
            seek += frames

    def _counted(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self.samples += len(block)
            yield block

    def _measure(self, samples: Samples, margin: tuple[int, int]) -> None:
        self.loudest = max(self.loudest, loudest(samples, margin, self._n_mels))


class _Tape:
    """A recording's samples around the current window, read on as far as they are needed; there is no way back."""

    def __init__(self, blocks: Iterable[Samples]) -> None:
        self._blocks = iter(blocks)
        self._held = np.zeros(0, np.float32)
        self._start = 0

    @property
    def end(self) -> int:
        """The sample after the last one read."""
        return self._start + len(self._held)

    def blocks(self) -> Iterator[Samples]:
        """Read on block by block."""
        for block in self._blocks:
            self._held = np.concatenate([self._held, block])
            yield block

    def window(self, seek: int, frames: int) -> tuple[Samples, tuple[int, int]]:
        """`frames` frames from the frame `seek` on, at most to the end, with the samples around them, and how many those are."""
        begin, end = seek * HOP, (seek + frames) * HOP
        blocks = self.blocks()
        while self.end < end + _AFTER and next(blocks, None) is not None:
            pass
        before = min(begin, _BEFORE)
        self._drop(begin - before)
        end = min(end, self.end)
        after = min(_AFTER, self.end - end)
        return self._held[: before + end - begin + after].copy(), (before, after)

    def _drop(self, until: int) -> None:
        self._held = self._held[until - self._start :]
        self._start = until


class _Transcription:
    """The state that openai-whisper's loop carries from window to window: where to read on, the text so far, where speech ended.

    `_said_until`: the end of the last word told. openai-whisper's words may overlap a little; ours are told in order.
    """

    def __init__(self, survey: Survey, options: Options, heard: DetectedLanguage, tokenizer: Tokenizer) -> None:
        self._survey, self._options, self._heard, self._tokenizer = survey, options, heard, tokenizer
        self._seek = 0
        self._initial = initial_tokens(options, tokenizer)
        self._tokens = list(self._initial)
        self._told_from = 0
        self._last_speech = 0.0
        self._said_until = 0.0

    def tasks(self, tape: _Tape) -> PartTasks:
        """One task a window."""
        for start, end in self._survey.clips:
            self._seek = start
            while self._seek < end:
                frames = min(WINDOW_FRAMES, end - self._seek)
                samples, margin = tape.window(self._seek, frames)
                yield self._strand(samples, margin, frames)

    def _strand(self, samples: Samples, margin: tuple[int, int], frames: int) -> PartTask:
        options, start = self._options, self._seek / FRAMES_PER_SECOND
        language = None if options.multilingual else self._heard.language
        decoding = options.decoding(temperature=options.temperature[0], prompt=self._prompt(), language=language)
        window = Window(samples, start, decoding, margin, self._survey.loudest)
        decoded = yield from with_fallback(window, options)
        if is_silence(decoded, options):
            self._seek += frames
            return PartialTranscript(self._seek / FRAMES_PER_SECOND, dropped=silence(decoded, start, start + frames / FRAMES_PER_SECOND))
        seek = self._seek
        found, advance = split(decoded, seek, frames, self._tokenizer)
        self._seek = seek + advance
        dropped: list[Dropped] = []
        if options.word_timestamps:
            found = self._with_words(found, decoded, seek, frames)
            if (threshold := options.hallucination_silence_threshold) is not None:
                if self._begins_amid_silence(found, seek, threshold):
                    return PartialTranscript(self._seek / FRAMES_PER_SECOND)
                found, dropped = self._without_hallucinations(found, seek, frames, threshold)
            self._last_speech = _last_end(found) or self._last_speech
        self._seek = max(self._seek, seek + 1)  # whatever the model says, the end is reached
        language = decoded.language if options.multilingual else None
        found = [replace(one, language=language) for one in found if one.start != one.end and one.text.strip()]
        if found:
            self._heard.settle(decoded)
        self._tokens += [token for segment in found for token in segment.tokens]
        if options.word_timestamps:
            found = words.clamp(found, self._said_until, self._survey.frames / FRAMES_PER_SECOND)
            self._said_until = found[-1].end if found else self._said_until
        if not options.condition_on_previous_text or decoded.temperature > _RESET_TEMPERATURE:
            self._told_from = len(self._tokens)
        return PartialTranscript(self._seek / FRAMES_PER_SECOND, tuple(found), tuple(dropped))

    def _prompt(self) -> tuple[int, ...]:
        if not self._options.carry_initial_prompt:
            return prompt_tokens(self._options, self._tokenizer, tuple(self._tokens[self._told_from :]))
        previous = self._tokens[max(len(self._initial), self._told_from) :]
        room = MAX_PROMPT - len(self._initial)
        return prompt_tokens(self._options, self._tokenizer, (*self._initial, *(previous[-room:] if room > 0 else ())))

    def _with_words(self, found: list[Segment], decoded: Decoded, seek: int, frames: int) -> list[Segment]:
        """Times for the words; the next window begins after the last one, unless the text says that silence follows."""
        options, start = self._options, seek / FRAMES_PER_SECOND
        found = words.add_words(
            found,
            decoded,
            start=start,
            tokenizer=self._tokenizer,
            last_speech=self._last_speech,
            prepend=options.prepend_punctuations,
            append=options.append_punctuations,
        )
        last_end = _last_end(found)
        if last_end is None or last_end <= start or _ends_with_single_timestamp(decoded.tokens, self._tokenizer.timestamp_begin):
            return found
        self._seek = round(last_end * FRAMES_PER_SECOND)
        threshold = options.hallucination_silence_threshold
        if threshold is not None and start + WINDOW_FRAMES / FRAMES_PER_SECOND - last_end <= threshold:
            self._seek = seek + frames
        return found

    def _begins_amid_silence(self, found: Sequence[Segment], seek: int, threshold: float) -> bool:
        """Whether the first words are strange and come late: then the window is read again from there."""
        first = first_with_words(found)
        gap = first.start - seek / FRAMES_PER_SECOND if first and is_anomalous(first) else 0.0
        if gap <= threshold:
            return False
        self._seek = seek + max(1, round(gap * FRAMES_PER_SECOND))
        return True

    def _without_hallucinations(
        self, found: list[Segment], seek: int, frames: int, threshold: float
    ) -> tuple[list[Segment], list[Dropped]]:
        """Cut the segments off at the first hallucination; the next window begins there, a second on at least."""
        start = seek / FRAMES_PER_SECOND
        index = find_hallucination(
            found,
            start=start,
            end=start + frames / FRAMES_PER_SECOND,
            window_end=start + WINDOW_FRAMES / FRAMES_PER_SECOND,
            last_speech=self._last_speech,
            threshold=threshold,
        )
        if index is None:
            return found, []
        segment = found[index]
        self._seek = round(max(start + 1, segment.start) * FRAMES_PER_SECOND)
        if self._survey.frames / FRAMES_PER_SECOND - segment.end < threshold:
            self._seek = self._survey.frames
        return found[:index], [as_dropped(one) for one in found[index:]]


def split(decoded: Decoded, seek: int, frames: int, tokenizer: Tokenizer) -> tuple[list[Segment], int]:
    """The segments of a window of `frames` frames at the frame `seek`, and how many frames on the next one begins.

    Where two timestamps follow each other one segment ends and the next begins; after the last such pair the text is unfinished, and
    the next window begins there. Without a pair the window is one segment.
    """
    start, begin, tokens = seek / FRAMES_PER_SECOND, tokenizer.timestamp_begin, decoded.tokens
    used = complete_segments(tokens, begin)
    probs = iter(decoded.token_probs)
    if not _has_pair(tokens, begin):
        times = [token for token in tokens if token >= begin]
        end = (times[-1] - begin) * SECONDS_PER_TIMESTAMP if times and times[-1] != begin else frames / FRAMES_PER_SECOND
        return [text_segment(decoded, tokens, start, start + end, seek, tokenizer, probs)], frames
    found = [
        text_segment(
            decoded,
            piece,
            start + (piece[0] - begin) * SECONDS_PER_TIMESTAMP,
            start + (piece[-1] - begin) * SECONDS_PER_TIMESTAMP,
            seek,
            tokenizer,
            probs,
        )
        for piece in _at_pairs(tokens[:used], begin)
    ]
    finished = _ends_with_single_timestamp(tokens, begin)
    return found, frames if finished else (tokens[used - 1] - begin) * _FRAMES_PER_TIMESTAMP


def _has_pair(tokens: Sequence[int], begin: int) -> bool:
    return any(early >= begin and late >= begin for early, late in pairwise(tokens))


def _at_pairs(tokens: Sequence[int], begin: int) -> list[tuple[int, ...]]:
    """The tokens cut between any two timestamps that follow each other."""
    cuts = [i for i in range(1, len(tokens)) if tokens[i - 1] >= begin and tokens[i] >= begin]
    return [tuple(tokens[a:b]) for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]


def _ends_with_single_timestamp(tokens: Sequence[int], begin: int) -> bool:
    return len(tokens) >= 2 and tokens[-2] < begin <= tokens[-1]


def _last_end(segments: Sequence[Segment]) -> float | None:
    """The end of the last word, or of the last segment when there are no words."""
    ends = (word.end for segment in reversed(segments) for word in reversed(segment.words))
    return next(ends, segments[-1].end if segments else None)
