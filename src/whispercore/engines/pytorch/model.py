"""Whisper's forward passes over openai-whisper's weights: encoder, prefill, one token a row, and the attention for word times.

The same arithmetic as openai-whisper's model.py, with query, key and value fused; LayerNorm sums are float32 in any precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from whisper.model import ModelDimensions

from ...checkpoints import Checkpoint
from .attention import Attention, attend, merge_heads
from .cache import Cache, SlotIndex
from .compiling import compiled
from .linear import Linear, Projection, packed, quantized

P = ParamSpec("P")
R = TypeVar("R")

_ROWS = 250
"""On a CPU the activations of this many positions, 2 MB in base's feed-forward layer in float32, stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm over the last dimension."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer of the encoder; `qkv` makes query, key and value of the normalised input at once."""

    heads: int
    attn_ln: Norm
    qkv: Projection
    out: Projection
    mlp_ln: Norm
    mlp: tuple[Projection, Projection]

    def attend_self(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, length, width) → query, key, value, each (n, heads, length, width / heads)."""
        split = self.qkv(self.attn_ln(x)).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def feed_forward(self, projection: Projection, x: Tensor, attended: Tensor) -> Tensor:
        """Add the projected output of attention, `attended` (n, heads, length, size), to `x`; then the block's second half."""
        x = projection.plus(x, merge_heads(attended).reshape(x.shape))
        return self.mlp[1].plus(x, self.mlp[0].gelu(self.mlp_ln(x)))


