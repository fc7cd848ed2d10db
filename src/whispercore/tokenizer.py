"""Whisper's tokens: the few functions of openai-whisper's tokenizer that engines and transcripts need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from . import openai_whisper
from .types import Task

if TYPE_CHECKING:
    from whisper.tokenizer import Tokenizer as OpenAITokenizer

SECONDS_PER_TIMESTAMP = 0.02
ENGLISH_ONLY_VOCABULARY = 51_864


@lru_cache(maxsize=256)
def _openai_tokenizer(multilingual: bool, num_languages: int, language: str | None, task: str | None) -> OpenAITokenizer:
    tokenizer: OpenAITokenizer = openai_whisper.tokenizer.get_tokenizer(
        multilingual, num_languages=num_languages, language=language, task=task
    )
    return tokenizer


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer of a vocabulary: 51,864 English only, 51,865 multilingual, 51,866 with Cantonese (large-v3)."""

    vocabulary: int

    @property
    def multilingual(self) -> bool:
        """Whether language and task tokens exist."""
        return self.vocabulary > ENGLISH_ONLY_VOCABULARY

    @property
    def openai(self) -> OpenAITokenizer:
        """openai-whisper's tokenizer, for everything that this class lacks."""
        return self.openai_for(None, None)

    def openai_for(self, language: str | None, task: Task | None) -> OpenAITokenizer:
        """openai-whisper's tokenizer for a language and task (cached)."""
        languages = self.vocabulary - 51_765 - int(self.multilingual)
        return _openai_tokenizer(self.multilingual, languages, language, task)

    @property
    def languages(self) -> tuple[str, ...]:
        """The ISO codes of the language tokens, in `openai.all_language_tokens`' order; ("en",) if English only."""
        return tuple(self.openai.all_language_codes) if self.multilingual else ("en",)

    @property
    def eot(self) -> int:
        """<|endoftext|>: every text token is below it."""
        return int(self.openai.eot)

    @property
    def timestamp_begin(self) -> int:
        """<|0.00|>; each following token is 0.02 s later."""
        return int(self.openai.timestamp_begin)

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of `text`. Text like `<|endoftext|>` is encoded as ordinary characters."""
        return tuple(self.openai.encoding.encode_ordinary(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, without special tokens and timestamps."""
        eot = self.eot
        return str(self.openai.decode([token for token in tokens if token < eot]))


def complete_segments(tokens: Sequence[int], timestamp_begin: int) -> int:
    """The number of sampled tokens in complete segments, by whisper.transcribe's rule.

    A segment ends at two timestamps in a row, or at a single timestamp at the very end. Text after the last such end is
    decoded again with the next window. Without two timestamps in a row all tokens are one segment.
    """
    is_time = [token >= timestamp_begin for token in tokens]
    pairs = [index for index in range(1, len(tokens)) if is_time[index - 1] and is_time[index]]
    finished = is_time[-2:] == [False, True]
    return len(tokens) if finished or not pairs else pairs[-1]
