"""Whisper in JAX: our own forward pass and decoding loop, compiled once for every shape, over any number of devices."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
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
from ...errors import EngineError
from ...settings import Settings
from ...tokenizer import Tokenizer
from ...types import TEXT_CONTEXT, Decoded, Decoding, Window
from .. import Engine
from ..alignment import attended, jumps
from ..rules import (
    batch_key,
    decoded,
    failure,
    last_initial_timestamp,
    likeliest_sequence,
    start_tokens,
    suppressed_tokens,
    text_to_align,
    told_or_detected,
    with_times,
)
from .alignment import follow
from .decoding import Sampled, Search, Start, detect, sample
from .model import KeyValues, Params, encode
from .sharding import batch_sharding, make_mesh, padded, place

_DTYPES = {"cpu": ("float32", "float16", "bfloat16"), "cuda": ("float16", "bfloat16", "float32")}
_MAX_BATCH = {"cpu": 8, "cuda": 32}
_STARTS = (4, 32, 96, 228)
"""Lengths of start sequences that are compiled for; the longest is a prompt of 223 tokens with <|notimestamps|>."""
_TEXTS = (32, 64, 128, 232)
"""Lengths of sequences to align that are compiled for: a start, <|notimestamps|>, 224 tokens of text and the end."""

_encode = jax.jit(encode, static_argnames=("audio_heads", "text_heads"))
_detect = jax.jit(detect, static_argnames=("first", "count"))
_sample = jax.jit(sample, static_argnames=("search", "no_speech"))
_follow = jax.jit(follow, static_argnames=("heads", "eot"))


def load(settings: Settings, device: str) -> Engine:
    """The engine with the settings' checkpoint on the mesh of devices. Raises ConfigurationError."""
    dtype = choose_precision("jax", settings, device, precisions(device))
    _keep_compiled(settings.converted_path / "jax")
    threads = decoding_threads(settings)
    if device == "cpu":
        torch.set_num_threads(threads)
    mesh = _mesh(settings.jax_mesh, device, threads)
    checkpoint = load_checkpoint(locate(settings))
    max_batch = settings.batch_size or _MAX_BATCH[device] * mesh.shape["data"]
    return JaxEngine(checkpoint, mesh, dtype=dtype, threads=threads, max_batch=max_batch)


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return _DTYPES[device]


