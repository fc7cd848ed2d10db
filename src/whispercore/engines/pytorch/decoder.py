"""Whisper's decoder in 8 bits for CPUs: a lone window's token takes half of CTranslate2's time (bench/profile.md).

The same arithmetic as openai-whisper's model.py, with query, key and value fused. Activations are float32; keys and values of the
cross-attention, which every token reads as a whole, have less (cached_attention.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from whisper.model import ModelDimensions

from ...checkpoints import load_checkpoint
from .cached_attention import AudioKeys, attend_audio_long, audio_scores, fastest_dtype, room_for_audio
from .int8 import RowwiseInt8, rowwise_int8
from .model import Norm
from .step import Layer, Step, StepFunction, merge_heads, split_heads
from .torchscript import scripted


@dataclass(frozen=True, slots=True)
class TextKeys:
    """Keys and values of self-attention, for each layer (rows, heads, positions, size). Masked positions must be finite."""

    keys: list[Tensor]
    values: list[Tensor]

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for kept in (*self.keys, *self.values):
            kept[target] = kept[source]


@dataclass(frozen=True, slots=True)
class Decoder:
    """The weights of the decoder, and its step. Not tied to a thread: several threads may use it at once."""

    dims: ModelDimensions
    embedding: Tensor
    positions: Tensor
    layers: tuple[Layer, ...]
    ln: Norm
    unembed: RowwiseInt8
    alignment_heads: tuple[tuple[int, ...], ...]
    cross_dtype: torch.dtype
    take_step: StepFunction

    @property
    def _size(self) -> int:
        return int(self.dims.n_text_state // self.dims.n_text_head)

    def room_for_audio(self, windows: int) -> AudioKeys:
        """Memory for the keys of so many windows."""
        dims = self.dims
        return room_for_audio(windows, dims.n_text_layer, dims.n_text_head, dims.n_audio_ctx, self._size, self.cross_dtype)

    def room_for_text(self, rows: int) -> TextKeys:
        """Memory for the keys of so many texts."""
        shape = (rows, self.dims.n_text_head, self.dims.n_text_ctx, self._size)
        keys, values = ([torch.zeros(shape) for _ in self.layers] for _ in range(2))
        return TextKeys(keys, values)

    def fill_audio(self, features: Tensor, room: AudioKeys) -> None:
        """Compute the cross-attention's keys and values of the encoder's output, float32 (windows, 1500, width)."""
        for number, layer in enumerate(self.layers):
            for window, own in enumerate(features):
                room.store(number, window, layer.kv(own).view(len(own), 2, self.dims.n_text_head, self._size))

    def read(self, tokens: Tensor, audio: AudioKeys, text: TextKeys | None = None, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Texts from their first token on (windows, length), one a window.

        Returns hidden states (windows, length, width) and the alignment heads' queries (windows, alignment heads, length, size), for
        `alignment_scores`. `text`, `rows`: where to keep the texts' keys, in the rows of each window (windows, group).
        """
        (windows, length), heads = tokens.shape, self.dims.n_text_head
        x = (self.embedding[tokens].float() + self.positions[:length]).flatten(0, 1)
        queries: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            query, key, value = split_heads(layer.qkv(layer.attn_ln(x)), windows, 3, heads).unbind(0)
            if text is not None and rows is not None:
                for kept, new in ((text.keys[number], key), (text.values[number], value)):
                    kept[rows.flatten(), :, :length] = new.repeat_interleave(rows.shape[1], dim=0)
            x = x + layer.out(merge_heads(F.scaled_dot_product_attention(query, key, value, is_causal=True)))
            query = split_heads(layer.query(layer.cross_ln(x)), windows, 1, heads)[0]
            queries.append(query[:, list(self.alignment_heads[number])])
            x = x + layer.cross_out(merge_heads(attend_audio_long(query, audio.layers[number])))
            x = x + layer.mlp[1](F.gelu(layer.mlp[0](layer.mlp_ln(x))))
        return self.ln(x).view(windows, length, -1), torch.cat(queries, dim=1)

    def alignment_scores(self, queries: Tensor, audio: AudioKeys, window: int) -> Tensor:
        """The alignment heads' attention of a window before the softmax: queries (heads, length, size) → float32 (heads, length, 1500)."""
        of_layers = torch.split(queries, [len(heads) for heads in self.alignment_heads])
        scores = [
            audio_scores(of_layer, layer, window, heads)
            for of_layer, layer, heads in zip(of_layers, audio.layers, self.alignment_heads, strict=True)
            if heads
        ]
        return torch.cat(scores)

    def step(self, tokens: Tensor, at: Tensor, audio: AudioKeys, windows: Sequence[int], text: TextKeys) -> tuple[Tensor, Tensor]:
        """The next token of each row (rows,), at its position `at` (rows,).

        Returns hidden states (rows, width) and the alignment heads' queries (windows, heads, group, size). The rows are the first of
        `text`. `windows`: the windows of `audio` that they belong to, with equally many rows side by side, `group`.
        """
        return self.take_step(tokens, at, audio.layers, windows, text.keys, text.values)


