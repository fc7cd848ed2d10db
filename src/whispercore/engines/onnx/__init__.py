"""ONNX Runtime: the model as `whispercore.checkpoints.onnx_export` writes it, under openai-whisper's decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx  # noqa: F401 - graphs.told needs it as the engine loads: where it is missing, this import names the extra
import torch
from whisper.model import Whisper

from ...audio.log_mel import log_mels
from ...catalogue import GRAPH_PRECISIONS
from ...checkpoints import empty_model, exported_folder
from ...checkpoints.graph_precision import precision
from ...checkpoints.graphs import read_metadata
from ...devices import decoding_threads
from ...errors import ConfigurationError, OutOfMemory
from ...settings import Settings
from ...tokenizer import Tokenizer
from ...types import Window
from .. import Engine
from ..alignment import align_by
from ..batched import BatchedEngine, SampledSequence, TokenTimes
from ..rules import AlignmentText, first_line, lacks_memory
from ..whisper_task import WindowsTask
from .model import ERRORS, AudioKeyValues, DecoderSteps, Model

_MAX_BATCH = {"cpu": 8, "cuda": 32}


def load(settings: Settings, device: str) -> Engine:
    """The engine on `device` with the settings' checkpoint, exported beforehand, or with an export. Raises ConfigurationError."""
    folder = exported_folder(settings, "onnx", precision(settings, device))
    if not (folder / "decoder.onnx").is_file():
        command = f"python -m whispercore.checkpoints prepare --model {settings.model}"
        message = f"'{settings.model}' is not exported for engine 'onnx' in this precision yet; run: {command}"
        raise ConfigurationError(message, param="model")
    dtype = read_metadata(folder)["dtype"]
    if precision(replace(settings, dtype=dtype) if settings.dtype == "auto" else settings, device) != dtype:
        raise ConfigurationError(f"{folder} is exported in {dtype}; not in {settings.dtype}", param="dtype")
    threads = decoding_threads(settings)
    try:
        model = Model(folder, device=device, threads=threads)
    except ERRORS as error:
        if lacks_memory(error):
            raise OutOfMemory(first_line(error)) from error
        message = f"{folder} cannot be loaded ({first_line(error)}); delete it and run: python -m whispercore.checkpoints prepare"
        raise ConfigurationError(message, param="model") from error
    max_batch = settings.batch_size or _MAX_BATCH[device]
    return OnnxEngine(model, name=settings.model_id, precision=dtype, threads=threads, max_batch=max_batch)


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return GRAPH_PRECISIONS[device]


class OnnxEngine(BatchedEngine[Model, AudioKeyValues]):
    """`whisper.decoding` over batches of windows, with the model in ONNX Runtime."""

    name = "onnx"
    runtime = "ONNX Runtime"
    errors = (*ERRORS, ValueError, AssertionError, MemoryError)

    def __init__(self, model: Model, *, name: str, precision: str, threads: int, max_batch: int) -> None:
        device = torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
        super().__init__(
            model,
            Tokenizer(model.dims.n_vocab),
            n_mels=model.dims.n_mels,
            max_batch=max_batch,
            description={"model": name, "device": device, "precision": precision, "threads": threads},
        )
        self._shape: Whisper = empty_model(model.dims)

    def _encode(self, model: Model, windows: Sequence[Window]) -> AudioKeyValues:
        return model.encode(log_mels(windows, self.n_mels, model.device.type))

    def _detect_languages(self, model: Model, features: AudioKeyValues, indices: list[int]) -> Iterator[Mapping[str, float]]:
        """As `whisper.detect_language`."""
        openai = self.tokenizer.openai
        tokens = torch.full((len(indices), 1), openai.sot, device=model.device)
        logits, _ = model.decode(tokens, torch.zeros(1, dtype=torch.int64), features[torch.tensor(indices)], {})
        for probabilities in logits[:, 0, list(openai.all_language_tokens)].softmax(dim=-1).tolist():
            yield dict(zip(openai.all_language_codes, probabilities, strict=True))

    def _sample(
        self, model: Model, features: AudioKeyValues, indices: list[int], windows: Sequence[Window], starts: list[list[int]]
    ) -> list[SampledSequence]:
        task = _Task(self._shape, self.tokenizer, windows, starts, model=model, audio=features)
        results = task.run(torch.tensor(indices, device=model.device))
        return [SampledSequence(result.tokens, result.avg_logprob, result.no_speech_prob) for result in results]

    def _align(self, model: Model, features: AudioKeyValues, indices: list[int], texts: Sequence[AlignmentText]) -> list[TokenTimes]:
        def attend(texts: Sequence[int], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return model.attend(tokens.to(model.device), features[torch.tensor([indices[i] for i in texts])])

        return align_by(attend, texts, self.tokenizer)


class _Task(WindowsTask):
    """`WindowsTask` with the model in ONNX Runtime. `run` takes the windows' indices in `audio` instead of features."""

    def __init__(
        self,
        shape: Whisper,
        tokenizer: Tokenizer,
        windows: Sequence[Window],
        starts: list[list[int]],
        *,
        model: Model,
        audio: AudioKeyValues,
    ) -> None:
        super().__init__(shape, tokenizer, windows, starts)
        self.inference = self.decoder.inference = DecoderSteps(model, audio, self.sot_index)
        self.sot_index: int = 0  # the first of the positions whose logits the first step returns
