"""ONNX Runtime: our own export of the model (see `whispercore.checkpoints.onnx_export`), openai-whisper's decoding."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from whisper.decoding import DecodingResult
from whisper.model import Whisper

from ...audio.log_mel import log_mels
from ...checkpoints import empty_model, exported_folder
from ...checkpoints.graphs import read_metadata
from ...checkpoints.onnx_export import PRECISIONS, precision
from ...devices import decoding_threads
from ...errors import ConfigurationError, EngineError, OutOfMemory
from ...settings import Settings
from ...tokenizer import Tokenizer
from ...types import Decoded, Decoding, Window
from .. import Engine
from ..alignment import align_by
from ..openai import WindowsTask
from ..rules import (
    batch_key,
    decoded,
    equals,
    failure,
    lacks_memory,
    prompt_length,
    reason,
    start_tokens,
    text_to_align,
    told_or_detected,
    with_times,
)
from .model import ERRORS, Audio, Model, Steps

_MAX_BATCH = {"cpu": 8, "cuda": 32}


def load(settings: Settings, device: str) -> Engine:
    """The engine on `device` with the settings' checkpoint, exported beforehand, or an export itself. Raises ConfigurationError."""
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
            raise OutOfMemory(reason(error)) from error
        message = f"{folder} cannot be loaded ({reason(error)}); delete it and run: python -m whispercore.checkpoints prepare"
        raise ConfigurationError(message, param="model") from error
    if device == "cpu":
        # PyTorch makes the spectrograms and applies the rules: with threads of its own it would spin against ONNX Runtime's.
        torch.set_num_threads(1)
    max_batch = settings.batch_size or _MAX_BATCH[device]
    return OnnxEngine(model, name=settings.model_id, precision=dtype, threads=threads, max_batch=max_batch)


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return PRECISIONS[device]


class OnnxEngine:
    """`whisper.decoding` over batches of windows, whose model runs in ONNX Runtime. Not thread-safe; one per device."""

    name = "onnx"

    def __init__(self, model: Model, *, name: str, precision: str, threads: int, max_batch: int) -> None:
        self.max_batch, self.n_mels = max_batch, model.dims.n_mels
        self.tokenizer = Tokenizer(model.dims.n_vocab)
        self._model: Model | None = model
        self._shape: Whisper = empty_model(model.dims)
        self._described: dict[str, str | int] = {
            "model": name,
            "device": _device_name(model),
            "precision": precision,
            "threads": threads,
            "batch": max_batch,
        }

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages, prompts and alignment are each window's own."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`: encoded together, tokens sampled together where the prompts are equally long."""
        if not windows:
            return []
        if self._model is None:
            raise EngineError("the engine is closed")
        try:
            with torch.no_grad():
                return self._decode(self._model, windows)
        except (*ERRORS, ValueError, AssertionError, MemoryError) as error:
            raise error if isinstance(error, EngineError) else failure(error, "ONNX Runtime", len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {"engine": self.name, **self._described}

    def free_memory(self) -> None:
        """Give the GPU memory that PyTorch caches back to the device; ONNX Runtime keeps its own."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the weights."""
        self._model = None
        self.free_memory()

    def _decode(self, model: Model, windows: Sequence[Window]) -> list[Decoded]:
        audio = model.encode(log_mels(windows, self.n_mels, model.device.type))
        decodings = [window.decoding for window in windows]
        languages = self._languages(model, audio, decodings)
        found: dict[int, Decoded] = {}
        for group in equals([prompt_length(decoding) for decoding in decodings]):
            starts = [start_tokens(self.tokenizer, decodings[i], languages[i][0]) for i in group]
            task = _Task(self._shape, self.tokenizer, [windows[i] for i in group], starts, model=model, audio=audio)
            results = task.run(torch.tensor(group, device=model.device))
            found |= {i: self._decoded(result, decodings[i], *languages[i]) for i, result in zip(group, results, strict=True)}
        return self._aligned(model, audio, windows, [found[i] for i in range(len(windows))])

    def _languages(self, model: Model, audio: Audio, decodings: Sequence[Decoding]) -> list[tuple[str, float | None]]:
        """Each window's language, and how probable it is when it had to be detected: as `whisper.detect_language`."""
        openai = self.tokenizer.openai

        def detect(unknown: list[int]) -> Iterator[dict[str, float]]:
            tokens = torch.full((len(unknown), 1), openai.sot, device=model.device)
            logits, _ = model.decode(tokens, torch.zeros(1, dtype=torch.int64), audio[torch.tensor(unknown)], {})
            for of_window in logits[:, 0, list(openai.all_language_tokens)].softmax(dim=-1).tolist():
                yield dict(zip(openai.all_language_codes, of_window, strict=True))

        return told_or_detected(decodings, self.tokenizer.multilingual, detect)

    def _decoded(self, result: DecodingResult, decoding: Decoding, language: str, language_probability: float | None) -> Decoded:
        return decoded(
            self.tokenizer,
            result.tokens,
            decoding,
            language=language,
            language_probability=language_probability,
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
        )

    def _aligned(self, model: Model, audio: Audio, windows: Sequence[Window], found: list[Decoded]) -> list[Decoded]:
        """The same, with the times of the tokens that are asked for."""
        texts = [text_to_align(self.tokenizer, window, one) for window, one in zip(windows, found, strict=True)]
        wanted = [i for i, text in enumerate(texts) if text.tokens]
        openai = self.tokenizer.openai

        def attend(which: Sequence[int], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return model.attend(tokens.to(model.device), audio[torch.tensor([wanted[i] for i in which])])

        times = align_by(attend, [texts[i] for i in wanted], no_timestamps=openai.no_timestamps, eot=openai.eot)
        for i, of_window in zip(wanted, times, strict=True):
            found[i] = with_times(found[i], *of_window)
        return found


class _Task(WindowsTask):
    """The same decoding with the model in ONNX Runtime; in place of the encoder's output it takes the windows' indices in `audio`."""

    def __init__(
        self, shape: Whisper, tokenizer: Tokenizer, windows: Sequence[Window], starts: list[list[int]], *, model: Model, audio: Audio
    ) -> None:
        super().__init__(shape, tokenizer, windows, starts)
        self.inference = self.decoder.inference = Steps(model, audio, self.sot_index)
        self.sot_index: int = 0  # which is the first position that is kept


def _device_name(model: Model) -> str:
    return torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
