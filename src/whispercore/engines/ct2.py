"""CTranslate2: the fastest engine on a CPU. `python -m whispercore.checkpoints prepare` converts what is not in its form."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ctranslate2 import DataType, Device, StorageView, set_random_seed
from ctranslate2.models import Whisper, WhisperGenerationResult

from ..audio.spectrogram import log_mel_arrays
from ..checkpoints import ct2_folder, locate
from ..checkpoints.compute_types import precision, supported
from ..checkpoints.locations import is_ct2
from ..checkpoints.modelbin import is_float
from ..devices import available_memory, decoding_threads, has_torch
from ..errors import ConfigurationError
from ..settings import Settings, model_name
from ..tokenizer import Tokenizer
from ..types import TEXT_CONTEXT, Decoded, Decoding, Window
from . import Engine
from .batched import BatchedEngine, SampledSequence, TokenTimes, best_sequence
from .pytorch.step_threads import StepThreads
from .rules import (
    LAST_TIMESTAMP,
    AlignmentText,
    group_indices,
    lacks_memory,
    last_initial_timestamp,
    prompt_length,
    suppressed_tokens,
)

if TYPE_CHECKING:
    from .pytorch.cached_attention import AudioKeys
    from .pytorch.encoder import Encoder
    from .pytorch.sampling import Sampler
    from .pytorch.trace import Trace

_GPU_BATCH = 32
_LEAST_BATCH, _WINDOWS_A_CORE = 8, 4
"""On a CPU: a core reads the weights once for its windows. More than four gain little and make new requests wait longer."""
_MOST_LANES = 16
"""Batches that PyTorch decodes side by side. Each holds Python's lock for about three percent of its time."""
_REPLICAS_SHARE = 4
"""Copies of the model for sampling take at most one part in four of the memory; one copy is always allowed."""
_SEEDING = threading.Lock()
"""CTranslate2 has one seed per process."""
_LEAST_FRAMES = 2
"""An alignment needs at least one step of the encoder's output, which is two frames."""


def load(settings: Settings, device: str) -> Engine:
    """The engine on `device` with the settings' checkpoint, which has CTranslate2's form or was converted. Raises ConfigurationError."""
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
    by_torch = device == "cpu" and _may_use_torch(checkpoint, compute_type)
    return CTranslate2Engine(
        folder,
        name=model_name(checkpoint),
        device=device,
        compute_type=compute_type,
        threads=threads,
        max_batch=settings.batch_size or best,
        encoder=_encoder(checkpoint) if by_torch else None,
        decoder=_decoder(checkpoint) if by_torch else None,
        replicas=memory // (_REPLICAS_SHARE * weights) if device == "cpu" else 1,
    )


def cpu_batch(threads: int, weights: int, memory: int) -> int:
    """Windows that are decoded together on `threads` cores, with `weights` bytes of weights, in `memory` bytes.

    A window's keys and values take up to half the size of the 8-bit weights, and the weights are held twice. Half of the rest is left
    for audio and other processes.
    """
    room = (memory - 2 * weights) // (2 * weights)
    return max(1, min(max(_LEAST_BATCH, _WINDOWS_A_CORE * threads), room))


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return supported(device)


def _may_use_torch(checkpoint: Path, compute_type: str) -> bool:
    """Whether PyTorch may compute parts of the model: in int8, from a checkpoint in floats."""
    return compute_type.startswith("int8") and has_torch() and not (is_ct2(checkpoint) and not is_float(checkpoint))


def _encoder(checkpoint: Path) -> Encoder | None:
    """PyTorch's encoder, where it is faster than CTranslate2's. None elsewhere."""
    from .pytorch.encoder import fastest_precision, load_encoder  # here: this engine works without PyTorch

    precision = fastest_precision()
    return load_encoder(checkpoint, precision) if precision else None


def _decoder(checkpoint: Path) -> Sampler | None:
    """PyTorch's decoder in 8 bits, where PyTorch has the kernels. None elsewhere."""
    from .pytorch import decoder, int8, sampling  # here: this engine works without PyTorch

    return sampling.Sampler(decoder.load_decoder(checkpoint)) if int8.is_available() else None


def _lanes(threads: int, most: int) -> int:
    """The number of lanes, at most `most`: each has equally many threads, and as few as possible of all are left over."""
    return threads // math.ceil(threads / most)


