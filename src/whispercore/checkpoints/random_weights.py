"""Checkpoints of random weights in the shapes of OpenAI's models: they cost the same to run as trained ones.

For benchmarks and tests.
"""

from __future__ import annotations

from pathlib import Path

import torch
from whisper.model import ModelDimensions, sinusoids

from ..errors import ConfigurationError
from .loading import empty_model, write_checkpoint
from .locations import FILES

SIZES = {
    "tiny": (384, 6, 4, 4),
    "base": (512, 8, 6, 6),
    "small": (768, 12, 12, 12),
    "medium": (1024, 16, 24, 24),
    "large-v2": (1280, 20, 32, 32),
    "large-v3": (1280, 20, 32, 32),
    "large-v3-turbo": (1280, 20, 32, 4),
}
"""Width, heads, encoder layers and decoder layers of OpenAI's multilingual models."""


def dimensions(size: str) -> ModelDimensions:
    """The dimensions of OpenAI's model `size`. Raises ConfigurationError for an unknown size."""
    size = FILES.get(size, size)
    if size not in SIZES:
        raise ConfigurationError(f"unknown size '{size}'; known: {', '.join(SIZES)}", param="size")
    width, heads, encoder_layers, decoder_layers = SIZES[size]
    is_v3 = size.startswith("large-v3")
    return ModelDimensions(
        n_mels=128 if is_v3 else 80,
        n_audio_ctx=1500,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=encoder_layers,
        n_vocab=51_866 if is_v3 else 51_865,
        n_text_ctx=448,
        n_text_state=width,
        n_text_head=heads,
        n_text_layer=decoder_layers,
    )


def write_random(dims: ModelDimensions, out: Path, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> None:
    """Write a checkpoint with random weights. The same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in empty_model(dims).state_dict().items()}
    state = {name: _random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(dims, state, out)


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Layer norms at their initial values, biases zero, weights small enough that the logits stay finite in float16."""
    if name == "encoder.positional_embedding":
        positions: torch.Tensor = sinusoids(*shape)
        return positions
    if len(shape) == 1:
        return torch.ones(shape) if "ln" in name and name.endswith("weight") else torch.zeros(shape)
    fan_in = shape[1:].numel()
    return torch.randn(shape, generator=generator).div(fan_in**0.5)
