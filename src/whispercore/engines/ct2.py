"""CTranslate2: the fastest on a CPU. It reads a folder converted beforehand, see `python -m whispercore.checkpoints prepare`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from ctranslate2.models import Whisper, WhisperGenerationResult

from ..checkpoints import converted_folder, locate
from ..conversion import precision
from ..devices import decoding_threads
from ..errors import ConfigurationError, EngineError, OutOfMemory
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import Decoded, Decoding, Window
from .features import log_mels
from .rules import MAX_INITIAL_TIMESTAMP, batch_key, decoded, sampled_length, start_tokens, suppressed_tokens

_MAX_BATCH = {"cpu": 8, "cuda": 32}


def load(settings: Settings, device: str) -> CTranslate2Engine:
    """The engine on `device` with the settings' checkpoint, converted beforehand. Raises ConfigurationError."""
    compute_type = precision(settings, device)
    checkpoint = locate(settings)
    folder = converted_folder(settings, checkpoint, compute_type)
    if not (folder / "model.bin").is_file():
        message = (
            f"{checkpoint} is not converted for engine 'ct2' yet; run: python -m whispercore.checkpoints prepare --model {settings.model}"
        )
        raise ConfigurationError(message, param="model")
    max_batch = settings.batch_size or _MAX_BATCH[device]
    return CTranslate2Engine(
        folder, name=checkpoint.stem, device=device, compute_type=compute_type, threads=decoding_threads(settings), max_batch=max_batch
    )


