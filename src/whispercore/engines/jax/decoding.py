"""openai-whisper's decoding as one compiled loop on the device: all sequences of a batch at once, the rules as masks.

Letters in the shapes as in model.py, and: V vocabulary (with its padding), n the most tokens sampled, f finished beams kept.
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
class LoopConfig:
    """The static arguments of the loop: XLA compiles one program for each combination.

    `group`: sequences of each window, which are beams when `finished`, the room for finished beams, is not 0, else samples.
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
    """The start sequences of a batch, aligned to the right, and the rules for what follows them.

    `tokens` (b, s); `padding` (b,): tokens before the start; `sot` (): the common position of <|startoftranscript|>; `limit` (b,): the
    most tokens to sample; `enough` (): the number of finished beams at which a window ends; `temperature` (); `seeds` (b, 2): of each
    window's random numbers; `never` (V,), `not_first` (V,): masks of tokens that are never sampled, or never first.
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
    """Sampled tokens (b, ., n), without the starts, and the sums of their log-probabilities (b, .)."""

    tokens: Array
    sums: Array


class State(NamedTuple):
    """The loop's state after `at` () sampled tokens: `live` (b, g) sequences, `ended` (b, g), `finished` (b, f) beams, `kept` (b,) of them.

    `owners` (b, g, c): the index in the group of the cache that holds a sequence's keys at each position. Beams change places by
    renumbering; the cache is not copied.
    """

    at: Array
    live: Sequences
    ended: Array
    finished: Sequences
    kept: Array
    owners: Array
    cache: KeyValues


class Sampled(NamedTuple):
    """The loop's result. `no_speech` (b,): the probability of <|nospeech|> at <|startoftranscript|>."""

    live: Sequences
    finished: Sequences
    kept: Array
    no_speech: Array


def detect(params: Params, audio: KeyValues, sot: Array, first: int, count: int) -> Array:
    """The probabilities (b, count) of the `count` language tokens from `first` on, after <|startoftranscript|>, () `sot`."""
    b = audio[0][0].shape[0]
    tokens = jnp.full((b, 1, 1), sot, jnp.int32)
    mask = jnp.ones((b, 1, 1), bool)
    hidden, _, _ = decode(params, tokens, jnp.zeros_like(tokens), mask, 0, empty_cache(audio, 1, 1), audio)
    return jax.nn.softmax(logits(params, hidden[:, 0, 0], first + count)[:, first : first + count])


def sample(params: Params, audio: KeyValues, start: Start, config: LoopConfig, no_speech: int) -> Sampled:
    """Sample every sequence to its end. `no_speech`: the token <|nospeech|>."""
    state, raw, silence = _begin(params, audio, start, config, no_speech)
    choose = _choose_beams if config.finished else _choose_tokens

    def body(state: State) -> State:
        raw, cache = _step(params, audio, start, config, state)
        return choose(state._replace(cache=cache), _ruled(raw, state, start, config), start, config)

    def going(state: State) -> Array:
        return (state.at < MAX_SAMPLED) & ~state.ended.all()

    state = choose(state, _ruled(raw, state, start, config), start, config)
    state = lax.while_loop(going, body, state)
    return Sampled(state.live, state.finished, state.kept, silence)


