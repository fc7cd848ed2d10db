"""openai-whisper's decoding as one compiled loop on the device: all sequences of a batch at once, all rules as masks.

Letters in the shapes as in model.py, and: V vocabulary (with its padding), n tokens sampled at most, f finished beams kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ...types import MAX_SAMPLED
from .model import KeyValues, Params, decode, empty_cache, logits


@dataclass(frozen=True, slots=True)
class Search:
    """What the loop is compiled for: one program for each combination.

    `group` sequences of each window: samples, or beams when `finished`, the most finished beams kept, is not 0.
    `vocabulary`, `eot`, `begin` (<|0.00|>): the tokenizer's.
    """

    vocabulary: int
    eot: int
    begin: int
    group: int = 1
    finished: int = 0
    sampled: bool = False
    timestamps: bool = True


class Start(NamedTuple):
    """What a batch's sequences begin with, aligned to the right, and what may follow.

    `tokens` (b, s); `padding` (b,): how many of them precede the start; `sot` (): where all have <|startoftranscript|>;
    `limit` (b,): tokens to sample at most; `enough` (): finished beams that end a window; `temperature` (); `seeds` (b, 2): of
    each window's random numbers; `never` (V,), `not_first` (V,): tokens that are not sampled at all, or not as the first.
    """

    tokens: Array
    padding: Array
    sot: Array
    limit: Array
    enough: Array
    temperature: Array
    seeds: Array
    never: Array
    not_first: Array


class Sequences(NamedTuple):
    """Sequences and their sums of log-probabilities, the sampled tokens only: `tokens` (b, ., n), `sums` (b, .)."""

    tokens: Array
    sums: Array


class State(NamedTuple):
    """The loop's: `at` () tokens are sampled; `live` (b, g); `ended` (b, g); `finished` (b, f) beams, `kept` (b,) of them.

    `owners` (b, g, c): which of the group's caches holds a sequence's keys at each position, so that beams change places by
    renumbering, with no copy of the cache.
    """

    at: Array
    live: Sequences
    ended: Array
    finished: Sequences
    kept: Array
    owners: Array
    cache: KeyValues


class Sampled(NamedTuple):
    """The loop's outcome; `no_speech` (b,): the probability of <|nospeech|> at <|startoftranscript|>."""

    live: Sequences
    finished: Sequences
    kept: Array
    no_speech: Array


def detect(params: Params, audio: KeyValues, sot: Array, first: int, count: int) -> Array:
    """The probability of each language, (b, count): of the `count` tokens from `first` on after <|startoftranscript|>, () `sot`."""
    b = audio[0][0].shape[0]
    tokens = jnp.full((b, 1, 1), sot, jnp.int32)
    mask = jnp.ones((b, 1, 1), bool)
    hidden, _, _ = decode(params, tokens, jnp.zeros_like(tokens), mask, 0, empty_cache(audio, 1, 1), audio)
    return jax.nn.softmax(logits(params, hidden[:, 0, 0], first + count)[:, first : first + count])


def sample(params: Params, audio: KeyValues, start: Start, search: Search, no_speech: int) -> Sampled:
    """Sample every sequence to its end; `no_speech`: the token."""
    state, raw, silence = _begin(params, audio, start, search, no_speech)
    choose = _choose_beams if search.finished else _choose_tokens

    def body(state: State) -> State:
        raw, cache = _step(params, audio, start, search, state)
        return choose(state._replace(cache=cache), _ruled(raw, state, start, search), start, search)

    def going(state: State) -> Array:
        return (state.at < MAX_SAMPLED) & ~state.ended.all()

    state = choose(state, _ruled(raw, state, start, search), start, search)
    state = lax.while_loop(going, body, state)
    return Sampled(state.live, state.finished, state.kept, silence)