class Copy:
    """A copy of CTranslate2's model, loaded when it is first used. `threads`: those of one call; `calls`: at the same time."""

    def __init__(self, load: Callable[..., Whisper], calls: int, threads: int) -> None:
        self._load = partial(load, inter_threads=calls, intra_threads=threads)
        self._lock = threading.Lock()
        self._whisper: Whisper | None = None

    @property
    def whisper(self) -> Whisper:
        """The model. Raises RuntimeError or ValueError when it cannot be loaded."""
        with self._lock:
            if self._whisper is None:
                self._whisper = self._load()
            return self._whisper

    def close(self) -> None:
        """Free the weights."""
        with self._lock:
            if self._whisper is not None:
                self._whisper.unload_model()
                self._whisper = None


@dataclass(frozen=True, slots=True)
class Cores:
    """What decodes a batch: a copy of CTranslate2's model, and the threads of PyTorch."""

    copy: Copy
    threads: int

    @property
    def whisper(self) -> Whisper:
        """The copy's model."""
        return self.copy.whisper


class _StepThreadsByWidth(threading.local):
    """The `StepThreads` of each thread that decodes, one for each number of threads that its lone windows had."""

    def __init__(self) -> None:
        self._by_threads: dict[int, StepThreads] = {}

    def of(self, threads: int) -> StepThreads:
        """That for so many threads."""
        return self._by_threads.setdefault(threads, StepThreads(threads))


@dataclass(slots=True)
class Encoded:
    """A batch after the encoder. `features`: its output, (windows, 1500, width).

    Where PyTorch's decoder is used: `keys`, and the `traces` of the windows that it has sampled, by their places in the batch.
    """

    features: StorageView
    keys: AudioKeys | None = None
    traces: dict[int, Trace | None] = field(default_factory=dict)


