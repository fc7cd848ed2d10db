"""CTranslate2: the fastest on a CPU. It reads its own folders, and others converted by `python -m whispercore.checkpoints prepare`."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from ctranslate2 import DataType, Device, StorageView, set_random_seed
from ctranslate2.models import Whisper, WhisperGenerationResult

from ..audio.log_mel import log_mels
from ..checkpoints import ct2_folder, locate
from ..checkpoints.conversion import precision, supported
from ..checkpoints.locations import is_ct2
from ..checkpoints.modelbin import is_float
from ..devices import available_memory, decoding_threads, multiplies_bfloat16
from ..errors import ConfigurationError, EngineError
from ..settings import Settings, model_name
from ..tokenizer import Tokenizer
from ..types import TEXT_CONTEXT, Decoded, Decoding, Window
from . import Engine
from .rules import (
    LAST_TIMESTAMP,
    batch_key,
    decoded,
    equals,
    failure,
    lacks_memory,
    last_initial_timestamp,
    likeliest_sequence,
    prompt_length,
    start_tokens,
    suppressed_tokens,
    text_to_align,
    told_or_detected,
    with_times,
)
from .torch.encoder import Encoder, load_encoder

_GPU_BATCH = 32
_LEAST_BATCH, _WINDOWS_A_CORE = 8, 4
"""On a CPU: the weights are read once for the windows of a core; with more than four it gains little, and who comes waits longer."""
_REPLICAS_SHARE = 4
"""A copy of the model for sampling is made while that takes at most this part of the memory; one at a time always is."""
_SEEDING = threading.Lock()
"""CTranslate2's seed is the process's."""
_LEAST_FRAMES = 2
"""An alignment needs one step of the encoder's output, which is two frames, at least."""


def load(settings: Settings, device: str) -> Engine:
    """The engine on `device` with the settings' checkpoint: CTranslate2's own folder, or converted. Raises ConfigurationError."""
    compute_type = precision(settings, device)
    checkpoint = locate(settings)
    folder = ct2_folder(settings, checkpoint, compute_type)
    if not (folder / "model.bin").is_file():
        message = (
            f"{checkpoint} is not converted for engine 'ct2' yet; run: python -m whispercore.checkpoints prepare --model {settings.model}"
        )
        raise ConfigurationError(message, param="model")
    threads = decoding_threads(settings)
    weights, memory = (folder / "model.bin").stat().st_size, available_memory()
    best = _GPU_BATCH if device == "cuda" else cpu_batch(threads, weights, memory)
    return CTranslate2Engine(
        folder,
        name=model_name(checkpoint),
        device=device,
        compute_type=compute_type,
        threads=threads,
        max_batch=settings.batch_size or best,
        encoder=_encoder(checkpoint, compute_type) if device == "cpu" else None,
        replicas=memory // (_REPLICAS_SHARE * weights) if device == "cpu" else 1,
    )


def cpu_batch(threads: int, weights: int, memory: int) -> int:
    """Windows that are decoded together on so many cores, with `weights` bytes of weights, in `memory` bytes.

    A window's keys and values take up to half of what the weights of its model do in 8 bits, and the weights are held twice; half of
    the rest is left to audio and to others.
    """
    room = (memory - 2 * weights) // (2 * weights)
    return max(1, min(max(_LEAST_BATCH, _WINDOWS_A_CORE * threads), room))


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return supported(device)


def _encoder(checkpoint: Path, compute_type: str) -> Encoder | None:
    """PyTorch's, where it is the faster one and has more than integers to go by; float32, when asked for, is to be float32 throughout."""
    if not compute_type.startswith("int8") or not multiplies_bfloat16() or (is_ct2(checkpoint) and not is_float(checkpoint)):
        return None
    return load_encoder(checkpoint)