def _begin(params: Params, audio: KeyValues, start: Start, search: Search, no_speech: int) -> tuple[State, Array, Array]:
    """The state after the start tokens, the logits (b, g, V) of the first token, the probability (b,) of silence."""
    (b, s), g = start.tokens.shape, search.group
    length = s + MAX_SAMPLED
    index = jnp.arange(s)
    seen = (index[None, :] <= index[:, None]) & (index >= start.padding[:, None])[:, None]  # (b, s, s)
    mask = jnp.zeros((b, s, g, length), bool).at[:, :, 0, :s].set(seen).reshape(b, s, -1)
    positions = jnp.maximum(index - start.padding[:, None], 0)
    cache = empty_cache(audio, g, length)
    hidden, cache, _ = decode(params, start.tokens[:, None], positions[:, None], mask, 0, cache, audio)
    at_sot = lax.dynamic_index_in_dim(hidden[:, 0], start.sot, 1, keepdims=False)
    silence = jax.nn.softmax(logits(params, at_sot, search.vocabulary))[:, no_speech]
    raw = logits(params, hidden[:, 0, -1], search.vocabulary)
    own = jnp.where(jnp.arange(length) < s, 0, jnp.arange(g)[:, None])
    state = State(
        at=jnp.int32(0),
        live=Sequences(jnp.full((b, g, MAX_SAMPLED), search.eot, jnp.int32), jnp.zeros((b, g))),
        ended=jnp.broadcast_to(start.limit[:, None] <= 0, (b, g)),
        finished=Sequences(jnp.full((b, search.finished, MAX_SAMPLED), search.eot, jnp.int32), jnp.zeros((b, search.finished))),
        kept=jnp.zeros(b, jnp.int32),
        owners=jnp.broadcast_to(own, (b, g, length)).astype(jnp.int32),
        cache=cache,
    )
    return state, jnp.broadcast_to(raw[:, None], (b, g, raw.shape[-1])), silence


def _step(params: Params, audio: KeyValues, start: Start, search: Search, state: State) -> tuple[Array, KeyValues]:
    """Feed the token sampled last: the next one's logits (b, g, V), and the cache."""
    (b, s), g = start.tokens.shape, search.group
    at = s + state.at - 1
    last = lax.dynamic_index_in_dim(state.live.tokens, state.at - 1, 2)
    index = jnp.arange(state.owners.shape[-1])
    there = (index <= at) & (index >= start.padding[:, None])  # (b, c)
    mask = (state.owners[:, :, None] == jnp.arange(g)[:, None]) & there[:, None, None]  # (b, g, g', c)
    positions = jnp.broadcast_to((at - start.padding)[:, None, None], (b, g, 1))
    hidden, cache, _ = decode(params, last, positions, mask.reshape(b, g, -1), at, state.cache, audio)
    return logits(params, hidden[:, :, 0], search.vocabulary), cache


def _ruled(raw: Array, state: State, start: Start, search: Search) -> Array:
    """Log-probabilities (b, g, V) of the next token: of logits `raw`, after openai-whisper's rules."""
    forbidden = start.never | (start.not_first & (state.at == 0))
    if search.timestamps:
        forbidden = forbidden | _untimely(state, search, raw.shape[-1])
    logprobs = jax.nn.log_softmax(jnp.where(forbidden, -jnp.inf, raw))
    if not search.timestamps:
        return logprobs
    is_time = jnp.arange(raw.shape[-1]) >= search.begin
    times = jax.nn.logsumexp(jnp.where(is_time, logprobs, -jnp.inf), axis=-1, keepdims=True)
    texts = jnp.where(is_time, -jnp.inf, logprobs).max(-1, keepdims=True)
    # of the times alone, where they are likelier together than any text: what is left is scaled to sum to 1 again
    return jnp.where(times > texts, jnp.where(is_time, logprobs - times, -jnp.inf), logprobs)


def _untimely(state: State, search: Search, vocabulary: int) -> Array:
    """Tokens (b, g, V) that break the rules: timestamps come in pairs, except before the end, and never decrease; none is empty."""
    tokens, at, token = state.live.tokens, state.at, jnp.arange(vocabulary)
    last, before = (lax.dynamic_index_in_dim(tokens, jnp.maximum(at - back, 0), 2) >= search.begin for back in (1, 2))
    before = before | (at < 2)
    opened = last & ~before
    latest = jnp.where(tokens >= search.begin, tokens, search.begin - 1).max(-1, keepdims=True)
    first_allowed = jnp.where(opened, latest, latest + 1)
    wrong_time: Array = (token >= search.begin) & ((token < first_allowed) | (last & before))
    unclosed: Array = opened & (token < search.eot)
    return wrong_time | unclosed


