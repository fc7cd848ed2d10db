"""What token times are computed from: the decoder's attention to the audio, and the probability of each token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from .model import KeyValues, Params, decode, empty_cache, logits


def attention_and_probs(
    params: Params, audio: KeyValues, tokens: Array, heads: tuple[tuple[int, int], ...], eot: int
) -> tuple[Array, Array]:
    """Feed `tokens` (b, s), padded at their end.

    Returns the float32 attention scores of the (layer, head) pairs `heads`, before the softmax, (b, heads, s, a); and the probability of
    each token but the first among the text tokens, given the tokens before it, (b, s - 1).
    """
    b, s = tokens.shape
    index = jnp.broadcast_to(jnp.arange(s), (b, 1, s))
    mask = index <= index.transpose(0, 2, 1)
    hidden, _, scores = decode(params, tokens[:, None], index, mask, 0, empty_cache(audio, 1, s), audio)
    attention = jnp.stack([scores[layer][:, head] for layer, head in heads], axis=1)

    def probs(window: tuple[Array, Array]) -> Array:
        states, following = window
        among = jax.nn.softmax(logits(params, states, eot))
        return jnp.take_along_axis(among, following[:, None], 1)[:, 0]

    # one window after the other: the logits of all would take gigabytes
    token_probs: Array = lax.map(probs, (hidden[:, 0, :-1], tokens[:, 1:]))
    return attention, token_probs
