"""Strategies for recordings longer than one decode, written as strands.

A strand is a generator that yields the `Window` it wants decoded and receives its `Decoded`; what it returns is a `Passage`.
A retry at a higher temperature is thereby just another window in the common queue, and waits for nobody's batch but its own.
A strategy is an iterator of strands; None from it means: nothing to decode yet, ask again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from . import coverage, sentences, stitch
from .engines.rules import MAX_PROMPT
from .hallucinations import without_hallucinations
from .options import Options
from .pack import Pack
from .spoken import Spoken, in_order, spoken
from .tokenizer import Tokenizer
from .types import SAMPLE_RATE, Decoded, Dropped, Segment, Window


@dataclass(frozen=True, slots=True)
class Passage:
    """What was heard in a part of the recording, up to `until` seconds: final."""

    until: float
    segments: tuple[Segment, ...] = ()
    dropped: tuple[Dropped, ...] = ()


Strand = Generator[Window, Decoded, Passage]
Strands = Iterator[Strand | None]


@dataclass(slots=True)
class Heard:
    """The language of a recording, once the first window with words has told it; its strands share it."""

    language: str | None = None
    probability: float | None = None

    def listen(self, decoded: Decoded) -> None:
        """Take the language of a window that has words."""
        if self.language is None:
            self.language, self.probability = decoded.language, decoded.language_probability


def chunked(packs: Iterable[Pack | None], options: Options, heard: Heard, tokenizer: Tokenizer, *, aligns: bool) -> Strands:
    """A strand for each pack; any number of them may run side by side. `aligns`: the engine can tell the times of words."""
    chunker = Chunker(options, heard, tokenizer, prompt_tokens(options, tokenizer), aligned=aligns and not options.without_timestamps)
    for pack in packs:
        yield chunker.strand(pack) if pack else None


@dataclass(frozen=True, slots=True)
class Chunker:
    """Decodes windows that take no notice of each other.

    `aligned`: words are decoded without timestamp tokens, and placed by their alignment with the sound. With timestamp tokens Whisper
    often ends a window early, and what comes after its last timestamp is lost (openai/whisper discussion 1183).
    """

    options: Options
    heard: Heard
    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    aligned: bool

    def strand(self, pack: Pack) -> Strand:
        """Decode one pack."""
        decoded = yield from self._decode(pack)
        if is_silence(decoded, self.options):
            return Passage(pack.end, dropped=silence(decoded, pack.start, pack.end))
        if self.aligned:
            found, dropped = yield from self._aligned(pack, decoded)
        else:
            found, dropped = self._by_timestamps(pack, decoded), []
        found, doubtful = without_hallucinations(found, pack.start, pack.end, self.options.hallucination_silence_threshold)
        found = [segment for segment in found if segment.text.strip()]
        if found:
            self.heard.listen(decoded)
        return Passage(pack.end, tuple(found), (*dropped, *doubtful))

    def _decode(self, pack: Pack, language: str | None = None) -> Generator[Window, Decoded, Decoded]:
        language = language or (None if self.options.multilingual else self.heard.language)
        decoding = self.options.decoding(temperature=self.options.temperature[0], prompt=self.prompt, language=language)
        if self.aligned:
            decoding = replace(decoding, timestamps=False, alignment="all")
        return (yield from with_fallback(Window(pack.samples, pack.start, decoding), self.options))

    def _aligned(self, pack: Pack, decoded: Decoded) -> Generator[Window, Decoded, tuple[list[Segment], list[Dropped]]]:
        found, dropped = yield from self._complete(pack, spoken(decoded, pack, self.tokenizer, self.options), decoded.language)
        with_words = self.options.word_timestamps
        return sentences.segments(found, pack, self.tokenizer, with_words=with_words), dropped

    def _complete(
        self, pack: Pack, found: list[Spoken], language: str, attempts: int = 2
    ) -> Generator[Window, Decoded, tuple[list[Spoken], list[Dropped]]]:
        """The words and those of voice that has none yet, which is decoded again on its own; and what stays without."""
        dropped: list[Dropped] = []
        for gap in coverage.gaps(found, pack):
            decoded = yield from self._decode(gap.pack, language)
            more = [] if self._is_doubtful(decoded) else spoken(decoded, gap.pack, self.tokenizer, self.options)
            if not more:
                dropped.append(Dropped(*gap.span, decoded.text, "no_speech"))
                continue
            if attempts > 1:
                more, still = yield from self._complete(gap.pack, more, language, attempts - 1)
                dropped += still
            found = in_order([*(one for one in found if one not in gap.words), *more])
        return found, dropped

    def _is_doubtful(self, decoded: Decoded) -> bool:
        options = self.options
        silent = options.no_speech_threshold is not None and decoded.no_speech_prob > options.no_speech_threshold
        return silent or needs_fallback(decoded, options)

    def _by_timestamps(self, pack: Pack, decoded: Decoded) -> list[Segment]:
        """Segments between timestamp tokens, or one for the window."""
        duration = len(pack.samples) / SAMPLE_RATE
        found = stitch.segments(decoded, duration, self.tokenizer)
        if self.options.word_timestamps:
            found = stitch.with_words(found, decoded, duration, self.tokenizer, self.options)
        return [stitch.in_recording(segment, pack) for segment in found]


def prompt_tokens(options: Options, tokenizer: Tokenizer, previous: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """What a window is told before it: hot words, half of the room at most, then the text before it, by default `initial_prompt`."""
    hot = tokenizer.encode(" " + options.hotwords.strip())[: MAX_PROMPT // 2] if options.hotwords else ()
    if previous is None:
        previous = initial_tokens(options, tokenizer)
    return (*hot, *previous[-(MAX_PROMPT - len(hot)) :])


def initial_tokens(options: Options, tokenizer: Tokenizer) -> tuple[int, ...]:
    """`initial_prompt` as openai-whisper encodes it."""
    return tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else ()


def with_fallback(window: Window, options: Options) -> Generator[Window, Decoded, Decoded]:
    """Decode a window at rising temperatures until it passes the thresholds (openai-whisper's `decode_with_fallback`).

    When none passes, openai-whisper keeps the last attempt; here, as in faster-whisper, it is the likeliest that is no loop.
    """
    attempts: list[Decoded] = []
    for temperature in options.temperature:
        decoding = window.decoding
        language = decoding.language or (attempts[0].language if attempts else None)
        decoded = yield replace(window, decoding=options.at_temperature(temperature, decoding, language))
        if attempts and decoded.language_probability is None:
            decoded = replace(decoded, language_probability=attempts[0].language_probability)
        if not needs_fallback(decoded, options):
            return decoded
        attempts.append(decoded)
    return max(attempts, key=lambda decoded: (not _loops(decoded, options), decoded.avg_logprob))


def needs_fallback(decoded: Decoded, options: Options) -> bool:
    """Whether the window is to be decoded again at the next temperature: it loops, or it is a guess, and it is not silence."""
    guessed = options.logprob_threshold is not None and decoded.avg_logprob < options.logprob_threshold
    silent = options.no_speech_threshold is not None and decoded.no_speech_prob > options.no_speech_threshold
    return (_loops(decoded, options) or guessed) and not (silent and guessed)


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
