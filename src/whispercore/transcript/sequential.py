"""Strategy `sequential`: openai-whisper's own loop (`whisper.transcribe`) as tasks.

Each window starts where the last one's text ended.

The windows of one recording depend on each other, but share batches with the windows of other requests. The audio is
read twice. The first pass finds its length, its loudest frame, by which openai-whisper scales the whole spectrogram,
and its speech. The second pass reads window by window. A recording is never in memory as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from ..audio import reading
from ..audio.reading import OpenRecording
from ..audio.survey import SampleBuffer, Survey
from ..options import Options
from ..tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer, complete_segments
from ..types import FRAMES_PER_SECOND, MAX_PROMPT, WINDOW_FRAMES, Decoded, Dropped, Samples, Segment, Window
from . import words
from .fallback import dropped_as_silence, is_silence, with_fallback
from .hallucinations import as_dropped, find_hallucination, first_with_words, is_anomalous
from .prompt import initial_tokens, prompt_tokens
from .segments import text_segment
from .tasks import PartialTranscript, PartTask, PartTasks, RecordingLanguage

_FRAMES_PER_TIMESTAMP = round(SECONDS_PER_TIMESTAMP * FRAMES_PER_SECOND)
_RESET_TEMPERATURE = 0.5
"""Text decoded at a higher temperature is not part of the next window's prompt."""


def sequential(
    open_recording: Callable[[], OpenRecording],
    options: Options,
    detected: RecordingLanguage,
    tokenizer: Tokenizer,
    n_mels: int,
) -> PartTasks:
    """The tasks of a recording, one per window. Take a task only when the one before has returned.

    `open_recording` is called once for each of the two passes.
    """
    with contextlib.closing(open_recording()) as recording:
        items = recording.read(reading.survey(options, n_mels))
        while (survey := next(items)) is None:
            yield None
    loop = _TranscriptionLoop(survey, options, detected, tokenizer)
    yield from loop.tasks(SampleBuffer(open_recording().read(reading.blocks)))


class _TranscriptionLoop:
    """The state that openai-whisper's loop carries from window to window: position, text so far, end of speech.

    `_words_end`: the end of the last word in the transcript. openai-whisper's words may overlap a little; ours do not.
    """

    def __init__(self, survey: Survey, options: Options, detected: RecordingLanguage, tokenizer: Tokenizer) -> None:
        self._survey, self._options, self._detected, self._tokenizer = survey, options, detected, tokenizer
        self._seek = 0
        self._initial = initial_tokens(options, tokenizer)
        self._tokens = list(self._initial)
        self._prompt_start = 0
        self._last_speech = 0.0
        self._words_end = 0.0

    def tasks(self, buffer: SampleBuffer) -> PartTasks:
        """One task per window."""
        for start, end in self._survey.clips:
            self._seek = start
            while self._seek < end:
                frames = min(WINDOW_FRAMES, end - self._seek)
                samples, margin = buffer.window(self._seek, frames)
                yield self._task(samples, margin, frames)

    def _task(self, samples: Samples, margin: tuple[int, int], frames: int) -> PartTask:
        options, start = self._options, self._seek / FRAMES_PER_SECOND
        language = None if options.multilingual else self._detected.language
        decoding = options.decoding(temperature=options.temperature[0], prompt=self._prompt(), language=language)
        window = Window(samples, start, decoding, margin, self._survey.loudest)
        decoded = yield from with_fallback(window, options)
        if is_silence(decoded, options):
            self._seek += frames
            dropped_text = dropped_as_silence(decoded, start, start + frames / FRAMES_PER_SECOND)
            return PartialTranscript(self._seek / FRAMES_PER_SECOND, dropped=dropped_text)
        seek = self._seek
        segments, advance = split(decoded, seek, frames, self._tokenizer)
        self._seek = seek + advance
        dropped: list[Dropped] = []
        if options.word_timestamps:
            segments = self._with_words(segments, decoded, seek, frames)
            if (threshold := options.hallucination_silence_threshold) is not None:
                if self._skips_leading_silence(segments, seek, threshold):
                    return PartialTranscript(self._seek / FRAMES_PER_SECOND)
                segments, dropped = self._without_hallucinations(segments, seek, frames, threshold)
            self._last_speech = _last_end(segments) or self._last_speech
        self._seek = max(self._seek, seek + 1)  # always advance, whatever the model decodes
        language = decoded.language if options.multilingual else None
        segments = [replace(segment, language=language) for segment in segments if segment.start != segment.end and segment.text.strip()]
        if segments:
            self._detected.settle(decoded)
        self._tokens += [token for segment in segments for token in segment.tokens]
        if options.word_timestamps:
            segments = words.clamp(segments, self._words_end, self._survey.frames / FRAMES_PER_SECOND)
            self._words_end = segments[-1].end if segments else self._words_end
        if not options.condition_on_previous_text or decoded.temperature > _RESET_TEMPERATURE:
            self._prompt_start = len(self._tokens)
        return PartialTranscript(self._seek / FRAMES_PER_SECOND, tuple(segments), tuple(dropped))

    def _prompt(self) -> tuple[int, ...]:
        if not self._options.carry_initial_prompt:
            return prompt_tokens(self._options, self._tokenizer, tuple(self._tokens[self._prompt_start :]))
        previous = self._tokens[max(len(self._initial), self._prompt_start) :]
        room = MAX_PROMPT - len(self._initial)
        return prompt_tokens(self._options, self._tokenizer, (*self._initial, *(previous[-room:] if room > 0 else ())))

    def _with_words(self, segments: list[Segment], decoded: Decoded, seek: int, frames: int) -> list[Segment]:
        """Add words. The next window starts after the last one, unless a lone timestamp says that silence follows."""
        options, start = self._options, seek / FRAMES_PER_SECOND
        segments = words.add_words(
            segments,
            decoded,
            start=start,
            tokenizer=self._tokenizer,
            last_speech=self._last_speech,
            prepend=options.prepend_punctuations,
            append=options.append_punctuations,
        )
        last_end = _last_end(segments)
        if last_end is None or last_end <= start or _ends_with_single_timestamp(decoded.tokens, self._tokenizer.timestamp_begin):
            return segments
        self._seek = round(last_end * FRAMES_PER_SECOND)
        threshold = options.hallucination_silence_threshold
        if threshold is not None and start + WINDOW_FRAMES / FRAMES_PER_SECOND - last_end <= threshold:
            self._seek = seek + frames
        return segments

    def _skips_leading_silence(self, segments: Sequence[Segment], seek: int, threshold: float) -> bool:
        """Whether the first words are anomalous and come late: then the next window starts at them."""
        first = first_with_words(segments)
        gap = first.start - seek / FRAMES_PER_SECOND if first and is_anomalous(first) else 0.0
        if gap <= threshold:
            return False
        self._seek = seek + max(1, round(gap * FRAMES_PER_SECOND))
        return True

    def _without_hallucinations(
        self, segments: list[Segment], seek: int, frames: int, threshold: float
    ) -> tuple[list[Segment], list[Dropped]]:
        """Drop segments from the first hallucination on; the next window starts there, at least 1 s later."""
        start = seek / FRAMES_PER_SECOND
        index = find_hallucination(
            segments,
            start=start,
            end=start + frames / FRAMES_PER_SECOND,
            window_end=start + WINDOW_FRAMES / FRAMES_PER_SECOND,
            last_speech=self._last_speech,
            threshold=threshold,
        )
        if index is None:
            return segments, []
        hallucination = segments[index]
        self._seek = round(max(start + 1, hallucination.start) * FRAMES_PER_SECOND)
        if self._survey.frames / FRAMES_PER_SECOND - hallucination.end < threshold:
            self._seek = self._survey.frames
        return segments[:index], [as_dropped(segment) for segment in segments[index:]]


