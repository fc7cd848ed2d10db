"""Strategies for recordings longer than one decode, written as tasks.

A task is a generator that yields the `Window` it wants decoded and receives its `Decoded`; what it returns is a `PartialTranscript`.
A retry at a higher temperature is thereby just another window in the common queue, and waits for nobody's batch but its own.
A strategy is an iterator of tasks; None from it means: nothing to decode yet, ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..audio.packing import PackedWindow
from ..options import Options
from ..tokenizer import Tokenizer
from ..types import MAX_PROMPT, SAMPLE_RATE, Decoded, Decoding, Dropped, Segment, Window
from . import coverage, sentences
from .hallucinations import without_hallucinations
from .placement import PlacedWord, in_order, is_aligned, place_words
from .segments import in_recording, segments, with_words

MOMENT, SCATTERED = 0.5, 0.2
"""Seconds of voice in a window, and the share of the window, below which words have to be more than a guess."""
CERTAIN = -0.7
"""Mean log-probability of a token, at the least, of words that are found at the second hearing only."""


@dataclass(frozen=True, slots=True)
class PartialTranscript:
    """What was heard in a part of the recording, up to `until` seconds: final."""

    until: float
    segments: tuple[Segment, ...] = ()
    dropped: tuple[Dropped, ...] = ()


PartTask = Generator[Window, Decoded, PartialTranscript]
PartTasks = Iterator[PartTask | None]


@dataclass(slots=True)
class DetectedLanguage:
    """The language of a recording, once the first window with words has told it; its tasks share it."""

    language: str | None = None
    probability: float | None = None

    def settle(self, decoded: Decoded) -> None:
        """Take the language of a window that has words."""
        if self.language is None:
            self.language, self.probability = decoded.language, decoded.language_probability


def chunked(
    packs: Iterable[PackedWindow | None],
    options: Options,
    heard: DetectedLanguage,
    tokenizer: Tokenizer,
    *,
    aligns: bool,
    once: bool = False,
) -> PartTasks:
    """A task for each pack; any number of them may run side by side.

    `aligns`: the engine can tell the times of words. `once`: nothing is decoded again to complete a window; for benchmarks on random
    weights, whose alignment means nothing.
    """
    aligned = aligns and not options.without_timestamps
    chunker = Chunker(options, heard, tokenizer, prompt_tokens(options, tokenizer), aligned=aligned, once=once)
    for pack in packs:
        yield chunker.task(pack) if pack else None


@dataclass(frozen=True, slots=True)
class Chunker:
    """Decodes windows that take no notice of each other.

    `aligned`: words are decoded without timestamp tokens, and placed by their alignment with the sound. With timestamp tokens Whisper
    often ends a window early, and what comes after its last timestamp is lost: of the errors of base on LibriSpeech nearly half.
    """

    options: Options
    heard: DetectedLanguage
    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    aligned: bool
    once: bool = False

    def task(self, pack: PackedWindow) -> PartTask:
        """Decode one pack."""
        decoded = yield from self._decode(pack, aligned=self.aligned)
        if is_silence(decoded, self.options) or self._is_noise(pack, decoded):
            return PartialTranscript(pack.end, dropped=silence(decoded, pack.start, pack.end))
        aligned = self.aligned and is_aligned(decoded, self.tokenizer)
        words = place_words(decoded, pack, self.tokenizer, self.options) if aligned else []
        if aligned and (self.once or not coverage.is_collapsed(words)):
            words, dropped = yield from self._completed(pack, words, decoded.language)
            found = sentences.segments(words, pack, self.tokenizer, with_words=self.options.word_timestamps)
        else:
            if aligned:
                decoded = yield from self._decode(pack, aligned=False)
            found, dropped = yield from self._timed(pack, decoded)
        found, doubtful = without_hallucinations(found, pack.start, pack.end, self.options.hallucination_silence_threshold)
        language = decoded.language if self.options.multilingual else None
        found = [replace(segment, language=language) for segment in found if segment.text.strip()]
        if found:
            self.heard.settle(decoded)
        return PartialTranscript(pack.end, tuple(found), (*dropped, *doubtful))

    def _decode(self, pack: PackedWindow, *, aligned: bool) -> Generator[Window, Decoded, Decoded]:
        language = None if self.options.multilingual else self.heard.language
        window = Window(pack.samples, pack.start, self._decoding(language, aligned=aligned))
        return (yield from with_fallback(window, self.options, partial(self._is_said, pack)))

    def _decoding(self, language: str | None, *, aligned: bool) -> Decoding:
        decoding = self.options.decoding(temperature=self.options.temperature[0], prompt=self.prompt, language=language)
        return replace(decoding, timestamps=False, alignment="all") if aligned else decoding

    def _is_said(self, pack: PackedWindow, decoded: Decoded) -> bool:
        """Whether the sound bears out a text that repeats itself: a sentence may be said twice, and equal ones may share a window.

        A loop of the decoder goes on until no more tokens are allowed, and most of its words have no sound to be aligned with.
        """
        limit = Decoding(max_tokens=self.options.max_new_tokens).max_sampled
        if not is_aligned(decoded, self.tokenizer) or len(decoded.tokens) >= limit:
            return False
        found = place_words(decoded, pack, self.tokenizer, self.options)
        return coverage.has_sound(found) and not coverage.gaps(found, pack)

    def _is_noise(self, pack: PackedWindow, decoded: Decoded) -> bool:
        """Whether text is a guess at moments that the voice detector took for a voice, as at notes of music."""
        voice = coverage.voice(pack)
        if voice is None or not _is_guessed(decoded, self.options):
            return False
        return voice < max(MOMENT, SCATTERED * len(pack.samples) / SAMPLE_RATE)

    def _completed(
        self, pack: PackedWindow, found: list[PlacedWord], language: str, attempts: int = 2
    ) -> Generator[Window, Decoded, tuple[list[PlacedWord], list[Dropped]]]:
        """The words, and those of voice that has none yet, which is decoded again on its own; and what stays without.

        The words of a translation come in another order than the sound: where they lie is too vague to tell what is missing.
        """
        dropped: list[Dropped] = []
        for gap in coverage.gaps(found, pack) if self.options.task == "transcribe" and not self.once else ():
            decoded = yield Window(gap.pack.samples, gap.pack.start, self._decoding(language, aligned=True))
            more = place_words(decoded, gap.pack, self.tokenizer, self.options) if self._is_certain(decoded) else []
            if not more or coverage.is_collapsed(more):
                dropped.append(_left_out(gap.pack, decoded))
                continue
            if attempts > 1:
                more, still = yield from self._completed(gap.pack, more, language, attempts - 1)
                dropped += still
            found = in_order([*(one for one in found if one not in gap.words), *more])
        return found, dropped

    def _timed(self, pack: PackedWindow, decoded: Decoded) -> Generator[Window, Decoded, tuple[list[Segment], list[Dropped]]]:
        """Segments between timestamp tokens, and those of voice outside of them; or one segment for a window without such tokens."""
        timed = segments(decoded, len(pack.samples) / SAMPLE_RATE, self.tokenizer)
        found, dropped = self._in_recording(timed, decoded, pack), list[Dropped]()
        for gap in self._gaps_between(timed, decoded, pack):
            again = yield Window(gap.pack.samples, gap.pack.start, self._decoding(decoded.language, aligned=False))
            if again.tokens and self._is_certain(again):
                more = segments(again, len(gap.pack.samples) / SAMPLE_RATE, self.tokenizer)
                found = sorted([*found, *self._in_recording(more, again, gap.pack)], key=lambda segment: segment.start)
            else:
                dropped.append(_left_out(gap.pack, again))
        return found, dropped

    def _in_recording(self, timed: list[Segment], decoded: Decoded, pack: PackedWindow) -> list[Segment]:
        """A window's segments on the recording's time line, with their words where they are asked for."""
        if self.options.word_timestamps:
            timed = with_words(timed, decoded, len(pack.samples) / SAMPLE_RATE, self.tokenizer, self.options)
        return [in_recording(segment, pack) for segment in timed]

    def _gaps_between(self, timed: Sequence[Segment], decoded: Decoded, pack: PackedWindow) -> list[coverage.Gap]:
        """Voice outside of the segments as their timestamp tokens have them: a collapsed alignment makes segments too short.

        A window without timestamp tokens is one segment, and has no gaps.
        """
        if all(token < self.tokenizer.timestamp_begin for token in decoded.tokens):
            return []
        return coverage.gaps_between([in_recording(segment, pack) for segment in timed], pack)

    def _is_certain(self, decoded: Decoded) -> bool:
        """Whether words that were missing at first may be added: what is a guess at the second hearing was rightly left out."""
        options = self.options
        silent = options.no_speech_threshold is not None and decoded.no_speech_prob > options.no_speech_threshold
        return decoded.avg_logprob > CERTAIN and not silent and not needs_fallback(decoded, options)


def _left_out(pack: PackedWindow, decoded: Decoded) -> Dropped:
    """Voice in which no words were found, or only a guess."""
    return Dropped(round(pack.start, 3), round(pack.end, 3), decoded.text, "no_speech")


def prompt_tokens(options: Options, tokenizer: Tokenizer, previous: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """What a window is told before it: hot words, half of the room at most, then the text before it, by default `initial_prompt`."""
    hot = tokenizer.encode(" " + options.hotwords.strip())[: MAX_PROMPT // 2] if options.hotwords else ()
    if previous is None:
        previous = initial_tokens(options, tokenizer)
    return (*hot, *previous[-(MAX_PROMPT - len(hot)) :])


def initial_tokens(options: Options, tokenizer: Tokenizer) -> tuple[int, ...]:
    """`initial_prompt` as openai-whisper encodes it."""
    return tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else ()


def with_fallback(
    window: Window, options: Options, is_said: Callable[[Decoded], bool] = lambda decoded: False
) -> Generator[Window, Decoded, Decoded]:
    """Decode a window at rising temperatures until it passes the thresholds (openai-whisper's `decode_with_fallback`).

    `is_said` tells of a text that repeats itself whether it was said so. When no attempt passes, openai-whisper keeps the last one; here,
    as in faster-whisper, it is the likeliest that is no loop.
    """
    attempts: list[Decoded] = []
    for temperature in options.temperature:
        decoding = window.decoding
        language = decoding.language or (attempts[0].language if attempts else None)
        decoded = yield replace(window, decoding=options.at_temperature(temperature, decoding, language))
        if attempts and decoded.language_probability is None:
            decoded = replace(decoded, language_probability=attempts[0].language_probability)
        if not needs_fallback(decoded, options) or (not _is_guessed(decoded, options) and is_said(decoded)):
            return decoded
        attempts.append(decoded)
    return max(attempts, key=lambda decoded: (not _loops(decoded, options), decoded.avg_logprob))


def needs_fallback(decoded: Decoded, options: Options) -> bool:
    """Whether the window is to be decoded again at the next temperature: it loops, or it is a guess, and it is not silence."""
    guessed = _is_guessed(decoded, options)
    silent = options.no_speech_threshold is not None and decoded.no_speech_prob > options.no_speech_threshold
    return (_loops(decoded, options) or guessed) and not (silent and guessed)


def _is_guessed(decoded: Decoded, options: Options) -> bool:
    return options.logprob_threshold is not None and decoded.avg_logprob < options.logprob_threshold


def _loops(decoded: Decoded, options: Options) -> bool:
    return options.compression_ratio_threshold is not None and decoded.compression_ratio > options.compression_ratio_threshold


def is_silence(decoded: Decoded, options: Options) -> bool:
    """Whether nobody speaks in the window: probably no speech, and no confident text that says otherwise."""
    if options.no_speech_threshold is None or decoded.no_speech_prob <= options.no_speech_threshold:
        return False
    return options.logprob_threshold is None or decoded.avg_logprob <= options.logprob_threshold


def silence(decoded: Decoded, start: float, end: float) -> tuple[Dropped, ...]:
    """The text, if any, of a window that is silence."""
    return (Dropped(round(start, 3), round(end, 3), decoded.text, "no_speech"),) if decoded.text else ()
