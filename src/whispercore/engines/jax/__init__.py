"""Whisper in JAX: a forward pass and a decoding loop that are compiled once for every shape, over any number of devices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import torch
from jax.sharding import Mesh
from whisper.model import ModelDimensions

from ...audio.log_mel import log_mels
from ...checkpoints import Checkpoint, load_checkpoint, locate
from ...devices import choose_precision, decoding_threads
from ...settings import Settings
from ...tokenizer import Tokenizer
from ...types import TEXT_CONTEXT, Decoded, Decoding, Window
from .. import Engine
from ..alignment import attention_matrix, jumps
from ..batched import BatchedEngine, SampledSequence, TokenTimes, best_sequence
from ..rules import AlignmentText, last_initial_timestamp, suppressed_tokens
from .alignment import attention_and_probs
from .decoding import LoopConfig, Sampled, Start, detect, sample
from .model import KeyValues, Params, encode
from .sharding import batch_sharding, load_params, make_mesh, padded_vocabulary

_DTYPES = {"cpu": ("float32", "float16", "bfloat16"), "cuda": ("float16", "bfloat16", "float32")}
_MAX_BATCH = {"cpu": 8, "cuda": 32}
_STARTS = (4, 32, 96, 228)
"""The lengths of start sequences for which programs are compiled. The longest is a prompt of 223 tokens with <|notimestamps|>."""
_TEXTS = (32, 64, 128, 232)
"""The lengths of sequences to align, likewise. The longest is a start sequence, <|notimestamps|>, 224 tokens of text and the end."""

_encode = jax.jit(encode, static_argnames=("audio_heads", "text_heads"))
_detect = jax.jit(detect, static_argnames=("first", "count"))
_sample = jax.jit(sample, static_argnames=("config", "no_speech"))
_attention_and_probs = jax.jit(attention_and_probs, static_argnames=("heads", "eot"))


def load(settings: Settings, device: str) -> Engine:
    """The engine with the settings' checkpoint on the mesh of devices. Raises ConfigurationError."""
    dtype = choose_precision("jax", settings, device, precisions(device))
    _keep_compiled(settings.converted_path / "jax")
    threads = decoding_threads(settings)
    mesh = _mesh(settings.jax_mesh, device, threads)
    checkpoint = load_checkpoint(locate(settings))
    max_batch = settings.batch_size or _MAX_BATCH[device] * mesh.shape["data"]
    return JaxEngine(checkpoint, mesh, dtype=dtype, threads=threads, max_batch=max_batch)


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return _DTYPES[device]