class CTranslate2Engine:
    """CTranslate2's Whisper over batches of windows, under openai-whisper's rules. Not thread-safe; one per device."""

    name = "ct2"

    def __init__(self, folder: Path, *, name: str, device: str, compute_type: str, threads: int, max_batch: int) -> None:
        try:
            self._model = Whisper(str(folder), device=device, compute_type=compute_type, inter_threads=1, intra_threads=threads)
            # A batch is faster as one part a core than as a whole on all of them, whose steps wait for each other at every layer: twice
            # as fast with base on two cores. A lone window is not, so a CPU holds the weights twice: for the one and for the other.
            # No more parts than windows: where the cores outnumber them, each part has several.
            self._parts = min(threads, max_batch) if device == "cpu" else 1
            self._parted = self._model
            if self._parts > 1:
                each = threads // self._parts
                self._parted = Whisper(str(folder), device=device, compute_type=compute_type, inter_threads=self._parts, intra_threads=each)
        except (RuntimeError, ValueError) as error:
            message = f"{folder} cannot be loaded ({error}); delete it and run: python -m whispercore.checkpoints prepare"
            raise ConfigurationError(message, param="model") from error
        if device == "cpu":
            # PyTorch only makes the spectrograms here: with threads of its own it would spin against CTranslate2's.
            torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._parts, thread_name_prefix="ct2")
        self.max_batch, self.n_mels = max_batch, int(self._model.n_mels)
        self.tokenizer = Tokenizer(51_765 + self._model.num_languages + int(self._model.is_multilingual))
        self._suppressed = suppressed_tokens(self.tokenizer)
        self._model_name, self._device, self._threads = name, device, threads

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages and prompts may differ, the prompts' lengths may not."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`: encoded once, languages detected and tokens sampled from that."""
        if not windows:
            return []
        try:
            if len(windows) < self._parts:
                return self._decode(self._model, windows)
            parts = [windows[part :: self._parts] for part in range(self._parts)]
            decoded = list(self._pool.map(partial(self._decode, self._parted), parts))
            return [decoded[index % self._parts][index // self._parts] for index in range(len(windows))]
        except (RuntimeError, ValueError, MemoryError) as error:
            raise error if isinstance(error, EngineError) else _ours(error, len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {
            "engine": self.name,
            "model": self._model_name,
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "precision": self._model.compute_type,
            "threads": self._threads,
            "batch": self.max_batch,
        }

    def free_memory(self) -> None:
        """Nothing: CTranslate2 gives what it caches back only with the model."""

    def close(self) -> None:
        """Free the weights."""
        self._pool.shutdown()
        self._model.unload_model()
        self._parted.unload_model()

    def _decode(self, model: Whisper, windows: Sequence[Window]) -> list[Decoded]:
        mel = ctranslate2.StorageView.from_array(log_mels(windows, self.n_mels).numpy())
        features = model.encode(mel, to_cpu=False)
        decoding = windows[0].decoding
        languages = self._languages(model, features, windows)
        starts = [start_tokens(self.tokenizer, window.decoding, language) for window, language in zip(windows, languages, strict=True)]
        results = self._generate(model, features, starts, decoding)
        # CTranslate2 4.8 gives the first windows' probability to all when it draws several samples: ask for it with one token
        silences = self._generate(model, features, starts, Decoding(max_tokens=1)) if (decoding.best_of or 1) > 1 else results
        return [
            self._decoded(decoding, language, result, float(silence.no_speech_prob))
            for language, result, silence in zip(languages, results, silences, strict=True)
        ]

    def _languages(self, model: Whisper, features: ctranslate2.StorageView, windows: Sequence[Window]) -> list[str]:
        """Each window's language: the one asked for, else the likeliest."""
        if not model.is_multilingual:
            return ["en"] * len(windows)
        asked = [window.decoding.language for window in windows]
        if None not in asked:
            return [language or "" for language in asked]
        detected = model.detect_language(features)
        return [language or likeliest[0][0].strip("<|>") for language, likeliest in zip(asked, detected, strict=True)]

    def _generate(
        self, model: Whisper, features: ctranslate2.StorageView, starts: list[list[int]], decoding: Decoding
    ) -> list[WhisperGenerationResult]:
        length = sampled_length(decoding)
        results: list[WhisperGenerationResult] = model.generate(
            features,
            starts,
            beam_size=decoding.beam_size or 1,
            patience=decoding.patience or 1.0,
            num_hypotheses=decoding.beam_size or decoding.best_of or 1,
            length_penalty=1.0,
            # CTranslate2 samples min(max_length / 2, max_length - start + 1) tokens
            max_length=max(2 * length, length + len(starts[0]) - 1),
            return_scores=True,
            return_no_speech_prob=True,
            max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP,
            suppress_blank=True,
            suppress_tokens=[*self._suppressed, self.tokenizer.eot] if decoding.ignore_eot else self._suppressed,
            sampling_topk=0 if decoding.temperature > 0 else 1,
            sampling_temperature=decoding.temperature or 1.0,
        )
        return results

    def _decoded(self, decoding: Decoding, language: str, result: WhisperGenerationResult, no_speech_prob: float) -> Decoded:
        """The best hypothesis. CTranslate2 divides the sum by the tokens' count without <|endoftext|>, openai-whisper with it."""
        sums = [score * len(tokens) for score, tokens in zip(result.scores, result.sequences_ids, strict=True)]
        best = _best(sums, [len(tokens) for tokens in result.sequences_ids], decoding.length_penalty)
        tokens = result.sequences_ids[best]
        return decoded(
            self.tokenizer,
            tokens,
            language=language,
            temperature=decoding.temperature,
            avg_logprob=sums[best] / (len(tokens) + 1),
            no_speech_prob=no_speech_prob,
        )


def _best(sums: list[float], lengths: list[int], length_penalty: float | None) -> int:
    """The index of the hypothesis that openai-whisper ranks first; CTranslate2 knows another penalty only."""
    penalties = [length if length_penalty is None else ((5 + length) / 6) ** length_penalty for length in lengths]
    return int(np.argmax([total / penalty for total, penalty in zip(sums, penalties, strict=True)]))


def _ours(error: Exception, count: int) -> EngineError:
    """CTranslate2's error as one of ours: out of memory is told in words only."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or "out of memory" in reason or "bad_alloc" in reason:
        return OutOfMemory(f"no memory for a batch of {count} windows: {reason}")
    return EngineError(f"CTranslate2 failed on a batch of {count} windows: {reason}")
