"""Whisper's vocabulary in the files that other runtimes read. openai-whisper keeps it as tiktoken ranks, which they do
not support."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from ..tokenizer import Tokenizer


def token_names(tokenizer: Tokenizer) -> list[str]:
    """All token names by id: bytes in GPT-2's printable form, special tokens unchanged."""
    encoding = tokenizer.openai.encoding
    names = [_printable(encoding.decode_single_token_bytes(token)) for token in range(tokenizer.eot)]
    return names + sorted(tokenizer.openai.special_tokens, key=tokenizer.openai.special_tokens.__getitem__)


def tokenizer_json(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The vocabulary for Hugging Face's `tokenizers`: tokenizer.json, which faster-whisper and transformers read.

    Timestamps are added tokens but not special ones: transformers takes the first id after the special tokens for
    <|0.00|>.
    """
    names = token_names(tokenizer)
    bpe = tokenizers.Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names[: tokenizer.eot])}, merges=_merges(tokenizer)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[tokenizer.eot : tokenizer.timestamp_begin]])
    bpe.add_tokens([AddedToken(name, special=False, normalized=False) for name in names[tokenizer.timestamp_begin :]])
    return bpe


def _printable(token: bytes) -> str:
    return "".join(_BYTES[byte] for byte in token)


def _byte_names() -> list[str]:
    """GPT-2's printable character for each byte: the byte's own if it is printable, else the next one from U+0100 on."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


_BYTES = _byte_names()


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges implied by tiktoken's ranks: all splits of each token into two shorter ones, ordered by the ranks."""
    encoding = tokenizer.openai.encoding
    ranks = {encoding.decode_single_token_bytes(token): token for token in range(tokenizer.eot)}
    pairs = []
    for token, rank in ranks.items():
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs += [(rank, ranks[left], ranks[right], left, right) for left, right in halves if left in ranks and right in ranks]
    return [(_printable(left), _printable(right)) for *_, left, right in sorted(pairs)]