@dataclass(frozen=True, slots=True)
class CrossBlock(Block):
    """One layer of the decoder, with cross-attention; `kv` makes its keys and values of the encoder's output."""

    cross_ln: Norm
    query: Projection
    kv: Projection
    cross_out: Projection

    def cross_query(self, x: Tensor, attended: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Add the output of self-attention, `attended`, to `x` (rows, length, width); returns the sum and the cross-attention's query.

        The query is (windows, heads, group x length, width / heads), so that the rows of a window share a pass over its keys.
        """
        x = self.out.plus(x, merge_heads(attended))
        query = self.query(self.cross_ln(x))
        return x, query.view(x.shape[0] // group, group * x.shape[1], self.heads, -1).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Model:
    """All weights, and the forward passes. Nothing here waits for the device."""

    dims: ModelDimensions
    conv1: tuple[Tensor, Tensor]
    conv2: tuple[Tensor, Tensor]
    audio_positions: Tensor
    encoder: tuple[Block, ...]
    ln_post: Norm
    embedding: Tensor
    text_positions: Tensor
    decoder: tuple[CrossBlock, ...]
    ln: Norm
    unembed: Linear
    alignment_heads: tuple[tuple[int, ...], ...]
    compiles: bool = False
    attention: Attention = field(default_factory=Attention)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.embedding.dtype

    def part(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, compiled where the setting `compile` is on."""
        return compiled(function) if self.compiles else function

    def encode(self, mel: Tensor) -> Tensor:
        """Log-mel (windows, mels, 3000) → features (windows, 1500, width)."""
        attend_self, feed_forward = self.part(Block.attend_self), self.part(Block.feed_forward)
        x = F.gelu(F.conv1d(mel.to(self.dtype), *self.conv1, padding=1))
        x = F.gelu(F.conv1d(x, *self.conv2, stride=2, padding=1)).transpose(1, 2)
        # contiguous by position: otherwise every normalisation and sum of every layer reads it with a stride
        x = (x + self.audio_positions).to(self.dtype, memory_format=torch.contiguous_format)
        rows = _ROWS if x.device.type == "cpu" and not self.compiles else x.shape[1]
        for block in self.encoder:
            attended = self.attention.of_audio(*attend_self(block, x))
            parts = zip(torch.split(x, rows, dim=1), torch.split(attended, rows, dim=2), strict=True)
            x = torch.cat([feed_forward(block, block.out, *part) for part in parts], dim=1)
        return self.ln_post(x)

    def cache_audio(self, features: Tensor, cache: Cache, slots: Tensor) -> None:
        """Compute the cross-attention's keys and values of new windows into their `slots` (windows,) of the cache."""
        for layer, block in enumerate(self.decoder):
            split = block.kv(features).view(*features.shape[:2], 2, block.heads, -1)
            cache.store_cross(layer, slots, split.permute(2, 0, 3, 1, 4))

    def prefill(self, tokens: Tensor, cache: Cache, index: SlotIndex, *, rows: Tensor | None = None) -> Tensor:
        """Tokens (windows, length) from position 0 → hidden states (windows, length, width) before the unembedding.

        `index`: the windows' slots. `rows`: the cache's rows (windows, group) into which keys and values are stored; None: none are.
        """
        x = self._embed(tokens)
        for layer, block in enumerate(self.decoder):
            query, key, value = block.attend_self(x)
            if rows is not None:
                cache.store_prompt(layer, rows, key, value)
            x, query = block.cross_query(x, F.scaled_dot_product_attention(query, key, value, is_causal=True), 1)
            x = block.feed_forward(block.cross_out, x, attend(query, *cache.cross_kv(layer, index)))
        return self.ln(x)

    def alignment_scores(self, tokens: Tensor, cache: Cache, index: SlotIndex) -> tuple[Tensor, Tensor]:
        """As `prefill`, with the alignment heads' attention scores, float32 (windows, heads, length, 1500), before the softmax."""
        x = self._embed(tokens)
        scores = []
        for layer, (block, heads) in enumerate(zip(self.decoder, self.alignment_heads, strict=True)):
            x, query = block.cross_query(x, F.scaled_dot_product_attention(*block.attend_self(x), is_causal=True), 1)
            key, value = cache.cross_kv(layer, index)
            # head by head: an index list would be copied to the device, and the host would wait for that
            scores += [query[:, head, None].float() @ key[:, head, None].float().mT * query.shape[-1] ** -0.5 for head in heads]
            x = block.feed_forward(block.cross_out, x, attend(query, key, value))
        return self.ln(x), torch.cat(scores, dim=1)

    def step(self, tokens: Tensor, at: Tensor, cache: Cache, windows: int, group: int, kv_length: int) -> Tensor:
        """One token (rows,) at its position `at` (rows,) → hidden states (rows, width) before the unembedding.

        The rows are the cache's first `windows` x `group`. Each attends to its own first `at` + 1 positions, at most `kv_length`.
        """
        attend_self, feed_forward = self.part(Block.attend_self), self.part(Block.feed_forward)
        cross_query = self.part(CrossBlock.cross_query)
        x = (self.embedding[tokens] + self.text_positions[at]).to(self.dtype)[:, None]
        cross_attend = self.attention.of_one_query if group == 1 else attend
        mask, index = cache.mask(at, kv_length), slice(0, windows)
        for layer, block in enumerate(self.decoder):
            query, key, value = attend_self(block, x)
            keys, values = cache.extend(layer, at, key[:, :, 0], value[:, :, 0], kv_length)
            x, query = cross_query(block, x, attend(query, keys, values, mask), group)
            x = feed_forward(block, block.cross_out, x, cross_attend(query, *cache.cross_kv(layer, index)))
        return self.ln(x[:, 0])

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) from position 0 → (n, length, width)."""
        return (self.embedding[tokens] + self.text_positions[: tokens.shape[1]]).to(self.dtype)


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    int8: bool = False,
    compiles: bool = False,
    layer: Callable[[Tensor, Tensor | None], Projection] = packed,
) -> Model:
    """The checkpoint's weights on the device in `dtype`; positions stay float32, in which openai-whisper adds them.

    `int8`: the weights of the linear layers, but not the embedding, in 8 bits. `compiles`: parts of the model by torch.compile. `layer`:
    makes the linear layers where both are off.
    """
    return _Loader(checkpoint.state, device, dtype, int8, compiles, layer).model(checkpoint)


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads tensors by openai-whisper's names."""

    state: Mapping[str, Tensor]
    device: torch.device
    dtype: torch.dtype
    int8: bool
    compiles: bool
    layer: Callable[[Tensor, Tensor | None], Projection]

    def model(self, checkpoint: Checkpoint) -> Model:
        dims = checkpoint.dims
        heads = [tuple(head for layer, head in checkpoint.alignment_heads if layer == at) for at in range(dims.n_text_layer)]
        embedding = self.tensor("decoder.token_embedding.weight")
        return Model(
            dims=dims,
            conv1=(self.tensor("encoder.conv1.weight"), self.tensor("encoder.conv1.bias")),
            conv2=(self.tensor("encoder.conv2.weight"), self.tensor("encoder.conv2.bias")),
            audio_positions=self.tensor("encoder.positional_embedding", torch.float32),
            encoder=tuple(self.block(f"encoder.blocks.{layer}", dims.n_audio_head) for layer in range(dims.n_audio_layer)),
            ln_post=self.norm("encoder.ln_post"),
            embedding=embedding,
            text_positions=self.tensor("decoder.positional_embedding", torch.float32),
            decoder=tuple(self.cross_block(f"decoder.blocks.{layer}", dims.n_text_head) for layer in range(dims.n_text_layer)),
            ln=self.norm("decoder.ln"),
            unembed=Linear(embedding, None) if self.compiles else packed(embedding, None),
            alignment_heads=tuple(heads),
            compiles=self.compiles,
        )

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.state[name].detach().to(self.device, dtype or self.dtype)

    def norm(self, name: str) -> Norm:
        return Norm(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"))

    def linear(self, *names: str) -> Projection:
        """One projection, or several of the same input stacked. A missing bias becomes zeros."""
        stored = torch.float32 if self.int8 else None
        weights = [self.tensor(f"{name}.weight", stored) for name in names]
        biases = [
            self.tensor(f"{name}.bias", stored) if f"{name}.bias" in self.state else weight.new_zeros(len(weight))
            for name, weight in zip(names, weights, strict=True)
        ]
        weight, bias = torch.cat(weights), torch.cat(biases)
        if self.int8:
            return quantized(weight, bias, self.dtype)
        # torch.compile cannot use weights in oneDNN's own order
        return Linear(weight, bias) if self.compiles else self.layer(weight, bias)

    def block(self, name: str, heads: int) -> Block:
        return Block(
            heads=heads,
            attn_ln=self.norm(f"{name}.attn_ln"),
            qkv=self.linear(*(f"{name}.attn.{part}" for part in ("query", "key", "value"))),
            out=self.linear(f"{name}.attn.out"),
            mlp_ln=self.norm(f"{name}.mlp_ln"),
            mlp=(self.linear(f"{name}.mlp.0"), self.linear(f"{name}.mlp.2")),
        )

    def cross_block(self, name: str, heads: int) -> CrossBlock:
        block = self.block(name, heads)
        return CrossBlock(
            heads=heads,
            attn_ln=block.attn_ln,
            qkv=block.qkv,
            out=block.out,
            mlp_ln=block.mlp_ln,
            mlp=block.mlp,
            cross_ln=self.norm(f"{name}.cross_attn_ln"),
            query=self.linear(f"{name}.cross_attn.query"),
            kv=self.linear(f"{name}.cross_attn.key", f"{name}.cross_attn.value"),
            cross_out=self.linear(f"{name}.cross_attn.out"),
        )
