"""`Transcript` → the fields of a JSON reply: native `json`, OpenAI's `json`, `verbose_json`; and its warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..languages import LANGUAGES
from ..options import Reply
from ..tokenizer import Tokenizer
from ..types import AudioTrack, Dropped, Segment, Transcript, Word
from .routes import Route

AUDIO_TOKENS_PER_SECOND = 50
"""Positions of the encoder's output: 1,500 for 30 s."""

Fields = dict[str, Any]
_DROP_REASONS = {
    "no_speech": ("no speech", "no_speech_threshold"),
    "hallucination": ("improbable words amid silence", "hallucination_silence_threshold"),
}
"""For each reason to drop a passage: its words in a warning, and the option that decides it."""
_MAX_LISTED_PASSAGES = 5
"""Dropped passages whose times a warning lists."""


def transcript_fields(transcript: Transcript, reply: Reply, route: Route, tokenizer: Tokenizer | None, model: str) -> Fields:
    """The fields of `verbose_json` when `reply` asks for it, else those of the route's `json`."""
    if reply.response_format == "verbose_json":
        return _verbose(transcript, reply, route, model)
    return _native(transcript, reply, tokenizer, model) if route == "native" else _openai(transcript, reply, tokenizer, model)


def done_fields(transcript: Transcript, reply: Reply, tokenizer: Tokenizer | None, model: str) -> Fields:
    """The fields of OpenAI's event `transcript.text.done`."""
    return {
        "text": joined_text(transcript.segments),
        **logprob_fields(transcript.segments, reply, tokenizer),
        **_languages(transcript),
        "usage": _usage_in_tokens(transcript),
        **_model(model),
        **warning_fields(warnings_of(transcript)),
    }


def segment_fields(number: int, segment: Segment, reply: Reply, tokenizer: Tokenizer | None) -> Fields:
    """The fields of a segment in the native `json` and stream. `number`: its position in the transcript, from 0."""
    return {
        "id": number,
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": segment.text,
        "avg_logprob": segment.avg_logprob,
        "no_speech_prob": segment.no_speech_prob,
        "compression_ratio": segment.compression_ratio,
        "temperature": segment.temperature,
        **({"words": [_word(word) for word in segment.words]} if segment.words else {}),
        **logprob_fields([segment], reply, tokenizer),
        **_channel(segment),
        **_language(segment),
    }


def logprob_fields(segments: Iterable[Segment], reply: Reply, tokenizer: Tokenizer | None) -> Fields:
    """The log-probability of every text token, as in OpenAI's include[]=logprobs.

    Raises ValueError when the tokenizer is missing.
    """
    if not reply.logprobs:
        return {}
    if tokenizer is None:
        raise ValueError("log-probabilities come with the text of each token: render needs the model's tokenizer")
    return {"logprobs": [token for segment in segments for token in _token_logprobs(segment, tokenizer)]}


def joined_text(segments: Iterable[Segment]) -> str:
    """The text of all segments without blanks at its ends.

    The text of the first segments is always a prefix of the whole text, because trailing blanks are kept back until
    more text follows.
    """
    return "".join(segment.text for segment in segments).strip()


def warnings_of(transcript: Transcript) -> tuple[str, ...]:
    """The transcript's warnings: faults of the input, which passages were dropped, and why the text is empty."""
    reasons = [reason for reason in _DROP_REASONS if any(passage.reason == reason for passage in transcript.dropped)]
    dropped = [_dropped_warning(transcript.dropped, reason) for reason in reasons]
    if not transcript.segments and not dropped:
        dropped = ["no speech was found in the recording"]
    return (*transcript.warnings, *dropped)


def warning_fields(warnings: Sequence[str]) -> Fields:
    """The field `warnings`; left out when there are none."""
    return {"warnings": list(warnings)} if warnings else {}


def _dropped_warning(dropped: Iterable[Dropped], reason: str) -> str:
    passages = [f"{passage.start:.1f}-{passage.end:.1f}" for passage in dropped if passage.reason == reason]
    description, option = _DROP_REASONS[reason]
    times = ", ".join(passages[:_MAX_LISTED_PASSAGES]) + (", …" if len(passages) > _MAX_LISTED_PASSAGES else "")
    count = "1 passage was" if len(passages) == 1 else f"{len(passages)} passages were"
    return f"{count} left out as {description} ({times} s); {option}=none keeps {'it' if len(passages) == 1 else 'them'}"


def _native(transcript: Transcript, reply: Reply, tokenizer: Tokenizer | None, model: str) -> Fields:
    return {
        "text": transcript.text,
        "language": transcript.language,
        **_language_probability(transcript),
        "duration": _seconds(transcript.duration),
        **_model(model),
        "segments": [segment_fields(number, segment, reply, tokenizer) for number, segment in enumerate(transcript.segments)],
        **_notes(transcript),
    }


