"""openai-whisper's own model and decoding, in batches: the reference for every other engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from whisper.model import Whisper

from ..audio.log_mel import log_mels
from ..checkpoints import Checkpoint, empty_model, load_checkpoint, locate
from ..devices import choose_precision
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import Window
from . import Engine
from .alignment import align
from .batched import BatchedEngine, SampledSequence, TokenTimes, pytorch_description
from .rules import AlignmentText
from .whisper_task import WindowsTask

_DTYPES = {
    "cpu": {"float32": torch.float32, "bfloat16": torch.bfloat16},
    "cuda": {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32},
}
_MAX_BATCH = {"cpu": 8, "cuda": 64}


def load(settings: Settings, device: str) -> Engine:
    """The engine with the settings' checkpoint on `device`. Raises ConfigurationError."""
    dtype = _DTYPES[device][choose_precision("openai", settings, device, precisions(device))]
    checkpoint = load_checkpoint(locate(settings))
    return OpenAIEngine(checkpoint, device=device, dtype=dtype, max_batch=settings.batch_size or _MAX_BATCH[device])


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return tuple(_DTYPES[device])


class OpenAIEngine(BatchedEngine[Whisper, torch.Tensor]):
    """`whisper.decoding` over batches of windows."""

    name = "openai"
    runtime = "openai-whisper"
    errors = (*BatchedEngine.errors, AssertionError)

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32, max_batch: int = 8) -> None:
        super().__init__(
            _model(checkpoint, device, dtype),
            Tokenizer(checkpoint.dims.n_vocab),
            n_mels=int(checkpoint.dims.n_mels),
            max_batch=max_batch,
            description=pytorch_description(checkpoint.name, device, str(dtype).removeprefix("torch.")),
        )
        self._device, self._dtype = device, dtype

    def _encode(self, model: Whisper, windows: Sequence[Window]) -> torch.Tensor:
        features: torch.Tensor = model.encoder(log_mels(windows, self.n_mels, self._device).to(self._dtype))
        return features

    def _detect_languages(self, model: Whisper, features: torch.Tensor, indices: list[int]) -> Sequence[Mapping[str, float]]:
        tokenizer = self.tokenizer.openai_for("en", "transcribe")
        probabilities: list[dict[str, float]] = model.detect_language(features[indices], tokenizer)[1]
        return probabilities

    def _sample(
        self, model: Whisper, features: torch.Tensor, indices: list[int], windows: Sequence[Window], starts: list[list[int]]
    ) -> list[SampledSequence]:
        results = WindowsTask(model, self.tokenizer, windows, starts).run(features[indices])
        return [SampledSequence(result.tokens, result.avg_logprob, result.no_speech_prob) for result in results]

    def _align(self, model: Whisper, features: torch.Tensor, indices: list[int], texts: Sequence[AlignmentText]) -> list[TokenTimes]:
        return align(model, features[indices], texts, self.tokenizer)


def _model(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> Whisper:
    """The model with its large weights in `dtype`: in float32 they would be cast again at every step of decoding.

    Normalisation and positions stay float32, in which openai-whisper computes them.
    """
    model = empty_model(checkpoint.dims)
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.state.items()}, assign=True)
    model.decoder.register_buffer("mask", torch.full((checkpoint.dims.n_text_ctx,) * 2, -torch.inf).triu_(1), persistent=False)
    heads = torch.zeros(checkpoint.dims.n_text_layer, checkpoint.dims.n_text_head, dtype=torch.bool)
    heads[tuple(zip(*checkpoint.alignment_heads, strict=True))] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Embedding):
            module.to(dtype)
    return model.requires_grad_(False).eval().to(device)
