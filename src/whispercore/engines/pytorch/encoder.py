"""Whisper's encoder in bfloat16 by PyTorch, for CPUs that multiply bfloat16: twice as fast there as CTranslate2's in int8.

CTranslate2's encoder spends most of its time outside of the int8 products, in attention and softmax in float32 and AVX2
(bench/profile.md). Its decoder accepts these features, which are closer to float32's than those of int8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...checkpoints import load_checkpoint
from ...types import Samples
from .model import load_model

Encoder = Callable[[Samples], Samples]
"""Log-mel float32 (windows, mels, 3000) → features float32 (windows, 1500, width)."""


def load_encoder(path: Path) -> Encoder:
    """The encoder of the checkpoint at `path`, without its decoder. Raises ConfigurationError."""
    checkpoint = load_checkpoint(path)
    only_encoder = replace(checkpoint, dims=replace(checkpoint.dims, n_text_layer=0))
    loaded = load_model(only_encoder, torch.device("cpu"), torch.bfloat16)
    empty = loaded.embedding.new_empty(0)
    model = replace(loaded, embedding=empty, unembed=replace(loaded.unembed, weight=empty))

    def encode(mels: Samples) -> Samples:
        # one window at a time: its activations fit into a core's cache, those of a batch do not
        with torch.inference_mode():
            features: Samples = torch.cat([model.encode(mel[None]) for mel in torch.from_numpy(mels)]).float().numpy()
        return features

    return encode
