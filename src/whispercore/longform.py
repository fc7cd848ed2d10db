"""Strategies for recordings longer than one decode, written as strands.

A strand is a generator that yields the `Window` it wants decoded and receives its `Decoded`; what it returns is its result.
A retry at a higher temperature is thereby just another window in the common queue, and waits for nobody's batch but its own.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from .options import Options
from .types import Decoded, Samples, Window

Result = TypeVar("Result")
Strand = Generator[Window, Decoded, Result]


def with_fallback(
    samples: Samples, start: float, options: Options, *, prompt: tuple[int, ...] = (), language: str | None = None
) -> Strand[Decoded | None]:
    """Decode one window at rising temperatures until it passes the thresholds; None when nobody speaks in it.

    openai-whisper's `decode_with_fallback` and its no-speech rule (whisper/transcribe.py).
    """
    decoded: Decoded | None = None
    for temperature in options.temperature:
        language = language or (decoded.language if decoded else None)
        decoded = yield Window(samples, start, options.decoding(temperature=temperature, prompt=prompt, language=language))
        if not needs_fallback(decoded, options):
            break
    return None if decoded is None or is_silence(decoded, options) else decoded


def needs_fallback(decoded: Decoded, options: Options) -> bool:
    """Whether the window is to be decoded again at the next temperature: it loops, or it is a guess, and it is not silence."""
    loops = options.compression_ratio_threshold is not None and decoded.compression_ratio > options.compression_ratio_threshold
    guessed = options.logprob_threshold is not None and decoded.avg_logprob < options.logprob_threshold
    silent = options.no_speech_threshold is not None and decoded.no_speech_prob > options.no_speech_threshold
    return (loops or guessed) and not (silent and guessed)


def is_silence(decoded: Decoded, options: Options) -> bool:
    """Whether nobody speaks in the window: probably no speech, and no confident text that says otherwise."""
    if options.no_speech_threshold is None or decoded.no_speech_prob <= options.no_speech_threshold:
        return False
    return options.logprob_threshold is None or decoded.avg_logprob <= options.logprob_threshold
