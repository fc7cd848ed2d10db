"""Whisper's rules for logits (LogitFilter in openai-whisper's decoding.py), for all rows at once and without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...tokenizer import Tokenizer
from .state import Rows


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens that the rules name: <|endoftext|>, <|0.00|>, and, as a tensor on the device, the blanks " " and <|endoftext|>."""

    eot: int
    begin: int
    blanks: Tensor


def vocabulary(tokenizer: Tokenizer, device: torch.device) -> Vocabulary:
    """The tokenizer's `Vocabulary`."""
    blanks = torch.tensor([*tokenizer.encode(" "), tokenizer.eot], device=device)
    return Vocabulary(tokenizer.eot, tokenizer.timestamp_begin, blanks)


def penalise(logits: Tensor, rows: Rows, longest: int) -> None:
    """Apply CTranslate2's repetition_penalty and no_repeat_ngram_size, in place. `longest`: the largest no_repeat_ngram_size."""
    columns = torch.arange(rows.tokens.shape[1], device=logits.device)
    sampled = (columns >= rows.begin[:, None]) & (columns < rows.length[:, None])
    filler = rows.tokens[:, :1]  # in the scatter it stands for positions that were not sampled
    repeated = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, rows.tokens.where(sampled, filler), True)
    repeated.scatter_(1, filler, (sampled & (rows.tokens == filler)).any(dim=1, keepdim=True))
    penalty = rows.penalty[:, None]
    logits.copy_(torch.where(repeated, torch.where(logits < 0, logits * penalty, logits / penalty), logits))
    _forbid_repeated(logits, rows, sampled, longest)


def _forbid_repeated(logits: Tensor, rows: Rows, sampled: Tensor, longest: int) -> None:
    """Mask every sampled token whose predecessors are the row's last `ngram` - 1 tokens."""
    same = sampled & (rows.ngram > 0)[:, None]
    for back in range(1, longest):
        last = rows.tokens.gather(1, (rows.length - back).clamp(min=0)[:, None])
        exists = (rows.length - back >= rows.begin)[:, None]
        before = torch.zeros_like(same)
        before[:, back:] = sampled[:, :-back] & (rows.tokens[:, :-back] == last)
        same &= (before & exists) | (back >= rows.ngram)[:, None]
    forbidden = torch.zeros(logits.shape, dtype=torch.int8, device=logits.device)
    forbidden.scatter_reduce_(1, rows.tokens, same.to(torch.int8), "amax")
    logits.masked_fill_(forbidden.bool(), -torch.inf)


def constrain(logits: Tensor, rows: Rows, vocabulary: Vocabulary) -> None:
    """Mask `logits` (rows, vocabulary) in place for each row's next token: suppressed tokens, blanks, the rules of timestamps."""
    first = rows.length == rows.begin
    logits.masked_fill_(rows.suppressed, -torch.inf)
    blanks = logits[:, vocabulary.blanks].masked_fill((first & rows.blank)[:, None], -torch.inf)
    logits.index_copy_(1, vocabulary.blanks, blanks)
    _apply_timestamp_rules(logits, rows, vocabulary, first)
    texts, times = logits[:, : vocabulary.begin], logits[:, vocabulary.begin :]
    likelier = rows.timed & (times.logsumexp(dim=1) > texts.amax(dim=1))
    texts.masked_fill_(likelier[:, None], -torch.inf)


def _apply_timestamp_rules(logits: Tensor, rows: Rows, vocabulary: Vocabulary, first: Tensor) -> None:
    """Timestamps come first, in pairs except before the end, and never decrease; a segment is never empty."""
    begin, columns = vocabulary.begin, torch.arange(rows.tokens.shape[1], device=logits.device)
    is_time = (rows.tokens >= begin) & (columns >= rows.begin[:, None])
    last = is_time.gather(1, (rows.length - 1)[:, None])[:, 0]
    before = is_time.gather(1, (rows.length - 2).clamp(min=0)[:, None])[:, 0] | (rows.length - rows.begin < 2)
    opened = last & ~before
    latest = rows.tokens.where(is_time, begin - 1).amax(dim=1)
    lowest = torch.where(opened, latest, latest + 1)
    highest = torch.where(first, rows.latest_first, logits.shape[1])
    times = torch.arange(begin, logits.shape[1], device=logits.device)
    wrong = (times < lowest[:, None]) | (times > highest[:, None]) | (last & before)[:, None]
    logits[:, begin:].masked_fill_(wrong & rows.timed[:, None], -torch.inf)
    logits[:, : vocabulary.eot].masked_fill_((opened & rows.timed)[:, None], -torch.inf)
    logits[:, :begin].masked_fill_((first & rows.timed)[:, None], -torch.inf)
