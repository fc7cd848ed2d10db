"""Temperature fallback and the no-speech rule, with the thresholds of whisper/transcribe.py."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

from ..options import Options
from ..types import Decoded, Dropped, Window


def with_fallback(
    window: Window, options: Options, is_true_repetition: Callable[[Decoded], bool] = lambda decoded: False
) -> Generator[Window, Decoded, Decoded]:
    """Decode a window at rising temperatures until it passes the thresholds (openai-whisper's `decode_with_fallback`).

    `is_true_repetition` decides whether repetitive text matches the audio and may be kept. When every attempt fails,
    openai-whisper keeps the last one. This function, like faster-whisper, keeps the most probable attempt that is not a
    loop.
    """
    attempts: list[Decoded] = []
    for temperature in options.temperature:
        decoding = window.decoding
        language = decoding.language or (attempts[0].language if attempts else None)
        decoded = yield replace(window, decoding=options.at_temperature(temperature, decoding, language))
        if attempts and decoded.language_probability is None:
            decoded = replace(decoded, language_probability=attempts[0].language_probability)
        if not needs_fallback(decoded, options) or (not is_improbable(decoded, options) and is_true_repetition(decoded)):
            return decoded
        attempts.append(decoded)
    return max(attempts, key=lambda decoded: (not _loops(decoded, options), decoded.avg_logprob))


def needs_fallback(decoded: Decoded, options: Options) -> bool:
    """Whether to decode again at the next temperature: the text loops or is improbable, but not silence."""
    improbable = is_improbable(decoded, options)
    return (_loops(decoded, options) or improbable) and not (is_probably_no_speech(decoded, options) and improbable)


def is_improbable(decoded: Decoded, options: Options) -> bool:
    """Whether the mean token log-probability is below `logprob_threshold`."""
    return options.logprob_threshold is not None and decoded.avg_logprob < options.logprob_threshold


def is_probably_no_speech(decoded: Decoded, options: Options) -> bool:
    """Whether the probability of <|nospeech|> is above `no_speech_threshold`."""
    return options.no_speech_threshold is not None and decoded.no_speech_prob > options.no_speech_threshold


def _loops(decoded: Decoded, options: Options) -> bool:
    return options.compression_ratio_threshold is not None and decoded.compression_ratio > options.compression_ratio_threshold


def is_silence(decoded: Decoded, options: Options) -> bool:
    """Whether a window has no speech: <|nospeech|> is probable, and the text too improbable to contradict it."""
    if not is_probably_no_speech(decoded, options):
        return False
    return options.logprob_threshold is None or decoded.avg_logprob <= options.logprob_threshold


def dropped_as_silence(decoded: Decoded, start: float, end: float) -> tuple[Dropped, ...]:
    """The text of a silent window, in seconds of the recording, as a dropped passage; empty when there is no text."""
    return (Dropped(round(start, 3), round(end, 3), decoded.text, "no_speech"),) if decoded.text else ()
