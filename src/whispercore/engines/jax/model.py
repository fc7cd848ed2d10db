"""Whisper's forward pass as pure functions over a tree of arrays: the arithmetic of openai-whisper's model.py.

Letters in the shapes: b windows, g sequences of each window, s tokens of each, h heads, d a head's width, w = h x d,
c positions of the cache, a 1,500 positions of the audio.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Params = dict[str, Any]
"""Arrays by OpenAI's names, one level of the tree per dot; `blocks` is a list, and linear weights are (in, out)."""
KeyValues = tuple[tuple[Array, Array], ...]
"""Keys and values of each decoder layer: (b, h, a, d) each of the audio, (b, h, g, c, d) each of the tokens."""

_MASKED = -1e30
_PARTS = 5


def encode(params: Params, mel: Array, audio_heads: int, text_heads: int) -> KeyValues:
    """Spectrograms (b, n_mels, 3000) → the audio's keys and values for every decoder layer, (b, h, a, d) each."""
    encoder = params["encoder"]
    x = mel.transpose(0, 2, 1).astype(encoder["conv1"]["weight"].dtype)
    x = _gelu(_convolve(x, encoder["conv1"], stride=1))
    x = _gelu(_convolve(x, encoder["conv2"], stride=2))
    x = (x + encoder["positional_embedding"]).astype(x.dtype)
    for block in encoder["blocks"]:
        attended = _attend_in_parts(*_projections(_norm(x, block["attn_ln"]), block["attn"], audio_heads))
        x = x + _linear(attended, block["attn"]["out"])
        x = x + _feed_forward(x, block)
    x = _norm(x, encoder["ln_post"])
    layers = [block["cross_attn"] for block in params["decoder"]["blocks"]]
    return tuple((_heads(_linear(x, layer["key"]), text_heads), _heads(_linear(x, layer["value"]), text_heads)) for layer in layers)


def decode(
    params: Params, tokens: Array, positions: Array, mask: Array, at: Array | int, cache: KeyValues, audio: KeyValues
) -> tuple[Array, KeyValues, tuple[Array, ...]]:
    """Feed `tokens` (b, g, s), at `positions` (b, g, s) of the text, and store their keys and values at `at`… in the cache.

    `mask` (b, g x s, g' x c): the keys that each token attends to, in a cache of g' >= g sequences. Returns the hidden states
    (b, g, s, w), the cache, and each layer's float32 scores over the audio before the softmax, (b, h, g x s, a).
    """
    decoder, (b, g, s) = params["decoder"], tokens.shape
    embedded = decoder["token_embedding"]["weight"]
    x = (embedded[tokens] + decoder["positional_embedding"][positions]).astype(embedded.dtype).reshape(b, g * s, -1)
    kept, scores = [], []
    for block, (keys, values), layer_audio in zip(decoder["blocks"], cache, audio, strict=True):
        query, key, value = _projections(_norm(x, block["attn_ln"]), block["attn"], keys.shape[1])
        keys, values = _put(keys, key, g, at), _put(values, value, g, at)
        kept.append((keys, values))
        attended, _ = _attend(query, _side_by_side(keys), _side_by_side(values), mask)
        x = x + _linear(attended, block["attn"]["out"])
        query = _heads(_linear(_norm(x, block["cross_attn_ln"]), block["cross_attn"]["query"]), keys.shape[1])
        attended, score = _attend(query, *layer_audio)
        scores.append(score)
        x = x + _linear(attended, block["cross_attn"]["out"])
        x = x + _feed_forward(x, block)
    return _norm(x, decoder["ln"]).reshape(b, g, s, -1), tuple(kept), tuple(scores)


def logits(params: Params, hidden: Array, vocabulary: int) -> Array:
    """Hidden states (…, w) → float32 logits (…, V); -inf beyond `vocabulary`, where the embedding is only padding."""
    embedded = params["decoder"]["token_embedding"]["weight"]
    scores = jnp.einsum("...w,vw->...v", hidden, embedded, preferred_element_type=jnp.float32)
    return jnp.where(jnp.arange(scores.shape[-1]) < vocabulary, scores, -jnp.inf)


