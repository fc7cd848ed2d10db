"""One token of every text in TorchScript, which computes without Python's lock.

A step of base is some three hundred operators of microseconds. Called from Python, each of them needs the lock again, and the lanes of
a CPU wait for each other: a token of four windows takes 13 ms in each of two lanes, and 10 ms in TorchScript (bench/profile.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cached_attention import attend_audio
from .int8 import RowwiseInt8
from .model import Norm

StepFunction = Callable[[Tensor, Tensor, list[list[Tensor]], Sequence[int], Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]
"""The arguments and the result of `Step.forward`."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; `qkv` makes query, key and value of self-attention at once, `kv` keys and values of the encoder's output."""

    attn_ln: Norm
    qkv: RowwiseInt8
    out: RowwiseInt8
    cross_ln: Norm
    query: RowwiseInt8
    kv: RowwiseInt8
    cross_out: RowwiseInt8
    mlp_ln: Norm
    mlp: tuple[RowwiseInt8, RowwiseInt8]


class Step(nn.Module):
    """The decoder for one token of each text. `alignment_heads`: those of each layer."""

    def __init__(
        self,
        embedding: Tensor,
        positions: Tensor,
        layers: Sequence[Layer],
        ln: Norm,
        heads: int,
        alignment_heads: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        self.embedding, self.positions = embedding, positions
        self.layers = nn.ModuleList([LayerStep(layer, heads, of) for layer, of in zip(layers, alignment_heads, strict=True)])
        self.ln = _layer_norm(ln)

    def forward(
        self,
        tokens: Tensor,
        at: Tensor,
        audio: list[list[Tensor]],
        windows: list[int],
        text_keys: list[Tensor],
        text_values: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The arguments and the results of `Decoder.step`, with the keys and values of every layer; `audio`: `AudioKeys.layers`."""
        longest = int(at.max().item()) + 1
        mask = None if int(at.min().item()) + 1 == longest else _mask_beyond(at, longest)
        x = self.embedding[tokens].float() + self.positions[at]
        each = torch.arange(len(tokens))
        queries: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            x, query = layer(x, each, at, mask, longest, text_keys[number], text_values[number], audio[number], windows)
            queries.append(query)
        hidden: Tensor = self.ln(x)
        return hidden, torch.cat(queries, dim=1)


class LayerStep(nn.Module):
    """One layer of it."""

    def __init__(self, layer: Layer, heads: int, alignment_heads: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.alignment_heads = heads, torch.tensor(alignment_heads, dtype=torch.long)
        self.attn_ln, self.cross_ln, self.mlp_ln = (_layer_norm(norm) for norm in (layer.attn_ln, layer.cross_ln, layer.mlp_ln))
        self.qkv, self.out, self.query, self.cross_out = layer.qkv, layer.out, layer.query, layer.cross_out
        self.up, self.down = layer.mlp

    def forward(
        self,
        x: Tensor,
        each: Tensor,
        at: Tensor,
        mask: Tensor | None,
        longest: int,
        text_keys: Tensor,
        text_values: Tensor,
        audio: list[Tensor],
        windows: list[int],
    ) -> tuple[Tensor, Tensor]:
        """`x` (rows, width) → the same shape, and the alignment heads' queries (windows, heads, group, size).

        `each`: 0 to rows - 1. Keeps the keys of the tokens in `text_keys`, `text_values`.
        """
        query, key, value = split_heads(self.qkv(self.attn_ln(x)), len(x), 3, self.heads).unbind(0)
        text_keys[each, :, at] = key[:, :, 0]
        text_values[each, :, at] = value[:, :, 0]
        text_keys, text_values = text_keys[: len(x), :, :longest], text_values[: len(x), :, :longest]
        attended = F.scaled_dot_product_attention(query, text_keys, text_values, attn_mask=mask)
        x = x + self.out(merge_heads(attended))
        query = split_heads(self.query(self.cross_ln(x)), len(windows), 1, self.heads)[0]
        x = x + self.cross_out(merge_heads(attend_audio(query, audio, windows)))
        fed: Tensor = self.down(F.gelu(self.up(self.mlp_ln(x))))
        return x + fed, query.index_select(1, self.alignment_heads)


def split_heads(x: Tensor, texts: int, parts: int, heads: int) -> Tensor:
    """(texts x length, parts x width) → (parts, texts, heads, length, size)."""
    return x.view(texts, -1, parts, heads, x.shape[-1] // (parts * heads)).permute(2, 0, 3, 1, 4)


def merge_heads(heads: Tensor) -> Tensor:
    """(n, heads, length, size) → (n x length, heads x size)."""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


def _mask_beyond(at: Tensor, longest: int) -> Tensor:
    """What is added to the scores of rows whose texts end at `at` (rows,): (rows, 1, 1, longest)."""
    beyond = torch.arange(longest) > at[:, None]
    return torch.zeros(beyond.shape).masked_fill_(beyond, -float("inf"))[:, None, None]


def _layer_norm(norm: Norm) -> nn.LayerNorm:
    module = nn.LayerNorm(len(norm.weight))
    module.weight, module.bias = (nn.Parameter(part, requires_grad=False) for part in (norm.weight, norm.bias))
    return module
