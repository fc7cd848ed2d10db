"""What every engine shares of Whisper's decoding: how a sequence starts, tokens never sampled, the making of a `Decoded`, errors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby

from whisper.audio import TOKENS_PER_SECOND

from ..errors import EngineError, OutOfMemory
from ..tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer, complete_segments
from ..types import HOP, MAX_PROMPT, Decoded, Decoding, Window

LAST_TIMESTAMP = 1500
"""<|30.00|> in steps of 0.02 s."""
_NO_MEMORY = ("out of memory", "allocate memory", "available memory", "bad_alloc", "resource_exhausted", "alloc_failed")
"""What runtimes say when they lack memory; most of them have no exception for it."""


def batch_key(decoding: Decoding) -> Decoding:
    """What the windows of one call have in common: all of `decoding` but what is each window's own."""
    return replace(decoding, language=None, languages=(), prompt=(), alignment="none")


def prompt_length(decoding: Decoding) -> int:
    """Tokens of the prompt that a sequence begins with: sequences decoded side by side have equally many."""
    return min(len(decoding.prompt), MAX_PROMPT)


def equals(keys: Sequence[Hashable]) -> list[list[int]]:
    """The indices of equal keys, together, in the order of their first."""
    found: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, []).append(index)
    return list(found.values())


def start_tokens(tokenizer: Tokenizer, decoding: Decoding, language: str) -> list[int]:
    """What a sequence begins with: <|startofprev|>, the prompt's last 223 tokens, <|startoftranscript|>, language and task."""
    openai = tokenizer.openai_for(language, decoding.task)
    start = list(openai.sot_sequence if decoding.timestamps else openai.sot_sequence_including_notimestamps)
    prompt = decoding.prompt[-MAX_PROMPT:]
    return [openai.sot_prev, *prompt, *start] if prompt else start


def suppressed_tokens(tokenizer: Tokenizer, suppress: Sequence[int] = (-1,)) -> list[int]:
    """Tokens never sampled: `suppress`, in which -1 stands for speaker tags and other non-speech, and the special tokens.

    As openai-whisper, which however lets special tokens be sampled when nothing is to be suppressed. Tokens that the vocabulary
    lacks are never sampled anyway.
    """
    openai = tokenizer.openai
    special = [openai.transcribe, openai.translate, openai.sot, openai.sot_prev, openai.sot_lm, openai.no_speech]
    chosen = {token for token in suppress if 0 <= token < tokenizer.vocabulary}
    return sorted({*chosen, *(openai.non_speech_tokens if -1 in suppress else ()), *special})


def last_initial_timestamp(decoding: Decoding) -> int | None:
    """The latest first timestamp, in steps of 0.02 s; None: no bound."""
    return None if decoding.max_initial_timestamp is None else round(decoding.max_initial_timestamp / SECONDS_PER_TIMESTAMP)


def likeliest(probabilities: Mapping[str, float], candidates: Sequence[str]) -> tuple[str, float]:
    """The likeliest language among `candidates` that the model knows, or among all, and how probable it is among these."""
    among = {language: probabilities[language] for language in candidates if language in probabilities} or probabilities
    language = max(among, key=among.__getitem__)
    return language, among[language] / (math.fsum(among.values()) or 1.0)


def told_or_detected(
    decodings: Sequence[Decoding], multilingual: bool, detect: Callable[[list[int]], Iterable[Mapping[str, float]]]
) -> list[tuple[str, float | None]]:
    """Each window's language, and how probable it is when it had to be detected.

    `detect` tells, of the windows of these indices, how probable each language is; called only when there are any.
    """
    if not multilingual:
        return [("en", None)] * len(decodings)
    languages: list[tuple[str, float | None]] = [(decoding.language or "", None) for decoding in decodings]
    unknown = [i for i, decoding in enumerate(decodings) if decoding.language is None]
    if unknown:
        for i, probabilities in zip(unknown, detect(unknown), strict=True):
            languages[i] = likeliest(probabilities, decodings[i].languages)
    return languages


