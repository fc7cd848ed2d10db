"""Whisper's forward passes over openai-whisper's weights: encoder, prompt, one token a row, and the attention that words are timed by.

The same arithmetic as openai-whisper's model.py (fused query, key and value; LayerNorm sums in float32, whatever the weights are).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from whisper.model import ModelDimensions

from ...checkpoints import Checkpoint
from .cache import Cache, rows_of

_FEW = 16
"""Queries: on a CPU plain products are up to five times faster for so few than the fused attention, which is made for many."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias; on a CPU oneDNN's packed weight, which is up to three times faster than what `F.linear` calls."""

    weight: Tensor
    bias: Tensor | None
    packed: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self._packed(x, "none") if self.packed else F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The same through a GELU."""
        return self._packed(x, "gelu") if self.packed else F.gelu(F.linear(x, self.weight, self.bias))

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same added to `residual` (…, out)."""
        if not self.packed:
            return residual + F.linear(x, self.weight, self.bias)
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return total

    def _packed(self, x: Tensor, then: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "none" if then == "gelu" else "")
        return product


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
    qkv: Linear
    out: Linear
    mlp_ln: Norm
    mlp: tuple[Linear, Linear]

    def attend_self(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, length, width) → query, key, value, each (n, heads, length, width / heads)."""
        split = self.qkv(self.attn_ln(x)).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def feed_forward(self, x: Tensor) -> Tensor:
        """The block's second half, added to `x`."""
        return self.mlp[1].plus(x, self.mlp[0].gelu(self.mlp_ln(x)))


@dataclass(frozen=True, slots=True)
class CrossBlock(Block):
    """One layer of the decoder: it also attends to the sound, whose keys and values `kv` makes."""

    cross_ln: Norm
    query: Linear
    kv: Linear
    cross_out: Linear

    def cross_query(self, x: Tensor, group: int) -> Tensor:
        """(rows, length, width) → (windows, heads, group x length, width / heads): the rows of a window read its keys together."""
        query = self.query(self.cross_ln(x))
        return query.view(x.shape[0] // group, group * x.shape[1], self.heads, -1).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Model:
    """All weights, and what is computed with them. Nothing here waits for the device."""

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

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights and of what flows between the layers."""
        return self.embedding.dtype

    def encode(self, mel: Tensor) -> Tensor:
        """Log-mel (windows, mels, 3000) → features (windows, 1500, width)."""
        x = F.gelu(F.conv1d(mel.to(self.dtype), *self.conv1, padding=1))
        x = F.gelu(F.conv1d(x, *self.conv2, stride=2, padding=1)).transpose(1, 2)
        x = (x + self.audio_positions).to(self.dtype)
        for block in self.encoder:
            x = block.out.plus(x, _merged(attend(*block.attend_self(x))))
            x = block.feed_forward(x)
        return self.ln_post(x)

    def listen(self, features: Tensor, cache: Cache, slots: Tensor) -> None:
        """Compute the cross-attention's keys and values of new windows, once, into their `slots` (windows,) of the cache."""
        for layer, block in enumerate(self.decoder):
            split = block.kv(features).view(*features.shape[:2], 2, block.heads, -1)
            cache.store_cross(layer, slots, split.permute(2, 0, 3, 1, 4))

    def read(self, tokens: Tensor, cache: Cache, slots: list[int], *, keep: Tensor | None = None) -> Tensor:
        """Tokens (windows, length) from position 0 → hidden states (windows, length, width) before the unembedding.

        `keep`: the cache's rows (windows, group) that get the keys and values; None: they are not kept.
        """
        x = (self.embedding[tokens] + self.text_positions[: tokens.shape[1]]).to(self.dtype)
        for layer, block in enumerate(self.decoder):
            query, key, value = block.attend_self(x)
            if keep is not None:
                cache.store_prompt(layer, keep, key, value)
            x = block.out.plus(x, _merged(F.scaled_dot_product_attention(query, key, value, is_causal=True)))
            heard = attend(block.cross_query(x, 1), *(rows_of(each, slots) for each in cache.cross[layer]))
            x = block.feed_forward(block.cross_out.plus(x, _merged(heard)))
        return self.ln(x)

    def attention(self, tokens: Tensor, cache: Cache, slots: list[int]) -> tuple[Tensor, Tensor]:
        """As `read`, with the alignment heads' scores over the sound, float32 (windows, heads, length, 1500), before the softmax."""
        x = (self.embedding[tokens] + self.text_positions[: tokens.shape[1]]).to(self.dtype)
        scores = []
        for layer, (block, heads) in enumerate(zip(self.decoder, self.alignment_heads, strict=True)):
            x = block.out.plus(x, _merged(F.scaled_dot_product_attention(*block.attend_self(x), is_causal=True)))
            key, value = (rows_of(each, slots) for each in cache.cross[layer])
            query = block.cross_query(x, 1)
            if heads:
                chosen = list(heads)
                scores.append(query[:, chosen].float() @ key[:, chosen].float().transpose(-1, -2) * query.shape[-1] ** -0.5)
            x = block.feed_forward(block.cross_out.plus(x, _merged(attend(query, key, value))))
        return self.ln(x), torch.cat(scores, dim=1)

    def step(self, tokens: Tensor, at: Tensor, cache: Cache, windows: int, group: int, reach: int) -> Tensor:
        """One token (rows,) at its position `at` (rows,) → float32 logits (rows, vocabulary).

        The rows are the cache's first `windows` x `group`; each sees its own first `at` + 1 positions, of which none is beyond `reach`.
        """
        x = (self.embedding[tokens] + self.text_positions[at]).to(self.dtype)[:, None]
        mask = cache.mask(at, reach)
        for layer, block in enumerate(self.decoder):
            query, key, value = block.attend_self(x)
            keys, values = cache.extend(layer, at, key[:, :, 0], value[:, :, 0], reach)
            x = block.out.plus(x, _merged(attend(query, keys, values, mask)))
            heard = attend(block.cross_query(x, group), cache.cross[layer][0][:windows], cache.cross[layer][1][:windows])
            x = block.feed_forward(block.cross_out.plus(x, heard.transpose(1, 2).reshape(x.shape)))
        return self.unembed(self.ln(x[:, 0])).float()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, (n, heads, length, size) each; `mask` is added to the scores."""
    few = query.shape[-2] <= _FEW
    if query.is_cuda or (not few and (mask is not None or query.dtype != torch.bfloat16)):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if not few:
        return _attend_by_head(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(scores if mask is None else scores + mask, dim=-1) @ value


def _attend_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same, one head after the other: a head's scores fit into a core's cache, and oneDNN multiplies bfloat16 with the processor's
    own instructions for it, which on a CPU the fused attention does not. Half its time.
    """
    heads = zip((query * query.shape[-1] ** -0.5).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), strict=True)
    return torch.stack([torch.softmax(q @ k.T, dim=-1) @ v for q, k, v in heads]).view(query.shape)