class CTranslate2Engine(BatchedEngine[Cores, Encoded]):
    """CTranslate2's Whisper over batches of windows, under openai-whisper's rules. On a CPU a `ParallelEngine`.

    `encoder` and `decoder` replace CTranslate2's own where they are faster; beams and penalties are always CTranslate2's. `replicas`:
    copies of the model that may exist at a time, for sampling above temperature 0.
    """

    name = "ct2"
    runtime = "CTranslate2"

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
        decoder: Sampler | None = None,
        replicas: int = 1,
    ) -> None:
        self._load = partial(Whisper, str(folder), device=device, compute_type=compute_type)
        # A CPU decodes a batch faster as one part a core than as a whole on all cores, which wait for each other at every layer: twice
        # as fast with base on two cores. A single window needs all cores, so a CPU holds the weights twice. There are no more lanes
        # than windows; where the cores outnumber them, each lane has several.
        self.lanes = _lanes(threads, min(max_batch, _MOST_LANES if decoder else max_batch)) if device == "cpu" else 1
        self.any_width = decoder is not None
        whole, self._parts = Copy(self._load, 1, threads), Copy(self._load, self.lanes, threads // self.lanes)
        try:
            model = whole.whisper
            if self.lanes > 1 and not decoder:
                _ = self._parts.whisper
        except (RuntimeError, ValueError) as error:
            if lacks_memory(error):
                raise
            again = "delete it and run: python -m whispercore.checkpoints prepare, or get it again where it is your own"
            message = f"{folder} cannot be loaded ({' '.join(str(error).split())}); {again}"
            raise ConfigurationError(message, param="model") from error
        super().__init__(
            Cores(whole, threads),
            Tokenizer(51_765 + model.num_languages + int(model.is_multilingual)),
            n_mels=int(model.n_mels),
            max_batch=max_batch,
            description={
                "model": name,
                "device": _gpu_name() if device == "cuda" else "cpu",
                "precision": model.compute_type,
                "encoder": f"torch {encoder.precision}" if encoder else model.compute_type,
                "decoder": "torch int8" if decoder else model.compute_type,
                "threads": threads,
            },
        )
        self._threads = threads
        self._pool = ThreadPoolExecutor(self.lanes, thread_name_prefix="ct2")
        self._replicas = threading.BoundedSemaphore(max(1, replicas))
        self._encoder, self._decoder = encoder, decoder
        self._step_threads = _StepThreadsByWidth()
        # PyTorch's OpenMP starts threads for each thread that asks for several, and when all of them outnumber the cores they no longer
        # wait actively for each other: a step of the decoder by itself takes 8 to 9 ms instead of 5 to 7 on two cores. So one thread asks.
        self._all_cores = ThreadPoolExecutor(1, thread_name_prefix="ct2-all-cores")

    def free_memory(self) -> None:
        """Nothing: CTranslate2 frees its caches only with the model."""

    def close(self) -> None:
        """Free the weights."""
        self._pool.shutdown()
        self._all_cores.shutdown()
        for copy in (self.model.copy if self.model else None, self._parts):
            if copy is not None:
                copy.close()
        self.model = self._encoder = self._decoder = None

    def decode_on(self, width: int, windows: Sequence[Window]) -> list[Decoded]:
        """Decode a batch on `width` lanes: on the thread that calls this, or on one for all cores."""
        return self._checked(partial(self._decode_part, self._part(width)), windows)

    def _part(self, width: int) -> Cores:
        """PyTorch gets the threads of `width` lanes, CTranslate2 those of one: each number of threads would need a copy of the weights."""
        return Cores(self._parts, max(1, self._threads * width // self.lanes))

    def _decode(self, model: Cores, windows: Sequence[Window]) -> list[Decoded]:
        """A batch that has a window for every lane is split among them, windows with prompts of like length together.

        The scheduler gives a lane its own batches; others call `decode` with a whole one.
        """
        if self.lanes == 1 or len(windows) < self.lanes:
            return self._decode_part(model, windows)
        by_prompt = sorted(range(len(windows)), key=lambda i: prompt_length(windows[i].decoding))
        edges = [len(windows) * part // self.lanes for part in range(self.lanes + 1)]
        parts = [[windows[i] for i in by_prompt[first:last]] for first, last in pairwise(edges)]
        decoded = chain.from_iterable(self._pool.map(partial(self._decode_part, self._part(1)), parts))
        return [result for _, result in sorted(zip(by_prompt, decoded, strict=True), key=itemgetter(0))]

    def _decode_part(self, model: Cores, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows together, PyTorch on as many threads as CTranslate2."""
        if not self._encoder and not self._decoder:
            return super()._decode(model, windows)
        if model.threads == self._threads > 1:
            return self._all_cores.submit(self._decode_with_threads, model, windows).result()
        return self._decode_with_threads(model, windows)

    def _decode_with_threads(self, model: Cores, windows: Sequence[Window]) -> list[Decoded]:
        _use_threads(model.threads)
        return super()._decode(model, windows)

    def _encode(self, model: Cores, windows: Sequence[Window]) -> Encoded:
        mels = log_mel_arrays(windows, self.n_mels)
        if self._encoder:
            features = StorageView.from_array(self._encoder(mels))
        else:
            features = model.whisper.encode(StorageView.from_array(mels), to_cpu=False)
        return Encoded(features, self._audio_keys(features))

    def _audio_keys(self, features: StorageView) -> AudioKeys | None:
        if not self._decoder:
            return None
        import torch  # here: this engine works without PyTorch

        return self._decoder.audio_keys(torch.from_numpy(np.array(features)))

    def _detect_languages(self, model: Cores, features: Encoded, indices: list[int]) -> Iterator[Mapping[str, float]]:
        if self._decoder and features.keys:
            yield from self._decoder.detect_languages(features.keys.of(indices))
            return
        for probabilities in model.whisper.detect_language(_rows(features.features, indices)):
            yield {token.strip("<|>"): probability for token, probability in probabilities}

    def _sample(
        self, model: Cores, features: Encoded, indices: list[int], windows: Sequence[Window], starts: list[list[int]]
    ) -> Sequence[SampledSequence]:
        decoding = windows[0].decoding
        if self._decoder and features.keys and not _needs_ctranslate2(decoding):
            step_threads = self._step_threads.of(model.threads) if len(windows) == 1 and model.threads > 1 else None
            try:
                sequences = self._decoder.sample(features.keys.of(indices), windows, starts, step_threads)
            finally:
                _use_threads(model.threads)
            features.traces |= {i: sequence.trace for i, sequence in zip(indices, sequences, strict=True)}
            return sequences
        encoded = _rows(features.features, indices)
        if decoding.temperature > 0:
            results = [self._drawn(_rows(encoded, [i]), starts[i], window, model.threads) for i, window in enumerate(windows)]
        else:
            results = self._generate(model.whisper, encoded, starts, decoding)
        return [_best(decoding, result) for result in results]

    def _align(self, model: Cores, features: Encoded, indices: list[int], texts: Sequence[AlignmentText]) -> list[TokenTimes]:
        """One call for all texts of the same language and task."""
        if self._decoder and features.keys:
            return self._decoder.align(features.keys.of(indices), texts, [features.traces.get(i) for i in indices])
        times: dict[int, TokenTimes] = {}
        for group in group_indices([text.start for text in texts]):
            tokens, frames = [list(texts[i].tokens) for i in group], [max(texts[i].frames, _LEAST_FRAMES) for i in group]
            encoded = _rows(features.features, [indices[i] for i in group])
            results = model.whisper.align(encoded, list(texts[group[0]].start), tokens, frames)
            times |= {i: (_steps(result.alignments), result.text_token_probs) for i, result in zip(group, results, strict=True)}
        return [times[i] for i in range(len(texts))]

    def _drawn(self, features: StorageView, start: list[int], window: Window, threads: int) -> WhisperGenerationResult:
        """One window above temperature 0, with random numbers that follow from its seed.

        CTranslate2 seeds the generator of a thread at its first draw and never again, so the words would depend on earlier draws of that
        thread. Therefore the window gets a thread of its own, with a copy of the model, which loads faster than a window is decoded.
        """
        with self._replicas:
            model = self._load(inter_threads=1, intra_threads=threads)
            silence = StorageView.from_array(np.zeros((1, 1, features.shape[2]), np.float32))
            with _SEEDING:
                set_random_seed(window.seed % 2**32)
                model.generate(
                    silence, [[self.tokenizer.openai.sot]], beam_size=1, max_length=2, sampling_topk=0
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
            # CTranslate2 samples min(max_length / 2, max_length - start + 1) tokens; the text context has no more positions
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


def _needs_ctranslate2(decoding: Decoding) -> bool:
    """Whether PyTorch's decoder lacks what is asked for: beams and penalties."""
    return bool(decoding.beam_size) or decoding.repetition_penalty != 1.0 or decoding.no_repeat_ngram_size > 0


def _use_threads(threads: int) -> None:
    """PyTorch's threads, for the thread that calls this."""
    import torch  # here: this engine works without PyTorch

    torch.set_num_threads(threads)


def _gpu_name() -> str:
    import torch  # here: on a CPU this engine works without it

    return torch.cuda.get_device_name()


def _best(decoding: Decoding, result: WhisperGenerationResult) -> SampledSequence:
    """The best hypothesis. CTranslate2 counts the tokens without <|endoftext|>, openai-whisper with it."""
    lengths = [len(tokens) for tokens in result.sequences_ids]
    power = _length_penalty(decoding)
    sums = [score * length**power if length or not power else -math.inf for score, length in zip(result.scores, lengths, strict=True)]
    return best_sequence(result.sequences_ids, sums, float(result.no_speech_prob), decoding.length_penalty)


def _length_penalty(decoding: Decoding) -> int:
    """CTranslate2 divides a sum of log-probabilities by the number of tokens to this power: 1 for beams, else 0.

    Beams are compared by their mean. The mean of an empty beam is not a number, so it ranks last.
    """
    return 1 if (decoding.beam_size or 1) > 1 else 0


def _rows(features: StorageView, indices: Sequence[int]) -> StorageView:
    """The features of the windows `indices`, in their order; the same object when these are all windows in order."""
    if list(indices) == list(range(features.shape[0])):
        return features
    on_cpu = features.to(DataType.float32).to_device(Device.cpu)  # NumPy has no bfloat16; CTranslate2 moves and casts them back
    return StorageView.from_array(np.ascontiguousarray(np.asarray(on_cpu)[list(indices)]))


def _steps(path: Sequence[tuple[int, int]]) -> list[int]:
    """The step of the encoder's output at which a path of (token, step) enters each token."""
    first_steps: dict[int, int] = {}
    for token, step in path:
        first_steps.setdefault(token, step)
    return list(first_steps.values())