def split(decoded: Decoded, seek: int, frames: int, tokenizer: Tokenizer) -> tuple[list[Segment], int]:
    """The segments of a window of `frames` frames at frame `seek`, and the number of frames from there to the next
    window.

    Two timestamps in a row end one segment and start the next. Text after the last such pair is incomplete, and the
    next window starts there. A window without such a pair is one segment.
    """
    start, begin, tokens = seek / FRAMES_PER_SECOND, tokenizer.timestamp_begin, decoded.tokens
    complete = complete_segments(tokens, begin)
    probs = iter(decoded.token_probs)
    if not _has_pair(tokens, begin):
        times = [token for token in tokens if token >= begin]
        end = (times[-1] - begin) * SECONDS_PER_TIMESTAMP if times and times[-1] != begin else frames / FRAMES_PER_SECOND
        return [text_segment(decoded, tokens, start, start + end, seek, tokenizer, probs)], frames
    segments = [
        text_segment(
            decoded,
            piece,
            start + (piece[0] - begin) * SECONDS_PER_TIMESTAMP,
            start + (piece[-1] - begin) * SECONDS_PER_TIMESTAMP,
            seek,
            tokenizer,
            probs,
        )
        for piece in _split_at_pairs(tokens[:complete], begin)
    ]
    finished = _ends_with_single_timestamp(tokens, begin)
    return segments, frames if finished else (tokens[complete - 1] - begin) * _FRAMES_PER_TIMESTAMP


def _has_pair(tokens: Sequence[int], begin: int) -> bool:
    return any(early >= begin and late >= begin for early, late in pairwise(tokens))


def _split_at_pairs(tokens: Sequence[int], begin: int) -> list[tuple[int, ...]]:
    """The tokens, split between any two timestamps in a row."""
    borders = [i for i in range(1, len(tokens)) if tokens[i - 1] >= begin and tokens[i] >= begin]
    return [tuple(tokens[first:last]) for first, last in zip([0, *borders], [*borders, len(tokens)], strict=True)]


def _ends_with_single_timestamp(tokens: Sequence[int], begin: int) -> bool:
    return len(tokens) >= 2 and tokens[-2] < begin <= tokens[-1]


def _last_end(segments: Sequence[Segment]) -> float | None:
    """The end of the last word, or of the last segment if there are no words."""
    ends = (word.end for segment in reversed(segments) for word in reversed(segment.words))
    return next(ends, segments[-1].end if segments else None)