def _merged(heads: Tensor) -> Tensor:
    """(n, heads, length, size) → (n, length, heads x size)."""
    return heads.transpose(1, 2).flatten(2)


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Model:
    """The checkpoint's weights on the device in `dtype`, positions in float32 where openai-whisper adds them so."""
    return _Loader(checkpoint.state, device, dtype).model(checkpoint)


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads tensors by openai-whisper's names."""

    state: Mapping[str, Tensor]
    device: torch.device
    dtype: torch.dtype

    def model(self, checkpoint: Checkpoint) -> Model:
        dims = checkpoint.dims
        heads = [tuple(head for layer, head in checkpoint.alignment_heads if layer == at) for at in range(dims.n_text_layer)]
        embedding = self.tensor("decoder.token_embedding.weight")
        return Model(
            dims=dims,
            conv1=(self.tensor("encoder.conv1.weight"), self.tensor("encoder.conv1.bias")),
            conv2=(self.tensor("encoder.conv2.weight"), self.tensor("encoder.conv2.bias")),
            audio_positions=self.state["encoder.positional_embedding"].float().to(self.device),
            encoder=tuple(self.block(f"encoder.blocks.{layer}", dims.n_audio_head) for layer in range(dims.n_audio_layer)),
            ln_post=self.norm("encoder.ln_post"),
            embedding=embedding,
            text_positions=self.state["decoder.positional_embedding"].float().to(self.device),
            decoder=tuple(self.cross_block(f"decoder.blocks.{layer}", dims.n_text_head) for layer in range(dims.n_text_layer)),
            ln=self.norm("decoder.ln"),
            unembed=self.packed(embedding, None),
            alignment_heads=tuple(heads),
        )

    def tensor(self, name: str) -> Tensor:
        return self.state[name].detach().to(self.device, self.dtype)

    def norm(self, name: str) -> Norm:
        return Norm(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"))

    def linear(self, *names: str) -> Linear:
        """One projection, or several of the same input stacked; whichever has no bias has one of zeros."""
        weights = [self.tensor(f"{name}.weight") for name in names]
        biases = [
            self.tensor(f"{name}.bias") if f"{name}.bias" in self.state else weight.new_zeros(len(weight))
            for name, weight in zip(names, weights, strict=True)
        ]
        return self.packed(torch.cat(weights), torch.cat(biases))

    def packed(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Packed for oneDNN where PyTorch has it: its own compiler calls the same, under names that it does not document."""
        plain = Linear(weight, bias)
        if self.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return plain
        try:
            packed = Linear(torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias, packed=True)
            packed.gelu(weight.new_zeros(1, weight.shape[1]))
        except RuntimeError:  # a processor that oneDNN has no such kernel for
            return plain
        return packed

    def block(self, name: str, heads: int) -> Block:
        return Block(
            heads=heads,
            attn_ln=self.norm(f"{name}.attn_ln"),
            qkv=self.linear(*(f"{name}.attn.{each}" for each in ("query", "key", "value"))),
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