def empty_cache(audio: KeyValues, group: int, length: int) -> KeyValues:
    """A cache of zeros for `group` sequences of `length` tokens each."""
    b, h, _, d = audio[0][0].shape
    zeros = jnp.zeros((b, h, group, length, d), audio[0][0].dtype)
    return tuple((zeros, zeros) for _ in audio)


def _convolve(x: Array, convolution: Params, *, stride: int) -> Array:
    """(b, frames, in) → (b, frames / stride, out), three frames wide."""
    weight, bias = convolution["weight"], convolution["bias"]
    y: Array = lax.conv_general_dilated(x, weight, (stride,), ((1, 1),), dimension_numbers=("NWC", "OIW", "NWC")) + bias
    return y


def _linear(x: Array, linear: Params) -> Array:
    y: Array = x @ linear["weight"]
    return y + linear["bias"] if "bias" in linear else y


def _norm(x: Array, norm: Params) -> Array:
    """Layer normalisation, in float32 whatever `x` is."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5) * norm["weight"] + norm["bias"]
    normal: Array = y.astype(x.dtype)
    return normal


def _gelu(x: Array) -> Array:
    y: Array = jax.nn.gelu(x, approximate=False)
    return y


def _feed_forward(x: Array, block: Params) -> Array:
    return _linear(_gelu(_linear(_norm(x, block["mlp_ln"]), block["mlp"]["0"])), block["mlp"]["2"])


def _projections(x: Array, attention: Params, heads: int) -> tuple[Array, Array, Array]:
    """Query, key and value of self-attention: (b, n, w) → (b, h, n, d) each."""
    query, key, value = (_heads(_linear(x, attention[part]), heads) for part in ("query", "key", "value"))
    return query, key, value


def _heads(x: Array, heads: int) -> Array:
    """(b, n, w) → (b, h, n, d)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _put(cache: Array, new: Array, group: int, at: Array | int) -> Array:
    """The cache (b, h, g', c, d) with `new` (b, h, g x s, d) at positions `at`… of its first g sequences."""
    b, h, _, d = new.shape
    return lax.dynamic_update_slice(cache, new.reshape(b, h, group, -1, d), (0, 0, 0, at, 0))


def _side_by_side(cache: Array) -> Array:
    """The keys of all sequences of a window, side by side: (b, h, g', c, d) → (b, h, g' x c, d)."""
    return cache.reshape(*cache.shape[:2], -1, cache.shape[-1])


def _attend(query: Array, key: Array, value: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """(b, h, n, d) x (b, h, m, d) → (b, n, w), and the float32 scores (b, h, n, m) before the softmax."""
    b, _, n, d = query.shape
    scores = jnp.einsum("bhnd,bhmd->bhnm", query * d**-0.5, key, preferred_element_type=jnp.float32)
    # not -inf: a row that pads a prompt attends to no key, and its softmax must still be finite
    masked = scores if mask is None else jnp.where(mask[:, None], scores, _MASKED)
    attended = jnp.einsum("bhnm,bhmd->bnhd", jax.nn.softmax(masked).astype(value.dtype), value)
    return attended.reshape(b, n, -1), scores


def _attend_in_parts(query: Array, key: Array, value: Array) -> Array:
    """`_attend` without a mask, a part of the queries at a time: all 1,500 x 1,500 scores of a head at once would be gigabytes."""
    b, h, n, d = query.shape
    parts = query.reshape(b, h, _PARTS, n // _PARTS, d).transpose(2, 0, 1, 3, 4)
    attended: Array = lax.map(lambda part: _attend(part, key, value)[0], parts)
    return attended.transpose(1, 0, 2, 3).reshape(b, n, -1)