class JaxEngine(BatchedEngine[Params, KeyValues]):
    """`encode`, `detect` and `sample` over batches of windows, under openai-whisper's rules."""

    name = "jax"
    runtime = "JAX"
    equal_prompts = False

    def __init__(self, checkpoint: Checkpoint, mesh: Mesh, *, dtype: str = "float32", threads: int = 0, max_batch: int = 8) -> None:
        device = mesh.devices.flat[0]
        super().__init__(
            load_params(checkpoint, mesh, jnp.dtype(dtype)),
            Tokenizer(checkpoint.dims.n_vocab),
            n_mels=checkpoint.dims.n_mels,
            max_batch=max_batch,
            description={
                "model": checkpoint.name,
                "device": device.device_kind,
                "precision": dtype,
                "threads": threads,
                "mesh": "x".join(map(str, mesh.devices.shape)),
            },
        )
        self._dims: ModelDimensions = checkpoint.dims
        self._alignment_heads = tuple(checkpoint.alignment_heads)
        self._mesh, self._sharding = mesh, batch_sharding(mesh)
        self._mel_device = "cuda" if device.platform == "gpu" and torch.cuda.is_available() else "cpu"

    def free_memory(self) -> None:
        """Nothing: a batch's memory returns to JAX's pool by itself, and JAX keeps the pool."""

    def _decode(self, model: Params, windows: Sequence[Window]) -> list[Decoded]:
        # by default JAX multiplies float32 as TF32 on a GPU and as bfloat16 on a TPU
        with jax.default_matmul_precision("highest"):
            return super()._decode(model, windows)

    def _encode(self, model: Params, windows: Sequence[Window]) -> KeyValues:
        mel = np.zeros((self._rows(len(windows)), self.n_mels, 2 * self._dims.n_audio_ctx), np.float32)
        mel[: len(windows)] = log_mels(windows, self.n_mels, self._mel_device).cpu().numpy()
        audio: KeyValues = _encode(model, self._put(mel), self._dims.n_audio_head, self._dims.n_text_head)
        return audio

    def _detect_languages(self, model: Params, features: KeyValues, indices: list[int]) -> Iterator[Mapping[str, float]]:
        openai = self.tokenizer.openai
        codes = [code for _, code in sorted(zip(openai.all_language_tokens, openai.all_language_codes, strict=True))]
        rows = np.asarray(_detect(model, features, openai.sot, min(openai.all_language_tokens), len(codes))).tolist()
        for i in indices:
            yield dict(zip(codes, rows[i], strict=True))

    def _sample(
        self, model: Params, features: KeyValues, indices: list[int], windows: Sequence[Window], starts: list[list[int]]
    ) -> list[SampledSequence]:
        """One loop on the device for the whole batch: `indices` are those of all its windows."""
        decoding = windows[0].decoding
        start, config = self._start(windows, starts, self._rows(len(windows))), _loop_config(self.tokenizer, decoding)
        sampled = jax.device_get(_sample(model, features, start, config, self.tokenizer.openai.no_speech))
        return [
            best_sequence(*_candidates(self.tokenizer.eot, sampled, row), float(sampled.no_speech[row]), decoding.length_penalty)
            for row in indices
        ]

    def _align(self, model: Params, features: KeyValues, indices: list[int], texts: Sequence[AlignmentText]) -> list[TokenTimes]:
        openai = self.tokenizer.openai
        rows = [[*text.start, openai.no_timestamps, *text.tokens, openai.eot] for text in texts]
        tokens = np.full((len(features[0][0]), _fitting(_TEXTS, max(map(len, rows)))), openai.eot, np.int32)
        for i, row in zip(indices, rows, strict=True):
            tokens[i, : len(row)] = row
        attention, probs = jax.device_get(_attention_and_probs(model, features, self._put(tokens), self._alignment_heads, openai.eot))
        matrices = [attention_matrix(torch.tensor(attention[i]), text) for i, text in zip(indices, texts, strict=True)]
        steps = jumps([-matrix.double().numpy() for matrix in matrices])
        return [
            (entered.tolist(), probs[i, len(text.start) : len(text.start) + len(text.tokens)].tolist())
            for i, text, entered in zip(indices, texts, steps, strict=True)
        ]

    def _rows(self, count: int) -> int:
        """The batch size for `count` windows: a power of two for each part of the mesh, so that few shapes are compiled."""
        parts = int(self._mesh.shape["data"])
        windows, most = -(-count // parts), -(-self.max_batch // parts)
        return parts * min(1 << (windows - 1).bit_length(), max(windows, most))

    def _put(self, array: npt.NDArray[np.generic]) -> jax.Array:
        """The array on the devices, split along its first axis."""
        placed: jax.Array = jax.device_put(array, self._sharding)
        return placed

    def _start(self, windows: Sequence[Window], starts: Sequence[Sequence[int]], rows: int) -> Start:
        """The start sequences of a batch and the rules for what follows them. Rows beyond the windows sample nothing."""
        decoding = windows[0].decoding
        lengths = np.array([len(start) for start in starts])
        length = _fitting(_STARTS, int(lengths.max()))
        tokens, padding, limit = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        for row, start in enumerate(starts):
            tokens[row, length - len(start) :] = start
        padding[: len(starts)] = length - lengths
        limit[: len(starts)] = np.minimum(decoding.max_sampled, TEXT_CONTEXT + 1 - lengths)
        never, not_first = _forbidden(self.tokenizer, decoding, padded_vocabulary(self.tokenizer.vocabulary, self._mesh))
        seeds = np.zeros(rows, np.uint64)
        if decoding.temperature > 0:
            seeds[: len(windows)] = [window.seed for window in windows]
        return Start(
            tokens=self._put(tokens),
            padding=self._put(padding),
            sot=jnp.int32(length - len(starts[0]) + list(starts[0]).index(self.tokenizer.openai.sot)),
            limit=self._put(limit),
            enough=jnp.int32(_enough(decoding)),
            temperature=jnp.float32(decoding.temperature),
            seeds=self._put(seeds.view(np.uint32).reshape(rows, 2)),
            never=jnp.asarray(never),
            not_first=jnp.asarray(not_first),
        )


def _fitting(lengths: Sequence[int], length: int) -> int:
    """The shortest of `lengths` that has room for `length`."""
    return next(candidate for candidate in lengths if candidate >= length)


def _loop_config(tokenizer: Tokenizer, decoding: Decoding) -> LoopConfig:
    """The program for `decoding`. Room for finished beams is a power of two, as patience may be any number."""
    return LoopConfig(
        vocabulary=tokenizer.vocabulary,
        eot=tokenizer.eot,
        begin=tokenizer.timestamp_begin,
        group=decoding.beam_size or decoding.best_of or 1,
        finished=1 << (_enough(decoding) - 1).bit_length() if decoding.beam_size else 0,
        sampled=decoding.temperature > 0,
        timestamps=decoding.timestamps,
    )


def _enough(decoding: Decoding) -> int:
    """The number of finished beams at which a window ends."""
    return max(1, round((decoding.beam_size or 0) * (decoding.patience or 1.0)))


def _forbidden(tokenizer: Tokenizer, decoding: Decoding, size: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks of `size`: the tokens that are never sampled, and those that are never the first."""
    never, not_first = np.zeros((2, size), bool)
    never[suppressed_tokens(tokenizer, decoding.suppress_tokens)] = True
    never[tokenizer.eot] |= decoding.ignore_eot
    if decoding.suppress_blank:
        not_first[[*tokenizer.encode(" "), tokenizer.eot]] = True
    if decoding.timestamps:
        never[tokenizer.openai.no_timestamps] = True
        not_first[: tokenizer.timestamp_begin] = True
        last = last_initial_timestamp(decoding)
        not_first[size if last is None else tokenizer.timestamp_begin + last + 1 :] = True
    return never, not_first


def _candidates(eot: int, sampled: Sampled, row: int) -> tuple[list[list[int]], list[float]]:
    """A window's sequences, up to <|endoftext|>, and their sums: finished beams, filled up with the best unfinished ones."""
    kept, (tokens, sums) = int(sampled.kept[row]), sampled.live
    best = np.argsort(-sums[row], kind="stable")[: max(0, len(sums[row]) - kept)]
    sequences = [*sampled.finished.tokens[row, :kept].tolist(), *tokens[row, best].tolist()]
    return [_until(eot, sequence) for sequence in sequences], [*sampled.finished.sums[row, :kept].tolist(), *sums[row, best].tolist()]


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _keep_compiled(folder: Path) -> None:
    """Keep every compiled program in `folder`, so that the second start compiles nothing."""
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _mesh(shape: str, device: str, threads: int) -> Mesh:
    """The mesh, on a backend with `threads` threads. XLA reads their number from NPROC when it starts; there is no other way."""
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = str(threads)
    try:
        return make_mesh(shape, device)
    finally:
        del os.environ["NPROC"]
        if before is not None:
            os.environ["NPROC"] = before
