"""What every engine shares of Whisper's decoding: start sequences, suppressed tokens, the making of a `Decoded`, and errors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby

from ..errors import EngineError, OutOfMemory
from ..tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer, complete_segments
from ..types import FRAMES_PER_SECOND, HOP, MAX_PROMPT, Decoded, Decoding, Window

LAST_TIMESTAMP = 1500
"""<|30.00|> in steps of 0.02 s."""
_STEPS_PER_SECOND = FRAMES_PER_SECOND // 2
"""Of the encoder's output."""
_NO_MEMORY = ("out of memory", "allocate memory", "available memory", "bad_alloc", "resource_exhausted", "alloc_failed")
"""Parts of the messages of runtimes that lack memory. Most of them have no exception of its own for that."""

Language = tuple[str, float | None]
"""A language's code, and its probability where it was detected."""


def batch_key(decoding: Decoding) -> Decoding:
    """What all windows of one call share: `decoding` without language, prompt and alignment, which are set for each window."""
    return replace(decoding, language=None, languages=(), prompt=(), alignment="none")


def prompt_length(decoding: Decoding) -> int:
    """Tokens of the prompt at the beginning of a sequence."""
    return min(len(decoding.prompt), MAX_PROMPT)


def group_indices(keys: Sequence[Hashable]) -> list[list[int]]:
    """The indices of equal keys, one list a key, in the order in which the keys first appear."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def start_tokens(tokenizer: Tokenizer, decoding: Decoding, language: str) -> list[int]:
    """The start sequence: <|startofprev|>, the prompt's last 223 tokens, <|startoftranscript|>, language and task."""
    openai = tokenizer.openai_for(language, decoding.task)
    start = list(openai.sot_sequence if decoding.timestamps else openai.sot_sequence_including_notimestamps)
    prompt = decoding.prompt[-MAX_PROMPT:]
    return [openai.sot_prev, *prompt, *start] if prompt else start


def suppressed_tokens(tokenizer: Tokenizer, suppress: Sequence[int] = (-1,)) -> list[int]:
    """Tokens that are never sampled: `suppress`, in which -1 stands for speaker tags and other non-speech, and the special tokens.

    As openai-whisper, with one difference: it allows special tokens when nothing is suppressed. Tokens outside of the vocabulary are
    left out.
    """
    openai = tokenizer.openai
    special = [openai.transcribe, openai.translate, openai.sot, openai.sot_prev, openai.sot_lm, openai.no_speech]
    chosen = {token for token in suppress if 0 <= token < tokenizer.vocabulary}
    return sorted({*chosen, *(openai.non_speech_tokens if -1 in suppress else ()), *special})


def last_initial_timestamp(decoding: Decoding) -> int | None:
    """The latest first timestamp, in steps of 0.02 s; None: no bound."""
    return None if decoding.max_initial_timestamp is None else round(decoding.max_initial_timestamp / SECONDS_PER_TIMESTAMP)


def likeliest_language(probabilities: Mapping[str, float], candidates: Sequence[str]) -> tuple[str, float]:
    """The likeliest of the `candidates` that the model knows, or of all languages when it knows none; its probability among these."""
    among = {language: probabilities[language] for language in candidates if language in probabilities} or probabilities
    language = max(among, key=among.__getitem__)
    return language, among[language] / (math.fsum(among.values()) or 1.0)


def resolve_languages(
    decodings: Sequence[Decoding], multilingual: bool, detect: Callable[[list[int]], Iterable[Mapping[str, float]]]
) -> list[Language]:
    """The language of each window: as its decoding names it, or detected.

    `detect` takes the indices of the windows without a language and returns the probability of every language for each of them. It is
    called only when there are any.
    """
    if not multilingual:
        return [("en", None)] * len(decodings)
    languages: list[Language] = [(decoding.language or "", None) for decoding in decodings]
    undetected = [index for index, decoding in enumerate(decodings) if decoding.language is None]
    if undetected:
        for index, probabilities in zip(undetected, detect(undetected), strict=True):
            languages[index] = likeliest_language(probabilities, decodings[index].languages)
    return languages