class JaxEngine:
    """`encode`, `detect` and `sample` over batches of windows, under openai-whisper's rules. Not thread-safe."""

    name = "jax"

    def __init__(self, checkpoint: Checkpoint, mesh: Mesh, *, dtype: str = "float32", threads: int = 0, max_batch: int = 8) -> None:
        self.max_batch = max_batch
        self.n_mels = checkpoint.dims.n_mels
        self.tokenizer = Tokenizer(checkpoint.dims.n_vocab)
        self._dims: ModelDimensions = checkpoint.dims
        self._alignment_heads = tuple(checkpoint.alignment_heads)
        self._params: Params | None = place(checkpoint, mesh, jnp.dtype(dtype))
        self._mesh, self._sharding = mesh, batch_sharding(mesh)
        self._mel_device = "cuda" if mesh.devices.flat[0].platform == "gpu" and torch.cuda.is_available() else "cpu"
        self._model_name, self._dtype, self._threads = checkpoint.name, dtype, threads

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages and prompts may differ, whatever the prompts' lengths."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`: one pass of the encoder, one loop on the device."""
        if not windows:
            return []
        if self._params is None:
            raise EngineError("the engine is closed")
        try:
            # or float32 would be multiplied as TF32 on a GPU, as bfloat16 on a TPU
            with jax.default_matmul_precision("highest"):
                return self._decode(self._params, windows)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise error if isinstance(error, EngineError) else failure(error, "JAX", len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch, mesh."""
        return {
            "engine": self.name,
            "model": self._model_name,
            "device": self._mesh.devices.flat[0].device_kind,
            "precision": self._dtype,
            "threads": self._threads,
            "batch": self.max_batch,
            "mesh": "x".join(map(str, self._mesh.devices.shape)),
        }

    def free_memory(self) -> None:
        """Nothing: what a batch took is back in JAX's pool by itself, and the pool stays."""

    def close(self) -> None:
        """Free the weights."""
        self._params = None

    def _decode(self, params: Params, windows: Sequence[Window]) -> list[Decoded]:
        decodings = [window.decoding for window in windows]
        rows = self._rows(len(windows))
        mel = np.zeros((rows, self.n_mels, 2 * self._dims.n_audio_ctx), np.float32)
        mel[: len(windows)] = log_mels(windows, self.n_mels, self._mel_device).cpu().numpy()
        audio = _encode(params, self._put(mel), self._dims.n_audio_head, self._dims.n_text_head)
        languages = self._languages(params, audio, decodings)
        starts = [start_tokens(self.tokenizer, each, language) for each, (language, _) in zip(decodings, languages, strict=True)]
        start = self._start(windows, starts, rows)
        search = _search(self.tokenizer, decodings[0])
        sampled = jax.device_get(_sample(params, audio, start, search, self.tokenizer.openai.no_speech))
        found = [self._decoded(decodings[i], *languages[i], sampled, i) for i in range(len(windows))]
        return self._aligned(params, audio, windows, found)

    def _aligned(self, params: Params, audio: KeyValues, windows: Sequence[Window], found: list[Decoded]) -> list[Decoded]:
        """The same, with the times of the tokens that are asked for."""
        texts = [text_to_align(self.tokenizer, window, one) for window, one in zip(windows, found, strict=True)]
        wanted = [i for i, text in enumerate(texts) if text.tokens]
        if not wanted:
            return found
        openai = self.tokenizer.openai
        rows = [[*text.start, openai.no_timestamps, *text.tokens, openai.eot] if text.tokens else [] for text in texts]
        tokens = np.full((self._rows(len(rows)), _fitting(_TEXTS, max(map(len, rows)))), openai.eot, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        attention, probs = jax.device_get(_follow(params, audio, self._put(tokens), self._alignment_heads, openai.eot))
        steps = jumps([-attended(torch.tensor(attention[i]), texts[i]).double().numpy() for i in wanted])
        for i, entered in zip(wanted, steps, strict=True):
            begin = len(texts[i].start)
            found[i] = with_times(found[i], entered.tolist(), probs[i, begin : begin + len(texts[i].tokens)].tolist())
        return found

    def _rows(self, count: int) -> int:
        """Windows that are computed for `count` of them: powers of two for each part of the mesh, so that few shapes are compiled."""
        parts = int(self._mesh.shape["data"])
        each, most = -(-count // parts), -(-self.max_batch // parts)
        return parts * min(1 << (each - 1).bit_length(), max(each, most))

    def _put(self, array: npt.NDArray[np.generic]) -> jax.Array:
        """The array on the devices, split along its first axis."""
        placed: jax.Array = jax.device_put(array, self._sharding)
        return placed

    def _languages(self, params: Params, audio: KeyValues, decodings: Sequence[Decoding]) -> list[tuple[str, float | None]]:
        """Each window's language, and its probability where it was detected."""
        openai = self.tokenizer.openai
        codes = [code for _, code in sorted(zip(openai.all_language_tokens, openai.all_language_codes, strict=True))]

        def detect(unknown: list[int]) -> Iterator[dict[str, float]]:
            rows = np.asarray(_detect(params, audio, openai.sot, min(openai.all_language_tokens), len(codes))).tolist()
            for i in unknown:
                yield dict(zip(codes, rows[i], strict=True))

        return told_or_detected(decodings, self.tokenizer.multilingual, detect)

    def _start(self, windows: Sequence[Window], starts: Sequence[Sequence[int]], rows: int) -> Start:
        """The start sequences of a batch, and what its decoding lets follow; rows beyond them sample nothing."""
        decoding = windows[0].decoding
        lengths = np.array([len(start) for start in starts])
        length = _fitting(_STARTS, int(lengths.max()))
        tokens, padding, limit = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        for row, start in enumerate(starts):
            tokens[row, length - len(start) :] = start
        padding[: len(starts)] = length - lengths
        limit[: len(starts)] = np.minimum(decoding.max_sampled, TEXT_CONTEXT + 1 - lengths)
        never, not_first = _forbidden(self.tokenizer, decoding, padded(self.tokenizer.vocabulary, self._mesh))
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

    def _decoded(self, decoding: Decoding, language: str, probability: float | None, sampled: Sampled, row: int) -> Decoded:
        candidates, sums = _candidates(self.tokenizer.eot, sampled, row)
        best = likeliest_sequence(sums, [len(tokens) for tokens in candidates], decoding.length_penalty)
        tokens = candidates[best]
        return decoded(
            self.tokenizer,
            tokens,
            decoding,
            language=language,
            language_probability=probability,
            avg_logprob=sums[best] / (len(tokens) + 1),
            no_speech_prob=float(sampled.no_speech[row]),
        )


def _fitting(lengths: Sequence[int], length: int) -> int:
    """The shortest of `lengths` that has room for `length`."""
    return next(each for each in lengths if each >= length)


def _search(tokenizer: Tokenizer, decoding: Decoding) -> Search:
    """What the loop of `decoding` is compiled for; kept beams in powers of two, as patience may be any number."""
    return Search(
        vocabulary=tokenizer.vocabulary,
        eot=tokenizer.eot,
        begin=tokenizer.timestamp_begin,
        group=decoding.beam_size or decoding.best_of or 1,
        finished=1 << (_enough(decoding) - 1).bit_length() if decoding.beam_size else 0,
        sampled=decoding.temperature > 0,
        timestamps=decoding.timestamps,
    )


def _enough(decoding: Decoding) -> int:
    """Finished beams that end a window."""
    return max(1, round((decoding.beam_size or 0) * (decoding.patience or 1.0)))


def _forbidden(tokenizer: Tokenizer, decoding: Decoding, size: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The tokens, as masks of `size`, that are never sampled, and those that are not the first."""
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
    """A window's sequences, up to <|endoftext|>, and their sums: finished beams, and where they are too few the best of the others."""
    kept, (tokens, sums) = int(sampled.kept[row]), sampled.live
    best = np.argsort(-sums[row], kind="stable")[: max(0, len(sums[row]) - kept)]
    every = [*sampled.finished.tokens[row, :kept].tolist(), *tokens[row, best].tolist()]
    return [_until(eot, each) for each in every], [*sampled.finished.sums[row, :kept].tolist(), *sums[row, best].tolist()]


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _keep_compiled(folder: Path) -> None:
    """Keep every compiled program in `folder`: the second start compiles nothing."""
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _mesh(shape: str, device: str, threads: int) -> Mesh:
    """The mesh, on a backend with so many threads: XLA takes their number from NPROC when it starts, and has no other way."""
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = str(threads)
    try:
        return make_mesh(shape, device)
    finally:
        del os.environ["NPROC"]
        if before is not None:
            os.environ["NPROC"] = before
