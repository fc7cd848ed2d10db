"""One decoding step for all rows: the next token greedily, by sampling, or by beam search. Nothing here waits for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import drawn
from ..pytorch.cache import Cache
from ..pytorch.linear import Linear
from ..pytorch.model import Model
from .logits import Vocabulary, constrain, penalise
from .state import FinishedBeams, Rows


@dataclass(frozen=True, slots=True)
class StepShape:
    """The shape of a step: steps of equal shapes are the same CUDA graph.

    The first `windows` slots with `group` rows each, none with more than `kv_length` tokens. `sampled`: some row has a temperature.
    `ngram`: the largest no_repeat_ngram_size; None when no row has a penalty. `max_finished`: finished beams of a window; 0: no beams.
    """

    windows: int
    group: int
    kv_length: int
    sampled: bool
    ngram: int | None
    max_finished: int

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.windows * self.group


@torch.no_grad()
def step(model: Model, cache: Cache, all_rows: Rows, beams: FinishedBeams | None, vocabulary: Vocabulary, shape: StepShape) -> None:
    """Sample one token, in place, for every row of `shape` that is not done."""
    rows = all_rows.first(shape.rows)
    # a row that is done or unused may be longer than this step's shape
    at = (rows.length - 1).clamp(max=shape.kv_length - 1)
    last = rows.tokens.gather(1, at[:, None])[:, 0]
    hidden = model.step(last, at, cache, shape.windows, shape.group, shape.kv_length)
    if beams is None:
        next_token = _next_token if shape.sampled or shape.ngram is not None else model.part(_next_token)
        token, logprob = next_token(model.unembed, hidden, rows, vocabulary, shape.sampled, shape.ngram)
        rows.score.add_(logprob.masked_fill(rows.done, 0.0))
        _append(rows, token, (token == vocabulary.eot) | (rows.length + 1 >= rows.limit))
    else:
        logits = _constrained_logits(model.unembed, hidden, rows, vocabulary, shape.ngram)
        _beam_step(logits, cache, rows, beams, vocabulary.eot, shape)


def _constrained_logits(unembed: Linear, hidden: Tensor, rows: Rows, vocabulary: Vocabulary, ngram: int | None) -> Tensor:
    """Hidden states (rows, width) → float32 logits (rows, vocabulary), -inf for tokens that the rules exclude."""
    logits = unembed(hidden).float()
    if ngram is not None:
        penalise(logits, rows, ngram)
    constrain(logits, rows, vocabulary)
    return logits


def _next_token(
    unembed: Linear, hidden: Tensor, rows: Rows, vocabulary: Vocabulary, sampled: bool, ngram: int | None
) -> tuple[Tensor, Tensor]:
    """Each row's next token (rows,), and its log-probability (rows,)."""
    logits = _constrained_logits(unembed, hidden, rows, vocabulary, ngram)
    token = _sampled_or_likeliest(logits, rows) if sampled else logits.argmax(dim=1)
    return token, logits.log_softmax(dim=1).gather(1, token[:, None])[:, 0]


def _sampled_or_likeliest(logits: Tensor, rows: Rows) -> Tensor:
    """A token (rows,) drawn at the row's temperature, or the likeliest where that is 0.

    The noise is computed on the device, from the row's seed and the number of its sampled tokens, so the step stays one CUDA graph.
    """
    hot = rows.temperature > 0
    sampled = drawn(logits, rows.temperature.where(hot, 1.0)[:, None], rows.seed, rows.length - rows.begin)
    return torch.where(hot, sampled, logits.argmax(dim=1))


def _append(rows: Rows, token: Tensor, ends: Tensor) -> None:
    """Append a token to each row that is not done; rows where `ends` is true are done then."""
    at = rows.length[:, None]
    rows.tokens.scatter_(1, at, torch.where(rows.done[:, None], rows.tokens.gather(1, at), token[:, None]))
    rows.length.add_(~rows.done)
    rows.done.logical_or_(ends)


def _beam_step(logits: Tensor, cache: Cache, rows: Rows, beams: FinishedBeams, eot: int, shape: StepShape) -> None:
    """One step of openai-whisper's BeamSearchDecoder, for all windows at once.

    Each beam proposes its `group` + 1 likeliest tokens. The window's best `group` sequences that do not end go on; sequences that end
    and rank before the last of those are finished.
    """
    windows, group = shape.windows, shape.group
    logprob, token = logits.log_softmax(dim=1).topk(group + 1, dim=1)
    score = (rows.score[:, None] + logprob).view(windows, group, group + 1)
    # before the first token all beams of a window are equal, so only the first one counts
    duplicate = (rows.length == rows.begin).view(windows, group).clone()
    duplicate[:, 0] = False
    ranked = score.masked_fill(duplicate[..., None], -torch.inf).flatten(1).sort(dim=1, descending=True, stable=True)
    token = token.view(windows, -1).gather(1, ranked.indices)
    parent = ranked.indices // (group + 1) + torch.arange(windows, device=logits.device)[:, None] * group
    ends = token == eot
    finished = ends & ((~ends).cumsum(dim=1) < group) & (ranked.values > -torch.inf) & ~rows.done.view(windows, group)[:, :1]
    _keep_finished(rows, beams, parent, ranked.values, finished, group)
    live = ends.to(torch.uint8).sort(dim=1, stable=True).indices[:, :group]
    source, token, score = (values.gather(1, live).flatten() for values in (parent, token, ranked.values))
    _continue_beams(cache, rows, source, token, score, shape)
    full = (beams.count[:windows, None] >= beams.capacity).expand(-1, group).reshape(-1)
    rows.done.logical_or_(full | (rows.length >= rows.limit))


def _keep_finished(rows: Rows, beams: FinishedBeams, parent: Tensor, score: Tensor, finished: Tensor, group: int) -> None:
    """Store the `finished` candidates (windows, candidates), best first, while there is room."""
    windows = len(parent)
    first = (~finished).to(torch.uint8).sort(dim=1, stable=True).indices[:, :group]
    valid, parent = finished.gather(1, first), parent.gather(1, first)
    position = beams.count[:windows, None] + torch.arange(group, device=parent.device)
    position = position.where(valid, beams.capacity).clamp(max=beams.capacity)
    tokens = rows.tokens[parent.flatten()].view(windows, group, -1)
    beams.tokens[:windows].scatter_(1, position[..., None].expand_as(tokens), tokens)
    beams.length[:windows].scatter_(1, position, rows.length[parent.flatten()].view(windows, group))
    beams.score[:windows].scatter_(1, position, score.gather(1, first))
    count = beams.count[:windows]
    count.copy_((count + valid.sum(dim=1)).clamp(max=beams.capacity))


def _continue_beams(cache: Cache, rows: Rows, source: Tensor, token: Tensor, score: Tensor, shape: StepShape) -> None:
    """Row i continues row `source[i]` with `token[i]`; rows that are done stay unchanged."""
    source = torch.where(rows.done, torch.arange(shape.rows, device=source.device), source)
    rows.tokens.copy_(rows.tokens.index_select(0, source))
    rows.score.copy_(torch.where(rows.done, rows.score, score))
    cache.reorder(source, shape.kv_length)
    _append(rows, token, torch.zeros_like(rows.done))