def likeliest_sequence(sums: Sequence[float], lengths: Sequence[int], length_penalty: float | None) -> int:
    """The index of the hypothesis that openai-whisper ranks first, by its log-probabilities' sum and its tokens' count.

    An empty one, which only `suppress_blank=False` allows and at which openai-whisper divides by zero, counts as one token.
    """
    penalties = [max(length, 1) if length_penalty is None else ((5 + length) / 6) ** length_penalty for length in lengths]
    scores = [total / penalty for total, penalty in zip(sums, penalties, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)


@dataclass(frozen=True, slots=True)
class Text:
    """What to align with a window: `start`, the sequence's beginning without the prompt, the text tokens, the window's mel frames."""

    start: tuple[int, ...]
    tokens: tuple[int, ...]
    frames: int


def text_to_align(tokenizer: Tokenizer, window: Window, decoded: Decoded) -> Text:
    """The text whose times the window's decoding asks for; no tokens when it asks for none."""
    wanted, tokens = window.decoding.alignment, decoded.tokens
    count = {"none": 0, "all": len(tokens), "complete": complete_segments(tokens, tokenizer.timestamp_begin)}[wanted]
    return Text(
        start=tokenizer.openai_for(decoded.language, window.decoding.task).sot_sequence,
        tokens=tuple(token for token in tokens[:count] if token < tokenizer.eot),
        frames=(len(window.samples) - sum(window.margin)) // HOP,
    )


def with_times(decoded: Decoded, steps: Sequence[int], probs: Sequence[float]) -> Decoded:
    """The same with its tokens' times, which an alignment tells in steps of the encoder's output, and their probabilities."""
    times = tuple(max(step, 0) / TOKENS_PER_SECOND for step in steps)
    return replace(decoded, token_times=times, token_probs=tuple(probs))


def whole_characters(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[int, ...]:
    """The tokens without those that hold only a part of a character: a limit, or the model itself, may end inside one.

    Most characters beyond Latin take several bytes, and often several tokens. Timestamps stay, and a character does not reach across
    one: each stretch of text is a segment of its own.
    """
    stretches = groupby(tokens, key=lambda token: token < tokenizer.eot)
    return tuple(chain.from_iterable(_whole_stretch(tokenizer, list(stretch)) if text else stretch for text, stretch in stretches))


def _whole_stretch(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """Text tokens, without those of which a byte belongs to no whole character; leaving one out can break the next."""
    encoding = tokenizer.openai.encoding
    while True:
        parts = [encoding.decode_single_token_bytes(token) for token in tokens]
        try:
            b"".join(parts).decode()
            return tokens
        except UnicodeDecodeError as error:
            broken = range(error.start, error.end)
        ends = list(accumulate(map(len, parts)))
        spans = zip(tokens, [0, *ends], ends, strict=False)
        tokens = [token for token, first, end in spans if end <= broken.start or first >= broken.stop]


def decoded(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    decoding: Decoding,
    *,
    language: str,
    avg_logprob: float,
    no_speech_prob: float,
    language_probability: float | None = None,
) -> Decoded:
    """A `Decoded` of the sampled tokens, whole characters only; with `ignore_eot`, for benchmarks, all of them.

    Raises EngineError when a score is not a number: JSON has none such.
    """
    if not (math.isfinite(avg_logprob) and math.isfinite(no_speech_prob)):
        raise EngineError("the model's scores are not numbers: its weights are broken, or the precision is too low for them")
    sampled = [int(token) for token in tokens]
    kept = tuple(sampled) if decoding.ignore_eot else whole_characters(tokenizer, sampled)
    text = tokenizer.decode(kept).strip()
    return Decoded(
        tokens=kept,
        text=text,
        language=language,
        language_probability=language_probability,
        temperature=float(decoding.temperature),
        avg_logprob=float(avg_logprob),
        no_speech_prob=float(no_speech_prob),
        compression_ratio=compression_ratio(text),
    )


def failure(error: Exception, runtime: str, windows: int) -> EngineError:
    """A runtime's error, on a batch of so many windows, as one of ours."""
    if lacks_memory(error):
        return OutOfMemory(f"no memory for a batch of {windows} windows: {reason(error)}")
    return EngineError(f"{runtime} failed on a batch of {windows} windows: {reason(error)}")


def lacks_memory(error: Exception) -> bool:
    """Whether a runtime's error says so."""
    return isinstance(error, MemoryError | OutOfMemory) or any(words in reason(error).lower() for words in _NO_MEMORY)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error) or type(error).__name__).splitlines()[0]


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of it compressed, as openai-whisper: above 2.4 it repeats itself."""
    utf8 = text.encode()
    return len(utf8) / len(zlib.compress(utf8))