def _choose_tokens(state: State, logprobs: Array, start: Start, search: Search) -> State:
    """Every sequence goes on by itself: the likeliest token, or one drawn at a temperature."""
    choice = logprobs
    if search.sampled:
        choice = logprobs / start.temperature + _noise(start.seeds, state.at, logprobs.shape)
    token = jnp.where(state.ended, search.eot, choice.argmax(-1)).astype(jnp.int32)
    logprob = jnp.take_along_axis(logprobs, token[..., None], -1)[..., 0]
    tokens = lax.dynamic_update_slice(state.live.tokens, token[..., None], (0, 0, state.at))
    sums = state.live.sums + jnp.where(state.ended, 0.0, logprob)
    ended = state.ended | (token == search.eot) | (state.at + 1 >= start.limit[:, None])
    return state._replace(at=state.at + 1, live=Sequences(tokens, sums), ended=ended)


def _noise(seeds: Array, at: Array, shape: tuple[int, ...]) -> Array:
    """Gumbel noise (b, g, V) for the token number `at`: each row's own, whatever stands beside it."""
    _, g, size = shape

    def of_row(key: Array, sample: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, sample), at), (size,))

    of_window = jax.vmap(of_row, (None, 0))
    noise: Array = jax.vmap(of_window, (0, None))(jax.random.wrap_key_data(seeds), jnp.arange(g))
    return noise


def _choose_beams(state: State, logprobs: Array, start: Start, search: Search) -> State:
    """openai-whisper's beam search: of each beam's likeliest tokens the best ones go on, and ends seen on the way are kept."""
    candidates, source, ends = _candidates(state, logprobs, search)
    # openai-whisper looks no further than the last beam that goes on
    seen = jnp.cumsum(~ends, -1) - ~ends < search.group
    finished, kept = _kept(state, candidates, ends & seen, start.enough)
    chosen = jnp.argsort(ends, axis=-1, stable=True)[:, : search.group]
    tokens = jnp.where(state.ended[..., None], state.live.tokens, _taken(candidates.tokens, chosen))
    sums = jnp.where(state.ended, state.live.sums, jnp.take_along_axis(candidates.sums, chosen, -1))
    written = jnp.arange(state.owners.shape[-1]) < start.tokens.shape[1] + state.at
    owners = jnp.where(written, _taken(state.owners, jnp.take_along_axis(source, chosen, -1)), state.owners)
    ended = state.ended | (kept >= start.enough)[:, None] | (state.at + 1 >= start.limit[:, None])
    return state._replace(at=state.at + 1, live=Sequences(tokens, sums), ended=ended, finished=finished, kept=kept, owners=owners)


def _candidates(state: State, logprobs: Array, search: Search) -> tuple[Sequences, Array, Array]:
    """Every beam with each of its g + 1 likeliest tokens, the best first; their beams, and which of them end: (b, g x (g + 1))."""
    b, g = state.ended.shape
    best, token = lax.top_k(logprobs, g + 1)
    # at first all beams are the same: only one of them counts
    twin = (state.at == 0) & (jnp.arange(g) > 0)[:, None]
    sums = jnp.where(twin, -jnp.inf, state.live.sums[..., None] + best).reshape(b, -1)
    sums, index = lax.top_k(sums, sums.shape[-1])
    source, token = index // (g + 1), jnp.take_along_axis(token.reshape(b, -1), index, -1)
    tokens = lax.dynamic_update_slice(_taken(state.live.tokens, source), token[..., None], (0, 0, state.at))
    return Sequences(tokens, sums), source, token == search.eot


def _kept(state: State, candidates: Sequences, new: Array, enough: Array) -> tuple[Sequences, Array]:
    """The finished beams with those candidates that are `new` (b, candidates), in their order, while there is room."""
    slots = jnp.arange(state.finished.sums.shape[-1])
    slot = state.kept[:, None] + jnp.cumsum(new, -1) - 1
    new = new & ~state.ended[:, :1] & (slot < enough)
    lands = new[..., None] & (slot[..., None] == slots)  # (b, candidates, f)
    source, filled = lands.argmax(1), lands.any(1)
    tokens = jnp.where(filled[..., None], _taken(candidates.tokens, source), state.finished.tokens)
    sums = jnp.where(filled, jnp.take_along_axis(candidates.sums, source, -1), state.finished.sums)
    return Sequences(tokens, sums), state.kept + filled.sum(-1, dtype=jnp.int32)


def _taken(array: Array, index: Array) -> Array:
    """(b, x, z) at `index` (b, y) of its second axis: (b, y, z)."""
    return jnp.take_along_axis(array, index[..., None], 1)