def _begin(params: Params, audio: KeyValues, start: Start, config: LoopConfig, no_speech: int) -> tuple[State, Array, Array]:
    """The state after the prefill, the logits (b, g, V) of the first token, the probability (b,) of no speech."""
    (b, s), g = start.tokens.shape, config.group
    length = s + MAX_SAMPLED
    index = jnp.arange(s)
    visible = (index[None, :] <= index[:, None]) & (index >= start.padding[:, None])[:, None]  # (b, s, s)
    mask = jnp.zeros((b, s, g, length), bool).at[:, :, 0, :s].set(visible).reshape(b, s, -1)
    positions = jnp.maximum(index - start.padding[:, None], 0)
    cache = empty_cache(audio, g, length)
    hidden, cache, _ = decode(params, start.tokens[:, None], positions[:, None], mask, 0, cache, audio)
    at_sot = lax.dynamic_index_in_dim(hidden[:, 0], start.sot, 1, keepdims=False)
    silence = jax.nn.softmax(logits(params, at_sot, config.vocabulary))[:, no_speech]
    raw = logits(params, hidden[:, 0, -1], config.vocabulary)
    own = jnp.where(jnp.arange(length) < s, 0, jnp.arange(g)[:, None])
    state = State(
        at=jnp.int32(0),
        live=Sequences(jnp.full((b, g, MAX_SAMPLED), config.eot, jnp.int32), jnp.zeros((b, g))),
        ended=jnp.broadcast_to(start.limit[:, None] <= 0, (b, g)),
        finished=Sequences(jnp.full((b, config.finished, MAX_SAMPLED), config.eot, jnp.int32), jnp.zeros((b, config.finished))),
        kept=jnp.zeros(b, jnp.int32),
        owners=jnp.broadcast_to(own, (b, g, length)).astype(jnp.int32),
        cache=cache,
    )
    return state, jnp.broadcast_to(raw[:, None], (b, g, raw.shape[-1])), silence


def _step(params: Params, audio: KeyValues, start: Start, config: LoopConfig, state: State) -> tuple[Array, KeyValues]:
    """Feed the last sampled token; returns the logits (b, g, V) of the next one, and the cache."""
    (b, s), g = start.tokens.shape, config.group
    at = s + state.at - 1
    last = lax.dynamic_index_in_dim(state.live.tokens, state.at - 1, 2)
    index = jnp.arange(state.owners.shape[-1])
    there = (index <= at) & (index >= start.padding[:, None])  # (b, c)
    mask = (state.owners[:, :, None] == jnp.arange(g)[:, None]) & there[:, None, None]  # (b, g, g', c)
    positions = jnp.broadcast_to((at - start.padding)[:, None, None], (b, g, 1))
    hidden, cache, _ = decode(params, last, positions, mask.reshape(b, g, -1), at, state.cache, audio)
    return logits(params, hidden[:, :, 0], config.vocabulary), cache


def _ruled(raw: Array, state: State, start: Start, config: LoopConfig) -> Array:
    """Log-probabilities (b, g, V) of the next token, from the logits `raw` under openai-whisper's rules."""
    forbidden = start.never | (start.not_first & (state.at == 0))
    if config.timestamps:
        forbidden = forbidden | _breaks_timestamp_rules(state, config, raw.shape[-1])
    logprobs = jax.nn.log_softmax(jnp.where(forbidden, -jnp.inf, raw))
    if not config.timestamps:
        return logprobs
    is_time = jnp.arange(raw.shape[-1]) >= config.begin
    times = jax.nn.logsumexp(jnp.where(is_time, logprobs, -jnp.inf), axis=-1, keepdims=True)
    texts = jnp.where(is_time, -jnp.inf, logprobs).max(-1, keepdims=True)
    # only timestamps, where these together are likelier than any text token; their probabilities are scaled to sum to 1
    return jnp.where(times > texts, jnp.where(is_time, logprobs - times, -jnp.inf), logprobs)


def _breaks_timestamp_rules(state: State, config: LoopConfig, vocabulary: int) -> Array:
    """Mask (b, g, V) of tokens against the timestamp rules: in pairs, except before the end, never decreasing, no empty segment."""
    tokens, at, token = state.live.tokens, state.at, jnp.arange(vocabulary)
    last, before = (lax.dynamic_index_in_dim(tokens, jnp.maximum(at - back, 0), 2) >= config.begin for back in (1, 2))
    before = before | (at < 2)
    opened = last & ~before
    latest = jnp.where(tokens >= config.begin, tokens, config.begin - 1).max(-1, keepdims=True)
    first_allowed = jnp.where(opened, latest, latest + 1)
    wrong_time: Array = (token >= config.begin) & ((token < first_allowed) | (last & before))
    unclosed: Array = opened & (token < config.eot)
    return wrong_time | unclosed