def _openai(transcript: Transcript, reply: Reply, tokenizer: Tokenizer | None, model: str) -> Fields:
    return {
        "text": transcript.text,
        **logprob_fields(transcript.segments, reply, tokenizer),
        **_languages(transcript),
        "usage": _usage(transcript),
        **_model(model),
        **warning_fields(warnings_of(transcript)),
    }


def _verbose(transcript: Transcript, reply: Reply, route: Route, model: str) -> Fields:
    """OpenAI's fields and some of this server's, which OpenAI's clients ignore.

    The additions: the probability of words and of the language, dropped passages, warnings, the model, a segment's
    channel and language.
    """
    language = "en" if route == "translations" else transcript.language
    words = [_word(word) for segment in transcript.segments for word in segment.words]
    if route != "native":  # OpenAI's words have no blank before them
        words = [{**word, "word": word["word"].strip()} for word in words]
    segments = [_verbose_segment(number, segment) for number, segment in enumerate(transcript.segments)]
    return {
        "task": transcript.task,
        "language": LANGUAGES.get(language, language),
        **_language_probability(transcript),
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
        **({"segments": segments} if reply.segments else {}),
        **({"words": words} if reply.words else {}),
        "usage": _usage(transcript),
        **_model(model),
        **_notes(transcript),
    }


def _verbose_segment(number: int, segment: Segment) -> Fields:
    return {
        "id": number,
        "seek": segment.seek,
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
        **_channel(segment),
        **_language(segment),
    }


def _seconds(seconds: float) -> float:
    return round(seconds, 3)


def _word(word: Word) -> Fields:
    return {"word": word.word, "start": _seconds(word.start), "end": _seconds(word.end), "probability": round(word.probability, 4)}


def _channel(segment: Segment) -> Fields:
    return {} if segment.channel is None else {"channel": segment.channel}


def _language(segment: Segment) -> Fields:
    """Whisper's code, also in verbose_json: OpenAI's segments have no such field."""
    return {} if segment.language is None else {"language": segment.language}


def _model(name: str) -> Fields:
    return {"model": name} if name else {}


def _language_probability(transcript: Transcript) -> Fields:
    probability = transcript.language_probability
    return {} if probability is None else {"language_probability": round(probability, 4)}


def _languages(transcript: Transcript) -> Fields:
    """OpenAI's list of the detected languages; left out when the request named the language."""
    return {} if transcript.language_probability is None else {"languages": [{"code": transcript.language}]}


def _token_logprobs(segment: Segment, tokenizer: Tokenizer) -> list[Fields]:
    """One object per text token.

    A token may be part of a UTF-8 sequence: its `bytes` are exact, its `token` text then is not.
    """
    tokens = [token for token in segment.tokens if token < tokenizer.eot]
    spellings = [tokenizer.openai.encoding.decode_single_token_bytes(token) for token in tokens]
    return [
        {"token": spelling.decode(errors="replace"), "bytes": list(spelling), "logprob": logprob}
        for spelling, logprob in zip(spellings, segment.logprobs, strict=False)
    ]


def _usage(transcript: Transcript) -> Fields:
    """The usage in seconds, rounded up, as OpenAI counts them."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def _usage_in_tokens(transcript: Transcript) -> Fields:
    """The usage in tokens: OpenAI's event `transcript.text.done` has no usage in seconds."""
    audio = math.ceil(transcript.duration * AUDIO_TOKENS_PER_SECOND)
    text = sum(len(segment.tokens) for segment in transcript.segments)
    details = {"audio_tokens": audio, "text_tokens": 0}
    return {"type": "tokens", "input_tokens": audio, "input_token_details": details, "output_tokens": text, "total_tokens": audio + text}


def _notes(transcript: Transcript) -> Fields:
    """The fields `dropped`, `audio_tracks` and `warnings`, each left out when it is empty."""
    dropped = {"dropped": [_dropped(passage) for passage in transcript.dropped]} if transcript.dropped else {}
    tracks = {"audio_tracks": [_audio_track(track) for track in transcript.audio_tracks]} if transcript.audio_tracks else {}
    return {**dropped, **tracks, **warning_fields(warnings_of(transcript))}


def _audio_track(track: AudioTrack) -> Fields:
    return {"index": track.index, "language": track.language, **({"title": track.title} if track.title else {})}


def _dropped(dropped: Dropped) -> Fields:
    return {"start": _seconds(dropped.start), "end": _seconds(dropped.end), "text": dropped.text, "reason": dropped.reason}
