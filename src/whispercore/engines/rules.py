"""What every engine shares of Whisper's decoding: the start of a sequence, the tokens it never samples, the making of a `Decoded`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

from ..errors import EngineError
from ..tokenizer import Tokenizer
from ..types import Decoded, Decoding

TEXT_CONTEXT = 448
MAX_SAMPLED = TEXT_CONTEXT // 2
MAX_PROMPT = TEXT_CONTEXT // 2 - 1
MAX_INITIAL_TIMESTAMP = 50
"""The first timestamp is at most this many steps of 0.02 s in: 1 s."""


def batch_key(decoding: Decoding) -> Decoding:
    """All of `decoding` but the language and the prompt's words: the sequences of one call begin with equally many tokens."""
    return replace(decoding, language=None, prompt=(0,) * min(len(decoding.prompt), MAX_PROMPT))


def start_tokens(tokenizer: Tokenizer, decoding: Decoding, language: str) -> list[int]:
    """What a sequence begins with: <|startofprev|>, the prompt's last 223 tokens, <|startoftranscript|>, language and task."""
    openai = tokenizer.openai_for(language, decoding.task)
    start = list(openai.sot_sequence if decoding.timestamps else openai.sot_sequence_including_notimestamps)
    prompt = decoding.prompt[-MAX_PROMPT:]
    return [openai.sot_prev, *prompt, *start] if prompt else start


def suppressed_tokens(tokenizer: Tokenizer) -> list[int]:
    """Tokens never sampled: speaker tags and other non-speech, and the special tokens; openai-whisper's `suppress_tokens="-1"`."""
    openai = tokenizer.openai
    special = [openai.transcribe, openai.translate, openai.sot, openai.sot_prev, openai.sot_lm, openai.no_speech]
    return sorted({*openai.non_speech_tokens, *special})


def sampled_length(decoding: Decoding) -> int:
    """How many tokens are sampled at most: never more than 224, half the text context."""
    return min(decoding.max_tokens or MAX_SAMPLED, MAX_SAMPLED)


def decoded(
    tokenizer: Tokenizer, tokens: Sequence[int], *, language: str, temperature: float, avg_logprob: float, no_speech_prob: float
) -> Decoded:
    """A `Decoded` of the sampled tokens. Raises EngineError when a score is not a number: JSON has none such."""
    if not (math.isfinite(avg_logprob) and math.isfinite(no_speech_prob)):
        raise EngineError("the model's scores are not numbers: its weights are broken, or the precision is too low for them")
    text = tokenizer.decode(tokens).strip()
    return Decoded(
        tokens=tuple(int(token) for token in tokens),
        text=text,
        language=language,
        temperature=float(temperature),
        avg_logprob=float(avg_logprob),
        no_speech_prob=float(no_speech_prob),
        compression_ratio=compression_ratio(text),
    )


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of it compressed, as openai-whisper: above 2.4 it repeats itself."""
    utf8 = text.encode()
    return len(utf8) / len(zlib.compress(utf8))
