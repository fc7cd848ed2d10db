"""The tokens that precede a window in the decoder's context: hotwords and earlier text."""

from __future__ import annotations

from ..options import Options
from ..tokenizer import Tokenizer
from ..types import MAX_PROMPT


def prompt_tokens(options: Options, tokenizer: Tokenizer, previous: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Hotwords, in at most half of `MAX_PROMPT`, then the last `previous` tokens; by default `initial_prompt`."""
    hotwords = tokenizer.encode(" " + options.hotwords.strip())[: MAX_PROMPT // 2] if options.hotwords else ()
    if previous is None:
        previous = initial_tokens(options, tokenizer)
    return (*hotwords, *previous[-(MAX_PROMPT - len(hotwords)) :])


def initial_tokens(options: Options, tokenizer: Tokenizer) -> tuple[int, ...]:
    """`initial_prompt` as openai-whisper encodes it."""
    return tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else ()