class CTranslate2Engine:
    """CTranslate2's Whisper over batches of windows, under openai-whisper's rules. Not thread-safe; one per device.

    `encoder`: one that is faster than CTranslate2's own, where there is one. `replicas`: how many copies of the model may be made at a
    time for sampling above temperature 0.
    """

    name = "ct2"

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        device: str,
        compute_type: str,
        threads: int,
        max_batch: int,
        encoder: Encoder | None = None,
        replicas: int = 1,
    ) -> None:
        self._load = partial(Whisper, str(folder), device=device, compute_type=compute_type)
        try:
            self._model = self._load(inter_threads=1, intra_threads=threads)
            # A batch is faster as one part a core than as a whole on all of them, whose steps wait for each other at every layer: twice
            # as fast with base on two cores. A lone window is not, so a CPU holds the weights twice: for the one and for the other.
            # No more parts than windows: where the cores outnumber them, each part has several.
            self._parts = min(threads, max_batch) if device == "cpu" else 1
            self._parted = self._model
            if self._parts > 1:
                self._parted = self._load(inter_threads=self._parts, intra_threads=threads // self._parts)
        except (RuntimeError, ValueError) as error:
            if lacks_memory(error):
                raise
            again = "delete it and run: python -m whispercore.checkpoints prepare, or get it again where it is your own"
            message = f"{folder} cannot be loaded ({' '.join(str(error).split())}); {again}"
            raise ConfigurationError(message, param="model") from error
        if device == "cpu":
            # PyTorch's threads would spin against CTranslate2's: each part has a core to itself.
            torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._parts, thread_name_prefix="ct2")
        self._replicas = threading.BoundedSemaphore(max(1, replicas))
        self._encoder = encoder
        self._precision = self._model.compute_type
        self._encoder_precision = "torch bfloat16" if encoder else self._precision
        self.max_batch, self.n_mels = max_batch, int(self._model.n_mels)
        self.tokenizer = Tokenizer(51_765 + self._model.num_languages + int(self._model.is_multilingual))
        self._model_name, self._device, self._threads = name, device, threads

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages, prompts and alignment are each window's own."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`: encoded once, languages detected, tokens sampled and aligned from that."""
        if not windows:
            return []
        try:
            if len(windows) < self._parts:
                return self._decode(self._model, windows)
            alike = sorted(range(len(windows)), key=lambda i: prompt_length(windows[i].decoding))
            edges = [len(windows) * part // self._parts for part in range(self._parts + 1)]
            parts = [[windows[i] for i in alike[first:last]] for first, last in pairwise(edges)]
            decoded = chain.from_iterable(self._pool.map(partial(self._decode, self._parted), parts))
            return [one for _, one in sorted(zip(alike, decoded, strict=True), key=itemgetter(0))]
        except (RuntimeError, ValueError, MemoryError) as error:
            raise error if isinstance(error, EngineError) else failure(error, "CTranslate2", len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {
            "engine": self.name,
            "model": self._model_name,
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "precision": self._precision,
            "encoder": self._encoder_precision,
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
        self._encoder = None

    def _decode(self, model: Whisper, windows: Sequence[Window]) -> list[Decoded]:
        mels = log_mels(windows, self.n_mels)
        if self._encoder:
            features = StorageView.from_array(self._encoder(mels).numpy())
        else:
            features = model.encode(StorageView.from_array(mels.numpy()), to_cpu=False)
        languages = self._languages(model, features, windows)
        found: dict[int, Decoded] = {}
        for group in equals([prompt_length(window.decoding) for window in windows]):
            results = self._sampled(model, _some(features, group), [windows[i] for i in group], [languages[i] for i in group])
            found |= dict(zip(group, results, strict=True))
        return self._aligned(model, features, windows, found)

    def _languages(self, model: Whisper, features: StorageView, windows: Sequence[Window]) -> list[tuple[str, float | None]]:
        """Each window's language, and how probable it is when it had to be detected."""

        def detect(unknown: list[int]) -> Iterator[dict[str, float]]:
            for probabilities in model.detect_language(_some(features, unknown)):
                yield {token.strip("<|>"): probability for token, probability in probabilities}

        return told_or_detected([window.decoding for window in windows], model.is_multilingual, detect)

    def _sampled(
        self, model: Whisper, features: StorageView, windows: Sequence[Window], languages: Sequence[tuple[str, float | None]]
    ) -> list[Decoded]:
        """Windows whose prompts are equally long, decoded together."""
        decoding = windows[0].decoding
        starts = [start_tokens(self.tokenizer, window.decoding, language) for window, (language, _) in zip(windows, languages, strict=True)]
        if decoding.temperature > 0:
            threads = self._threads if model is self._model else self._threads // self._parts
            results = [self._drawn(_some(features, [i]), starts[i], window, threads) for i, window in enumerate(windows)]
        else:
            results = self._generate(model, features, starts, decoding)
        return [self._decoded(decoding, language, result) for language, result in zip(languages, results, strict=True)]

    def _drawn(self, features: StorageView, start: list[int], window: Window, threads: int) -> WhisperGenerationResult:
        """One window above temperature 0, with random numbers that follow from its seed.

        CTranslate2 seeds the generator of each of its threads when that first draws, and never again: the words would depend on all
        that was drawn there before. So the window gets a thread of its own, with a copy of the model, which loads faster than a window
        is decoded.
        """
        with self._replicas:
            model = self._load(inter_threads=1, intra_threads=threads)
            nothing = StorageView.from_array(np.zeros((1, 1, features.shape[2]), np.float32))
            with _SEEDING:
                set_random_seed(window.seed % 2**32)
                model.generate(
                    nothing, [[self.tokenizer.openai.sot]], beam_size=1, max_length=2, sampling_topk=0
                )  # the first draw, which seeds
            (result,) = self._generate(model, features, [start], window.decoding)
            return result

    def _generate(
        self, model: Whisper, features: StorageView, starts: list[list[int]], decoding: Decoding
    ) -> list[WhisperGenerationResult]:
        length, last_initial = decoding.max_sampled, last_initial_timestamp(decoding)
        suppressed = suppressed_tokens(self.tokenizer, decoding.suppress_tokens)
        results: list[WhisperGenerationResult] = model.generate(
            features,
            starts,
            beam_size=decoding.beam_size or 1,
            patience=decoding.patience or 1.0,
            num_hypotheses=decoding.beam_size or (decoding.best_of if decoding.temperature > 0 else None) or 1,
            length_penalty=_length_penalty(decoding),
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
            # CTranslate2 samples min(max_length / 2, max_length - start + 1) tokens; past the text context there is no position for more
            max_length=min(max(2 * length, length + len(starts[0]) - 1), TEXT_CONTEXT),
            return_scores=True,
            return_no_speech_prob=True,
            max_initial_timestamp_index=LAST_TIMESTAMP if last_initial is None else min(last_initial, LAST_TIMESTAMP),
            suppress_blank=decoding.suppress_blank,
            suppress_tokens=[*suppressed, self.tokenizer.eot] if decoding.ignore_eot else suppressed,
            sampling_topk=0 if decoding.temperature > 0 else 1,
            sampling_temperature=decoding.temperature or 1.0,
        )
        return results

    def _decoded(self, decoding: Decoding, language: tuple[str, float | None], result: WhisperGenerationResult) -> Decoded:
        """The best hypothesis. CTranslate2 counts the tokens without <|endoftext|>, openai-whisper with it."""
        lengths = [len(tokens) for tokens in result.sequences_ids]
        power = _length_penalty(decoding)
        sums = [score * length**power if length or not power else -math.inf for score, length in zip(result.scores, lengths, strict=True)]
        best = likeliest_sequence(sums, lengths, decoding.length_penalty)
        tokens = result.sequences_ids[best]
        return decoded(
            self.tokenizer,
            tokens,
            decoding,
            language=language[0],
            language_probability=language[1],
            avg_logprob=sums[best] / (len(tokens) + 1),
            no_speech_prob=float(result.no_speech_prob),
        )

    def _aligned(self, model: Whisper, features: StorageView, windows: Sequence[Window], found: dict[int, Decoded]) -> list[Decoded]:
        """All windows in order, with the times of the tokens that are asked for; one call aligns texts of one language and task."""
        texts = [text_to_align(self.tokenizer, window, found[i]) for i, window in enumerate(windows)]
        wanted = [i for i, text in enumerate(texts) if text.tokens]
        for same in equals([texts[i].start for i in wanted]):
            group = [wanted[i] for i in same]
            tokens, frames = ([list(texts[i].tokens) for i in group], [max(texts[i].frames, _LEAST_FRAMES) for i in group])
            results = model.align(_some(features, group), list(texts[group[0]].start), tokens, frames)
            found |= {
                i: with_times(found[i], _steps(result.alignments), result.text_token_probs)
                for i, result in zip(group, results, strict=True)
            }
        return [found[i] for i in range(len(windows))]


def _length_penalty(decoding: Decoding) -> int:
    """CTranslate2 divides a sum of log-probabilities by the tokens' count to this power.

    Beams are to be compared by their mean; an empty one's is no number, so it comes last. 0 gives the sum itself, of any sequence.
    """
    return 1 if (decoding.beam_size or 1) > 1 else 0


def _some(features: StorageView, which: Sequence[int]) -> StorageView:
    """The features of some of the windows, in the order of `which`; of all of them the same object."""
    if list(which) == list(range(features.shape[0])):
        return features
    on_cpu = features.to(DataType.float32).to_device(Device.cpu)  # NumPy has no bfloat16; CTranslate2 moves and casts them back
    return StorageView.from_array(np.ascontiguousarray(np.asarray(on_cpu)[list(which)]))


def _steps(path: Sequence[tuple[int, int]]) -> list[int]:
    """The step of the encoder's output at which a path of (token, step) enters each token."""
    entered: dict[int, int] = {}
    for token, step in path:
        entered.setdefault(token, step)
    return list(entered.values())