def likeliest_sequence(sums: Sequence[float], lengths: Sequence[int], length_penalty: float | None) -> int:
    """The index of the hypothesis that openai-whisper ranks first, by the sums of log-probabilities and the numbers of tokens.

    An empty hypothesis, which is possible only with `suppress_blank=False`, counts as one token; openai-whisper divides by zero there.
    """
    penalties = [max(length, 1) if length_penalty is None else ((5 + length) / 6) ** length_penalty for length in lengths]
    scores = [total / penalty for total, penalty in zip(sums, penalties, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)


@dataclass(frozen=True, slots=True)
class AlignmentText:
    """The text to align with a window: `start`, the start sequence without the prompt; the text tokens; the window's mel frames."""

    start: tuple[int, ...]
    tokens: tuple[int, ...]
    frames: int


def text_to_align(tokenizer: Tokenizer, window: Window, decoded: Decoded) -> AlignmentText:
    """The text for whose tokens the window's decoding requests times; without tokens when it requests none."""
    alignment, tokens = window.decoding.alignment, decoded.tokens
    count = {"none": 0, "all": len(tokens), "complete": complete_segments(tokens, tokenizer.timestamp_begin)}[alignment]
    return AlignmentText(
        start=tokenizer.openai_for(decoded.language, window.decoding.task).sot_sequence,
        tokens=tuple(token for token in tokens[:count] if token < tokenizer.eot),
        frames=(len(window.samples) - sum(window.margin)) // HOP,
    )


def with_times(decoded: Decoded, steps: Sequence[int], probs: Sequence[float]) -> Decoded:
    """`decoded` with the times and probabilities of its tokens. `steps`: of the encoder's output, 0.02 s each."""
    times = tuple(max(step, 0) / _STEPS_PER_SECOND for step in steps)
    return replace(decoded, token_times=times, token_probs=tuple(probs))


def whole_characters(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[int, ...]:
    """The tokens without those that hold only a part of a character. A limit on tokens, or the model itself, may end inside one.

    Most characters beyond Latin take several bytes, and often several tokens. Timestamps stay. No character crosses a timestamp, so
    each run of text between two of them is checked by itself.
    """
    eot = tokenizer.eot
    runs = groupby(tokens, key=lambda token: token < eot)
    return tuple(chain.from_iterable(_whole_run(tokenizer, list(run)) if is_text else run for is_text, run in runs))


def _whole_run(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """Text tokens without those that hold a byte of an incomplete character. Leaving one out can break the next, hence the loop."""
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


def make_decoded(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    decoding: Decoding,
    *,
    language: str,
    avg_logprob: float,
    no_speech_prob: float,
    language_probability: float | None = None,
) -> Decoded:
    """A `Decoded` of the sampled tokens. Incomplete characters are left out, unless `ignore_eot`, an option of benchmarks, is set.

    Raises EngineError when a score is not finite: JSON has no such numbers.
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


def engine_error(error: Exception, runtime: str, windows: int) -> EngineError:
    """A runtime's error on a batch of `windows` windows as OutOfMemory or EngineError."""
    if lacks_memory(error):
        return OutOfMemory(f"no memory for a batch of {windows} windows: {first_line(error)}")
    return EngineError(f"{runtime} failed on a batch of {windows} windows: {first_line(error)}")


def lacks_memory(error: Exception) -> bool:
    """Whether a runtime raised the error because it lacks memory."""
    return isinstance(error, MemoryError | OutOfMemory) or any(words in first_line(error).lower() for words in _NO_MEMORY)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class when it has no message. TorchScript's own error is in its last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]


def compression_ratio(text: str) -> float:
    """Bytes of the text over its bytes after compression, as openai-whisper: above 2.4 the text repeats itself."""
    utf8 = text.encode()
    return len(utf8) / len(zlib.compress(utf8))