def load_decoder(path: Path, cross_dtype: torch.dtype | None = None) -> Decoder:
    """The decoder of the checkpoint at `path`. Raises ConfigurationError.

    `cross_dtype`: of the cross-attention's keys and values, bfloat16, int8 or float32; None: what this processor reads fastest.
    """
    checkpoint = load_checkpoint(path)
    dims, load = checkpoint.dims, _Loader(checkpoint.state)
    weight = checkpoint.state["decoder.token_embedding.weight"].detach()
    embedding = weight.to(torch.float16 if weight.dtype == torch.float16 else torch.float32).clone()
    positions, ln = load.tensor("decoder.positional_embedding"), load.norm("decoder.ln")
    layers = tuple(load.layer(f"decoder.blocks.{number}") for number in range(dims.n_text_layer))
    alignment_heads = tuple(tuple(head for at, head in checkpoint.alignment_heads if at == layer) for layer in range(dims.n_text_layer))
    return Decoder(
        dims=dims,
        embedding=embedding,
        positions=positions,
        layers=layers,
        ln=ln,
        unembed=rowwise_int8(weight, None),
        alignment_heads=alignment_heads,
        cross_dtype=cross_dtype or fastest_dtype(dims.n_text_state // dims.n_text_head),
        take_step=scripted(Step(embedding, positions, layers, ln, dims.n_text_head, alignment_heads).eval()),
    )


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads tensors by openai-whisper's names."""

    state: Mapping[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        return self.state[name].detach().float().clone()

    def norm(self, name: str) -> Norm:
        return Norm(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"))

    def linear(self, *names: str) -> RowwiseInt8:
        """One projection, or several of the same input stacked. A missing bias becomes zeros."""
        weights = [self.tensor(f"{name}.weight") for name in names]
        biases = [
            self.tensor(f"{name}.bias") if f"{name}.bias" in self.state else weight.new_zeros(len(weight))
            for name, weight in zip(names, weights, strict=True)
        ]
        return rowwise_int8(torch.cat(weights), torch.cat(biases))

    def layer(self, name: str) -> Layer:
        return Layer(
            attn_ln=self.norm(f"{name}.attn_ln"),
            qkv=self.linear(*(f"{name}.attn.{part}" for part in ("query", "key", "value"))),
            out=self.linear(f"{name}.attn.out"),
            cross_ln=self.norm(f"{name}.cross_attn_ln"),
            query=self.linear(f"{name}.cross_attn.query"),
            kv=self.linear(f"{name}.cross_attn.key", f"{name}.cross_attn.value"),
            cross_out=self.linear(f"{name}.cross_attn.out"),
            mlp_ln=self.norm(f"{name}.mlp_ln"),
            mlp=(self.linear(f"{name}.mlp.0"), self.linear(f"{name}.mlp.2")),
        )
