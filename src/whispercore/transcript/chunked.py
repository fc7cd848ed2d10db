"""Strategy `chunked`: windows of packed speech, decoded independently of each other."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..audio.packing import PackedWindow
from ..options import Options
from ..tokenizer import Tokenizer
from ..types import SAMPLE_RATE, Decoded, Decoding, Dropped, Segment, Window
from . import coverage
from .fallback import dropped_as_silence, is_improbable, is_probably_no_speech, is_silence, needs_fallback, with_fallback
from .hallucinations import without_hallucinations
from .placement import PlacedWord, in_order, is_aligned, place_words
from .prompt import prompt_tokens
from .segments import decoded_segments, in_recording, with_words
from .sentences import sentence_segments
from .tasks import PartialTranscript, PartTask, PartTasks, RecordingLanguage

MIN_VOICE_SECONDS, MIN_VOICE_SHARE = 0.5, 0.2
"""Improbable text is noise when the window has less voice than this many seconds, or than this share of its length."""
MIN_LOGPROB = -0.7
"""Words found only when a gap is decoded again are kept if their mean token log-probability is above this."""


def chunked(
    packed_windows: Iterable[PackedWindow | None],
    options: Options,
    language: RecordingLanguage,
    tokenizer: Tokenizer,
    *,
    aligns: bool,
    fill_gaps: bool = True,
) -> PartTasks:
    """One task per packed window. The tasks are independent and may run concurrently.

    `aligns`: the engine can give word times. `fill_gaps`: decode voice without words again; False for benchmarks on
    random weights, whose alignment means nothing.
    """
    by_alignment = aligns and not options.without_timestamps
    tasks = WindowTasks(options, language, tokenizer, prompt_tokens(options, tokenizer), by_alignment=by_alignment, fill_gaps=fill_gaps)
    for packed in packed_windows:
        yield tasks.part_task(packed) if packed else None


@dataclass(frozen=True, slots=True)
class WindowTasks:
    """Makes the task of each packed window.

    `by_alignment`: decode without timestamp tokens, and place the words by their alignment with the audio. With timestamp
    tokens Whisper often ends a window early and loses the speech after its last timestamp: nearly half of base's errors
    on LibriSpeech.
    """

    options: Options
    recording_language: RecordingLanguage
    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    by_alignment: bool
    fill_gaps: bool = True

    def part_task(self, packed: PackedWindow) -> PartTask:
        """The task of one packed window: decode it, fill gaps, make segments."""
        decoded = yield from self._decode(packed, aligned=self.by_alignment)
        if is_silence(decoded, self.options) or self._is_noise(packed, decoded):
            return PartialTranscript(packed.end, dropped=dropped_as_silence(decoded, packed.start, packed.end))
        has_word_times = self.by_alignment and is_aligned(decoded, self.tokenizer)
        words = place_words(decoded, packed, self.tokenizer, self.options) if has_word_times else []
        if has_word_times and (not self.fill_gaps or not coverage.is_collapsed(words)):
            words, dropped = yield from self._fill_gaps(packed, words, decoded.language)
            segments = sentence_segments(words, packed, self.tokenizer, with_words=self.options.word_timestamps)
        else:
            if has_word_times:  # a collapsed alignment gives no usable times: decode once more, with timestamp tokens
                decoded = yield from self._decode(packed, aligned=False)
            segments, dropped = yield from self._by_timestamps(packed, decoded)
        segments, hallucinated = without_hallucinations(segments, packed.start, packed.end, self.options.hallucination_silence_threshold)
        language = decoded.language if self.options.multilingual else None
        segments = [replace(segment, language=language) for segment in segments if segment.text.strip()]
        if segments:
            self.recording_language.settle(decoded)
        return PartialTranscript(packed.end, tuple(segments), (*dropped, *hallucinated))

    def _decode(self, packed: PackedWindow, *, aligned: bool) -> Generator[Window, Decoded, Decoded]:
        language = None if self.options.multilingual else self.recording_language.language
        window = Window(packed.samples, packed.start, self._decoding(language, aligned=aligned))
        return (yield from with_fallback(window, self.options, partial(self._is_true_repetition, packed)))

    def _decoding(self, language: str | None, *, aligned: bool) -> Decoding:
        decoding = self.options.decoding(temperature=self.options.temperature[0], prompt=self.prompt, language=language)
        return replace(decoding, timestamps=False, alignment="all") if aligned else decoding

    def _is_true_repetition(self, packed: PackedWindow, decoded: Decoded) -> bool:
        """Whether repetitive text matches the audio: a speaker may repeat a sentence.

        A decoder loop runs to the token limit, and most of its words have no audio to align with.
        """
        limit = Decoding(max_tokens=self.options.max_new_tokens).max_sampled
        if not is_aligned(decoded, self.tokenizer) or len(decoded.tokens) >= limit:
            return False
        words = place_words(decoded, packed, self.tokenizer, self.options)
        return coverage.has_spoken_durations(words) and not coverage.gaps(words, packed)

    def _is_noise(self, packed: PackedWindow, decoded: Decoded) -> bool:
        """Whether the text is improbable and the voice detector found only moments of voice, as it does in music."""
        voice = coverage.voiced_seconds(packed)
        if voice is None or not is_improbable(decoded, self.options):
            return False
        return voice < max(MIN_VOICE_SECONDS, MIN_VOICE_SHARE * len(packed.samples) / SAMPLE_RATE)

    def _fill_gaps(
        self, packed: PackedWindow, words: list[PlacedWord], language: str, attempts: int = 2
    ) -> Generator[Window, Decoded, tuple[list[PlacedWord], list[Dropped]]]:
        """Decode voice without words again, on its own. Returns all words, and the voice that stays without words.

        A translation is left alone: its word order differs from the audio's, so its alignment does not show what is
        missing.
        """
        dropped: list[Dropped] = []
        if self.options.task != "transcribe" or not self.fill_gaps:
            return words, dropped
        for gap in coverage.gaps(words, packed):
            decoded = yield Window(gap.packed.samples, gap.packed.start, self._decoding(language, aligned=True))
            new_words = place_words(decoded, gap.packed, self.tokenizer, self.options) if self._is_certain(decoded) else []
            if not new_words or coverage.is_collapsed(new_words):
                dropped.append(_dropped_gap(gap.packed, decoded))
                continue
            if attempts > 1:
                new_words, still_dropped = yield from self._fill_gaps(gap.packed, new_words, language, attempts - 1)
                dropped += still_dropped
            words = in_order([*(word for word in words if word not in gap.words), *new_words])
        return words, dropped

    def _by_timestamps(self, packed: PackedWindow, decoded: Decoded) -> Generator[Window, Decoded, tuple[list[Segment], list[Dropped]]]:
        """Segments between timestamp tokens (without any: one segment), plus those of voice outside of them."""
        timed = decoded_segments(decoded, len(packed.samples) / SAMPLE_RATE, self.tokenizer)
        segments, dropped = self._in_recording(timed, decoded, packed), list[Dropped]()
        for gap in self._gaps_between(timed, decoded, packed):
            again = yield Window(gap.packed.samples, gap.packed.start, self._decoding(decoded.language, aligned=False))
            if again.tokens and self._is_certain(again):
                new_segments = decoded_segments(again, len(gap.packed.samples) / SAMPLE_RATE, self.tokenizer)
                segments += self._in_recording(new_segments, again, gap.packed)
                segments.sort(key=lambda segment: segment.start)
            else:
                dropped.append(_dropped_gap(gap.packed, again))
        return segments, dropped

    def _in_recording(self, timed: list[Segment], decoded: Decoded, packed: PackedWindow) -> list[Segment]:
        """A window's segments in the recording's time, with their words if the options ask for them."""
        if self.options.word_timestamps:
            timed = with_words(timed, decoded, len(packed.samples) / SAMPLE_RATE, self.tokenizer, self.options)
        return [in_recording(segment, packed) for segment in timed]

    def _gaps_between(self, timed: Sequence[Segment], decoded: Decoded, packed: PackedWindow) -> list[coverage.Gap]:
        """Voice outside of the segments.

        `timed` must have the times of the timestamp tokens, not those of the words: a collapsed alignment makes segments
        too short. A window without timestamp tokens is one segment and has no gaps.
        """
        if not self.fill_gaps or all(token < self.tokenizer.timestamp_begin for token in decoded.tokens):
            return []
        return coverage.gaps_between([in_recording(segment, packed) for segment in timed], packed)

    def _is_certain(self, decoded: Decoded) -> bool:
        """Whether the words of a gap may be added: text that is improbable even now was rightly left out at first."""
        silent = is_probably_no_speech(decoded, self.options)
        return decoded.avg_logprob > MIN_LOGPROB and not silent and not needs_fallback(decoded, self.options)


def _dropped_gap(packed: PackedWindow, decoded: Decoded) -> Dropped:
    """A gap in which no words were found, or only improbable ones."""
    return Dropped(round(packed.start, 3), round(packed.end, 3), decoded.text, "no_speech")
