"""Decoding a batch of windows, step by step: encode, resolve languages, sample, align. An engine provides the four steps."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from ..errors import EngineError
from ..tokenizer import Tokenizer
from ..types import Decoded, Decoding, Window
from .rules import (
    AlignmentText,
    batch_key,
    engine_error,
    group_indices,
    likeliest_sequence,
    make_decoded,
    prompt_length,
    resolve_languages,
    start_tokens,
    text_to_align,
    with_times,
)

M = TypeVar("M")
"""An engine's model."""
F = TypeVar("F")
"""What an engine's encoder makes of a batch: features, or the keys and values of the cross-attention."""

TokenTimes = tuple[Sequence[int], Sequence[float]]
"""Boundaries and probabilities of n aligned tokens. Boundaries (n + 1): the frame of the encoder's output at which each token
begins, then the one at which the last token ends. Probabilities (n)."""


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """A window's best sequence: its tokens without <|endoftext|>, the mean of their log-probabilities, the probability of no speech."""

    tokens: Sequence[int]
    avg_logprob: float
    no_speech_prob: float


def best_sequence(
    sequences: Sequence[Sequence[int]], sums: Sequence[float], no_speech_prob: float, length_penalty: float | None
) -> SampledSequence:
    """The hypothesis that openai-whisper ranks first. `sums`: of the log-probabilities of its tokens and <|endoftext|>."""
    best = likeliest_sequence(sums, [len(tokens) for tokens in sequences], length_penalty)
    return SampledSequence(sequences[best], sums[best] / (len(sequences[best]) + 1), no_speech_prob)


class BatchedEngine(ABC, Generic[M, F]):
    """Implements `Engine`; a subclass implements the steps of its model. One per device. Not thread-safe, unless it is a `ParallelEngine`.

    `runtime` names the library in error messages; `errors` are the exceptions that it raises. `equal_prompts`: sequences that are
    sampled together need prompts of equal length. `model` is None after `close`.
    """

    name: str
    runtime: ClassVar[str]
    errors: ClassVar[tuple[type[Exception], ...]] = (RuntimeError, ValueError, MemoryError)
    equal_prompts: ClassVar[bool] = True

    def __init__(
        self, model: M, tokenizer: Tokenizer, *, n_mels: int, max_batch: int, description: Mapping[str, str | int | float | bool]
    ) -> None:
        """`description`: the entries of `describe` but the engine's name and the batch size."""
        self.model: M | None = model
        self.tokenizer, self.n_mels, self.max_batch = tokenizer, n_mels, max_batch
        self._description = dict(description)

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages, prompts and alignment may differ within a batch."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`. Raises EngineError, or OutOfMemory when the device has no room for the batch."""
        if not windows:
            return []
        return self._checked(lambda windows: self._decode(self._open_model(), windows), windows)

    def _open_model(self) -> M:
        if self.model is None:
            raise EngineError("the engine is closed")
        return self.model

    def _checked(self, decode: Callable[[Sequence[Window]], list[Decoded]], windows: Sequence[Window]) -> list[Decoded]:
        """The result of `decode`, with the errors of the library as those of `decode`."""
        try:
            with _without_gradients():
                return decode(windows)
        except self.errors as error:
            raise error if isinstance(error, EngineError) else engine_error(error, self.runtime, len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {"engine": self.name, **self._description, "batch": self.max_batch}

    def free_memory(self) -> None:
        """Give the GPU memory that PyTorch caches back to the device. Without a GPU in use nothing happens."""
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        self.free_memory()

    @abstractmethod
    def _encode(self, model: M, windows: Sequence[Window]) -> F:
        """The windows' features."""

    @abstractmethod
    def _detect_languages(self, model: M, features: F, indices: list[int]) -> Iterable[Mapping[str, float]]:
        """The probability of every language for each of the windows `indices`."""

    @abstractmethod
    def _sample(
        self, model: M, features: F, indices: list[int], windows: Sequence[Window], starts: list[list[int]]
    ) -> Sequence[SampledSequence]:
        """A sequence for each of `windows`, after its start sequence. `indices`: their places in `features`."""

    @abstractmethod
    def _align(self, model: M, features: F, indices: list[int], texts: Sequence[AlignmentText]) -> Iterable[TokenTimes]:
        """The times of the tokens of each text, none of them empty. `indices`: their windows' places in `features`."""

    def _decode(self, model: M, windows: Sequence[Window]) -> list[Decoded]:
        decodings = [window.decoding for window in windows]
        features = self._encode(model, windows)
        languages = resolve_languages(
            decodings, self.tokenizer.multilingual, lambda indices: self._detect_languages(model, features, indices)
        )
        starts = [start_tokens(self.tokenizer, decoding, code) for decoding, (code, _) in zip(decodings, languages, strict=True)]
        sampled: dict[int, SampledSequence] = {}
        for group in group_indices([prompt_length(decoding) if self.equal_prompts else 0 for decoding in decodings]):
            sequences = self._sample(model, features, group, [windows[i] for i in group], [starts[i] for i in group])
            sampled |= dict(zip(group, sequences, strict=True))
        decoded = [
            make_decoded(
                self.tokenizer,
                sampled[i].tokens,
                decoding,
                language=code,
                language_probability=probability,
                avg_logprob=sampled[i].avg_logprob,
                no_speech_prob=sampled[i].no_speech_prob,
            )
            for i, (decoding, (code, probability)) in enumerate(zip(decodings, languages, strict=True))
        ]
        return self._with_times(model, features, windows, decoded)

    def _with_times(self, model: M, features: F, windows: Sequence[Window], decoded: list[Decoded]) -> list[Decoded]:
        """`decoded` with the times of the tokens for which the windows' decodings request them."""
        texts = [text_to_align(self.tokenizer, window, untimed) for window, untimed in zip(windows, decoded, strict=True)]
        indices = [i for i, text in enumerate(texts) if text.tokens]
        if indices:
            times = self._align(model, features, indices, [texts[i] for i in indices])
            for i, (steps, probs) in zip(indices, times, strict=True):
                decoded[i] = with_times(decoded[i], steps, probs)
        return decoded


def _without_gradients() -> AbstractContextManager[object]:
    """`torch.no_grad()` when the engine has imported PyTorch. Engine ct2 works without it."""
    torch = sys.modules.get("torch")
    return torch.no_grad() if torch else nullcontext()


def pytorch_description(model: str, device: str, precision: str) -> dict[str, str | int | float | bool]:
    """The `description` of an engine that runs in PyTorch. `device`: cpu or cuda."""
    import torch  # here: engine ct2 works without it

    name = "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
    return {"model": model, "device": name, "precision": precision, "threads": torch.get_num_threads()}
