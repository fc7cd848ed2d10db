"""Whisper's encoder by PyTorch, for CPUs, where it is faster than CTranslate2's in int8: up to twice as fast.

CTranslate2's encoder spends most of its time outside of the int8 products, in attention and softmax in float32 (bench/profile.md).
Its decoder accepts these features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import load_checkpoint
from ...devices import multiplies_bfloat16
from ...types import Samples
from . import int8
from .int8 import rowwise_int8
from .linear import Projection, int8_product, multiplies_int8, packed
from .model import Model, load_model

_SMOOTHING = 0.7
"""The share of a channel's range that moves from the activations into the weights. The error of Whisper base's features is 0.058
without it, 0.046 with a half, 0.041 with this."""


@dataclass(frozen=True)
class Encoder:
    """`precision`: of its products, bfloat16 or int8."""

    precision: str
    model: Model

    def __call__(self, mels: Samples) -> Samples:
        """Log-mel float32 (windows, mels, 3000) → features float32 (windows, 1500, width)."""
        # one window at a time: its activations fit into a core's cache, those of a batch do not
        with torch.inference_mode():
            features: Samples = torch.cat([self.model.encode(mel[None]) for mel in torch.from_numpy(mels)]).float().numpy()
        return features


def fastest_precision() -> str | None:
    """bfloat16 where the processor multiplies it, or int8; None where neither is faster than CTranslate2's encoder."""
    if multiplies_bfloat16():
        return "bfloat16"
    return "int8" if _int8_layer() else None


def _int8_layer() -> Callable[[Tensor, Tensor | None], Projection] | None:
    """Makes layers with products in 8 bits, by the fastest library whose sums are right on this processor; None where none is."""
    if multiplies_int8():
        return int8_product
    return rowwise_int8 if int8.is_available() else None


def load_encoder(path: Path, precision: str) -> Encoder:
    """The encoder of the checkpoint at `path`, without its decoder, in `precision`: bfloat16 or int8. Raises ConfigurationError."""
    checkpoint = load_checkpoint(path)
    only_encoder = replace(checkpoint, dims=replace(checkpoint.dims, n_text_layer=0))
    if precision == "int8" and (layer := _int8_layer()):
        smooth = replace(only_encoder, state=smoothed(checkpoint.state, checkpoint.dims.n_audio_layer))
        loaded = load_model(smooth, torch.device("cpu"), torch.float32, layer=layer)
    else:
        loaded = load_model(only_encoder, torch.device("cpu"), torch.bfloat16, layer=packed)
    empty = loaded.embedding.new_empty(0)
    return Encoder(precision, replace(loaded, embedding=empty, unembed=replace(loaded.unembed, weight=empty)))


def smoothed(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of the same encoder, with less error in 8 bits: normalised activations have channels far larger than the others.

    Such a channel of the LayerNorm is divided by a factor and the next layer's weights are multiplied by it (SmoothQuant,
    arXiv 2211.10438). The range of a channel is that of its normalisation, so no audio is needed.
    """
    smooth = dict(state)
    for layer in range(layers):
        name = f"encoder.blocks.{layer}"
        attention = [f"{name}.attn.{part}.weight" for part in ("query", "key", "value")]
        for norm, products in ((f"{name}.attn_ln", attention), (f"{name}.mlp_ln", [f"{name}.mlp.0.weight"])):
            gain, bias = state[f"{norm}.weight"].float(), state[f"{norm}.bias"].float()
            weights = [state[product].float() for product in products]
            largest = torch.cat(weights).abs().amax(dim=0).clamp(min=1e-5)
            reach = (4 * gain.abs() + bias.abs()).clamp(min=1e-5)  # of 4 standard deviations
            factor = reach**_SMOOTHING / largest ** (1 - _SMOOTHING)
            smooth |= {f"{norm}.weight": gain / factor, f"{norm}.bias": bias / factor}
            smooth |= {product: weight * factor for product, weight in zip(products, weights, strict=True)}
    return smooth