def _choose_tokens(state: State, logprobs: Array, start: Start, config: LoopConfig) -> State:
    """Extend every sequence by its likeliest token, or by one drawn at the temperature."""
    choice = logprobs
    if config.sampled:
        choice = logprobs / start.temperature + _noise(start.seeds, state.at, logprobs.shape)
    token = jnp.where(state.ended, config.eot, choice.argmax(-1)).astype(jnp.int32)
    logprob = jnp.take_along_axis(logprobs, token[..., None], -1)[..., 0]
    tokens = lax.dynamic_update_slice(state.live.tokens, token[..., None], (0, 0, state.at))
    sums = state.live.sums + jnp.where(state.ended, 0.0, logprob)
    ended = state.ended | (token == config.eot) | (state.at + 1 >= start.limit[:, None])
    return state._replace(at=state.at + 1, live=Sequences(tokens, sums), ended=ended)


def _noise(seeds: Array, at: Array, shape: tuple[int, ...]) -> Array:
    """Gumbel noise (b, g, V) for the token number `at`, which depends on the row's own seed only."""
    _, g, size = shape

    def of_row(key: Array, sample: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, sample), at), (size,))

    of_window = jax.vmap(of_row, (None, 0))
    noise: Array = jax.vmap(of_window, (0, None))(jax.random.wrap_key_data(seeds), jnp.arange(g))
    return noise


def _choose_beams(state: State, logprobs: Array, start: Start, config: LoopConfig) -> State:
    """openai-whisper's beam search: the best of each beam's likeliest tokens go on; sequences that end and rank before them are kept."""
    candidates, source, ends = _candidates(state, logprobs, config)
    # as openai-whisper, which stops at the last beam that goes on
    in_reach = jnp.cumsum(~ends, -1) - ~ends < config.group
    finished, kept = _kept(state, candidates, ends & in_reach, start.enough)
    chosen = jnp.argsort(ends, axis=-1, stable=True)[:, : config.group]
    tokens = jnp.where(state.ended[..., None], state.live.tokens, _taken(candidates.tokens, chosen))
    sums = jnp.where(state.ended, state.live.sums, jnp.take_along_axis(candidates.sums, chosen, -1))
    written = jnp.arange(state.owners.shape[-1]) < start.tokens.shape[1] + state.at
    owners = jnp.where(written, _taken(state.owners, jnp.take_along_axis(source, chosen, -1)), state.owners)
    ended = state.ended | (kept >= start.enough)[:, None] | (state.at + 1 >= start.limit[:, None])
    return state._replace(at=state.at + 1, live=Sequences(tokens, sums), ended=ended, finished=finished, kept=kept, owners=owners)


def _candidates(state: State, logprobs: Array, config: LoopConfig) -> tuple[Sequences, Array, Array]:
    """Every beam with each of its g + 1 likeliest tokens, best first; their source beams, and which end: (b, g x (g + 1)) each."""
    b, g = state.ended.shape
    best, token = lax.top_k(logprobs, g + 1)
    # before the first token all beams are equal, so only one of them counts
    duplicate = (state.at == 0) & (jnp.arange(g) > 0)[:, None]
    sums = jnp.where(duplicate, -jnp.inf, state.live.sums[..., None] + best).reshape(b, -1)
    sums, index = lax.top_k(sums, sums.shape[-1])
    source, token = index // (g + 1), jnp.take_along_axis(token.reshape(b, -1), index, -1)
    tokens = lax.dynamic_update_slice(_taken(state.live.tokens, source), token[..., None], (0, 0, state.at))
    return Sequences(tokens, sums), source, token == config.eot


def _kept(state: State, candidates: Sequences, new: Array, enough: Array) -> tuple[Sequences, Array]:
    """The finished beams and, while there is room, the candidates that `new` (b, candidates) marks, in their order."""
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
