"""One step of decoding for all rows: the next token greedily, by sampling, or by beams. Nothing here waits for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import drawn
from .cache import Cache
from .linear import Linear
from .logits import Vocabulary, constrain, penalise
from .model import Model
from .state import Bank, Rows


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step is made for: steps of equal shapes are the same CUDA graph.

    The first `windows` slots with `group` rows each, none with more than `reach` tokens. `sampled`: some row has a temperature;
    `ngram`: the largest no_repeat_ngram_size, None when no row has a penalty; `places`: of a window's finished beams, 0: no beams.
    """

    windows: int
    group: int
    reach: int
    sampled: bool
    ngram: int | None
    places: int

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.windows * self.group


@torch.no_grad()
def step(model: Model, cache: Cache, every: Rows, bank: Bank | None, vocabulary: Vocabulary, shape: Shape) -> None:
    """Sample one token for every row of `shape` that is not done, in place."""
    rows = every.first(shape.rows)
    # a row that is done or in nobody's use may be longer than those that this step is for
    at = (rows.length - 1).clamp(max=shape.reach - 1)
    last = rows.tokens.gather(1, at[:, None])[:, 0]
    hidden = model.step(last, at, cache, shape.windows, shape.group, shape.reach)
    if bank is None:
        choose = _choose if shape.sampled or shape.ngram is not None else model.part(_choose)
        token, gained = choose(model.unembed, hidden, rows, vocabulary, shape.sampled, shape.ngram)
        rows.score.add_(gained.masked_fill(rows.done, 0.0))
        _append(rows, token, (token == vocabulary.eot) | (rows.length + 1 >= rows.limit))
    else:
        _branch(_allowed(model.unembed, hidden, rows, vocabulary, shape.ngram), cache, rows, bank, vocabulary.eot, shape)


def _allowed(unembed: Linear, hidden: Tensor, rows: Rows, vocabulary: Vocabulary, ngram: int | None) -> Tensor:
    """Hidden states (rows, width) → float32 logits (rows, vocabulary), -inf for tokens that must not come."""
    logits = unembed(hidden).float()
    if ngram is not None:
        penalise(logits, rows, ngram)
    constrain(logits, rows, vocabulary)
    return logits


def _choose(unembed: Linear, hidden: Tensor, rows: Rows, vocabulary: Vocabulary, sampled: bool, ngram: int | None) -> tuple[Tensor, Tensor]:
    """Each row's next token (rows,), and its log-probability (rows,)."""
    logits = _allowed(unembed, hidden, rows, vocabulary, ngram)
    token = _chosen(logits, rows) if sampled else logits.argmax(dim=1)
    return token, logits.log_softmax(dim=1).gather(1, token[:, None])[:, 0]


def _chosen(logits: Tensor, rows: Rows) -> Tensor:
    """The likeliest token (rows,), or one drawn at the row's temperature.

    The noise is computed from the row's seed and how many tokens it has sampled, on the device: the step stays one CUDA graph.
    """
    hot = rows.temperature > 0
    sampled = drawn(logits, rows.temperature.where(hot, 1.0)[:, None], rows.seed, rows.length - rows.begin)
    return torch.where(hot, sampled, logits.argmax(dim=1))


def _append(rows: Rows, token: Tensor, ends: Tensor) -> None:
    """Write each row's next token, where it is not done; note which ones end with it."""
    at = rows.length[:, None]
    rows.tokens.scatter_(1, at, torch.where(rows.done[:, None], rows.tokens.gather(1, at), token[:, None]))
    rows.length.add_(~rows.done)
    rows.done.logical_or_(ends)


def _branch(logits: Tensor, cache: Cache, rows: Rows, bank: Bank, eot: int, shape: Shape) -> None:
    """One step of openai-whisper's BeamSearchDecoder, of all windows at once.

    Of each beam's `group` + 1 likeliest tokens, the best `group` sequences of the window that do not end go on; those that end and
    rank before the last of them are finished.
    """
    windows, group = shape.windows, shape.group
    gained, token = logits.log_softmax(dim=1).topk(group + 1, dim=1)
    score = (rows.score[:, None] + gained).view(windows, group, group + 1)
    # before the first token a window's beams are one and the same
    same = (rows.length == rows.begin).view(windows, group).clone()
    same[:, 0] = False
    ranked = score.masked_fill(same[..., None], -torch.inf).flatten(1).sort(dim=1, descending=True, stable=True)
    token = token.view(windows, -1).gather(1, ranked.indices)
    parent = ranked.indices // (group + 1) + torch.arange(windows, device=logits.device)[:, None] * group
    ends = token == eot
    finished = ends & ((~ends).cumsum(dim=1) < group) & (ranked.values > -torch.inf) & ~rows.done.view(windows, group)[:, :1]
    _finish(rows, bank, parent, ranked.values, finished, group)
    on = ends.to(torch.uint8).sort(dim=1, stable=True).indices[:, :group]
    _go_on(cache, rows, parent.gather(1, on).flatten(), token.gather(1, on).flatten(), ranked.values.gather(1, on).flatten(), shape)
    full = (bank.count[:windows, None] >= bank.places).expand(-1, group).reshape(-1)
    rows.done.logical_or_(full | (rows.length >= rows.limit))


def _finish(rows: Rows, bank: Bank, parent: Tensor, score: Tensor, finished: Tensor, group: int) -> None:
    """Keep the `finished` candidates (windows, candidates), best first, as long as there are places."""
    windows = len(parent)
    first = (~finished).to(torch.uint8).sort(dim=1, stable=True).indices[:, :group]
    valid, parent = finished.gather(1, first), parent.gather(1, first)
    place = bank.count[:windows, None] + torch.arange(group, device=parent.device)
    place = place.where(valid, bank.places).clamp(max=bank.places)
    tokens = rows.tokens[parent.flatten()].view(windows, group, -1)
    bank.tokens[:windows].scatter_(1, place[..., None].expand_as(tokens), tokens)
    bank.length[:windows].scatter_(1, place, rows.length[parent.flatten()].view(windows, group))
    bank.score[:windows].scatter_(1, place, score.gather(1, first))
    count = bank.count[:windows]
    count.copy_((count + valid.sum(dim=1)).clamp(max=bank.places))


def _go_on(cache: Cache, rows: Rows, source: Tensor, token: Tensor, score: Tensor, shape: Shape) -> None:
    """Row i continues row `source[i]` with `token[i]`; rows that are done stay as they are."""
    source = torch.where(rows.done, torch.arange(shape.rows, device=source.device), source)
    rows.tokens.copy_(rows.tokens.index_select(0, source))
    rows.score.copy_(torch.where(rows.done, rows.score, score))
    cache.reorder(source, shape.reach)
    _append(rows, token, torch.zeros_like(rows.done))
