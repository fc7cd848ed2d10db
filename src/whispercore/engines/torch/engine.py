"""The engine: windows from a feed into slots, a `Decoded` back for each as soon as it is done."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ...checkpoints import Checkpoint, load_checkpoint, locate
from ...errors import EngineError, OutOfMemory, WhisperError
from ...settings import Settings
from ...tokenizer import Tokenizer
from ...types import Decoded, Decoding, Window
from .. import Feed, RefillingEngine, Result
from ..pytorch.cache import cache_bytes, make_cache
from ..pytorch.compiling import check_compiler
from ..pytorch.model import load_model
from ..rules import AlignmentText, first_line, lacks_memory, likeliest_sequence, make_decoded, text_to_align, with_times
from .admission import Hypothesis, SlotState
from .alignment import Alignment, PendingAlignment, align
from .contest import fastest_attention
from .device import Device, make_device
from .precision import Precision, resolve_precision
from .slots import SlotLayout, Slots, slot_layout

logger = logging.getLogger(__name__)

_MAX_BATCH = {"cpu": 8, "cuda": 128}
_ENCODED_AT_ONCE = {"cpu": 2, "cuda": 8}
"""Windows encoded between two rounds of steps: the windows in the slots wait for that."""
_WARM_SECONDS = {"cpu": 0.0, "cuda": 4.0}
"""With 0 one step is run. What is left is captured at its second use, which then takes some hundredths of a second longer."""
_COMPILE_SECONDS = 120.0
_ROWS_A_WINDOW = {"cpu": 5, "cuda": 2}
"""Rows for beams and samples. On a CPU they take memory only when used."""
_MOST_ROWS = 16
"""The largest beam_size and best_of."""
_CACHE_SHARE = 0.7
"""The share of the GPU's free memory that the caches may take; the rest is for encoding."""


def load(settings: Settings, device: str, index: int = 0) -> RefillingEngine:
    """The engine with the settings' checkpoint on `device`; `index`: the GPU's. Raises ConfigurationError."""
    precision = resolve_precision(settings, device)
    if settings.compile:
        check_compiler(torch.device(device, index))
    checkpoint = load_checkpoint(locate(settings))
    engine = TorchEngine(
        checkpoint,
        device=device,
        index=index,
        dtype=precision.dtype,
        int8=precision.int8,
        compiles=settings.compile,
        max_batch=settings.batch_size,
    )
    if device == "cuda":
        # the host only copies: several threads would gain nothing, and spin between two copies on cores that read recordings
        torch.set_num_threads(1)
    engine.warm_up(_COMPILE_SECONDS if settings.compile else _WARM_SECONDS[device])
    return engine


class TorchEngine:
    """Whisper with continuous batching. Not thread-safe; one per device, each with its own stream.

    `slots` and `device` are for benchmarks and tests, which run single steps.
    """

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        index: int = 0,
        dtype: torch.dtype = torch.float32,
        int8: bool = False,
        compiles: bool = False,
        max_batch: int = 0,
    ) -> None:
        """`max_batch`: the most windows in slots; 0: the device's best number, as far as memory allows.

        `int8`: weights in 8 bits. `compiles`: parts of the model by torch.compile.
        """
        self.tokenizer = Tokenizer(checkpoint.dims.n_vocab)
        self.n_mels = checkpoint.dims.n_mels
        self._model_name, self._device_name, self._precision, self._compiles = checkpoint.name, device, Precision(dtype, int8), compiles
        self.device: Device = make_device(device, index)
        self._encoded_at_once = _ENCODED_AT_ONCE[device]
        with self.device.activate():
            self._model = load_model(checkpoint, self.device.torch, dtype, int8=int8, compiles=compiles)
            self.max_batch = self._windows_that_fit(max_batch or _MAX_BATCH[device])
            rows = max(_MOST_ROWS, self.max_batch * _ROWS_A_WINDOW[device])
            self._cache = make_cache(checkpoint.dims, self.max_batch, rows, dtype, self.device.torch)
            attention = fastest_attention(self.device, checkpoint.dims, self._cache, min(self.max_batch, self._encoded_at_once))
            self._model = replace(self._model, attention=attention)
            self._slots: Slots | None = Slots(self._model, self._cache, self.tokenizer, self.device, self._encoded_at_once)

    @property
    def slots(self) -> Slots:
        """The slots. Raises EngineError after `close`."""
        if self._slots is None:
            raise EngineError("the engine is closed")
        return self._slots

    def warm_up(self, seconds: float) -> None:
        """Run, compile and capture what common requests need, for about `seconds`, so that the first request does not wait for it."""
        began, slots = time.monotonic(), self.slots
        encodes = self.device.captures or self._compiles
        try:
            with self._decoding(slots):
                shapes = slots.warm(began + seconds, together=self._encoded_at_once, encodes=encodes)
            logger.info("engine 'torch' is warm: %d sizes of batches in %.1f s", shapes, time.monotonic() - began)
        except OutOfMemory as error:
            self._encoded_at_once = max(1, self._encoded_at_once // 2)
            self.free_memory()
            logger.warning("%s: at most %d windows are encoded at once", error.message, self._encoded_at_once)

    def batch_key(self, decoding: Decoding) -> Hashable:
        """The layout of a slot. All other options may differ within a batch."""
        return slot_layout(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`, through `decode_feed`."""
        feed = _BatchFeed(windows)
        self.decode_feed(feed)
        return [feed.results[index]() for index in range(len(windows))]

    def decode_feed(self, feed: Feed) -> None:
        """Decode until the feed has no more windows and all that were taken are done."""
        waiting: deque[Window] = deque()
        alignments: deque[_AlignmentBatch] = deque()
        slots = self.slots
        with self._decoding(slots):
            while self._refill(slots, feed, waiting):
                unfinished = sum(len(batch.states) for batch in alignments) < len(slots.states)
                if unfinished:
                    slots.advance()
                    alignments.append(self._collect_finished(slots, feed))
                while alignments and (len(alignments) > self.device.snapshots_in_flight or not unfinished):
                    self._finish_alignment(slots, feed, alignments.popleft())

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {
            "engine": self.name,
            "model": self._model_name,
            "device": torch.cuda.get_device_name(self.device.torch) if self._device_name == "cuda" else "cpu",
            "precision": str(self._precision),
            "compiled": self._compiles,
            "threads": torch.get_num_threads(),
            "batch": self.max_batch,
        }

    def free_memory(self) -> None:
        """Give the memory of the CUDA graphs, which are captured again as they are used, and PyTorch's cache back to the device."""
        self.device.free_memory()

    def close(self) -> None:
        """Free the weights, the caches and the graphs."""
        self._slots = None
        vars(self).pop("_model", None)
        vars(self).pop("_cache", None)
        self.free_memory()

    def _windows_that_fit(self, windows: int) -> int:
        """At most `windows`, and no more than the GPU's free memory has room for."""
        if self._device_name == "cpu":
            return windows
        self.device.free_memory()  # of loading
        own, cross = cache_bytes(self._model.dims, self._precision.dtype)
        free, _ = torch.cuda.mem_get_info(self.device.torch)
        return max(1, min(windows, int((free * _CACHE_SHARE - _MOST_ROWS * own) / (cross + _ROWS_A_WINDOW["cuda"] * own))))

    @contextmanager
    def _decoding(self, slots: Slots) -> Iterator[None]:
        """The context of all work on the device: its errors become EngineErrors, and the slots are empty afterwards in any case."""
        try:
            with torch.no_grad(), self.device.activate():
                try:
                    yield
                finally:
                    slots.reset(SlotLayout(1))
        except (RuntimeError, ValueError, MemoryError) as error:
            raise error if isinstance(error, WhisperError) else _as_engine_error(error) from error

    def _refill(self, slots: Slots, feed: Feed, waiting: deque[Window]) -> bool:
        """Fill free slots from the feed; returns whether there are windows to decode.

        One small batch between two rounds of steps, so that the windows in the slots never wait for the encoding of a large
        one. While windows decode, a batch that is not full comes at most every `rounds_between_admissions` rounds: a
        recording that is being read gives one window after the other, and most of what an admission costs the host is the
        same for one window as for all that arrive meanwhile. Without windows in the slots nothing waits.
        """
        if not slots.states and not waiting:
            waiting.extend(feed.take(self._encoded_at_once))
            if waiting:
                slots.reset(slot_layout(waiting[0].decoding))
        room = min(slots.free, self._encoded_at_once)
        recent = bool(slots.states) and slots.rounds_since_admission < self.device.rounds_between_admissions
        at_least = self._encoded_at_once if recent else 1
        if room >= at_least and len(waiting) < room:
            waiting.extend(feed.take(room - len(waiting), at_least=max(1, at_least - len(waiting))))
        if room > 0 and waiting:
            self._admit(slots, [waiting.popleft() for _ in range(min(room, len(waiting)))])
        return bool(slots.states)

    def _admit(self, slots: Slots, windows: list[Window]) -> None:
        """Encode windows. When memory is short, fewer are encoded at once from then on; the windows in the slots are not lost."""
        try:
            slots.admit(windows)
        except torch.OutOfMemoryError:
            if len(windows) == 1:
                raise
            self.free_memory()
            self._encoded_at_once = half = len(windows) // 2
            self._admit(slots, windows[:half])
            self._admit(slots, windows[half:])

    def _collect_finished(self, slots: Slots, feed: Feed) -> _AlignmentBatch:
        """Return finished windows to the feed. Those that need token times are queued for alignment, before the next steps."""
        batch = _AlignmentBatch()
        for state in slots.finished():
            if state.decoding.alignment == "none":
                slots.release(state)
                feed.done(state.window, partial(self._decoded, state))
                continue
            decoded = self._decoded(state)
            text = text_to_align(self.tokenizer, state.window, decoded)
            if text.tokens:
                batch.states.append(state)
                batch.decoded.append(decoded)
                batch.texts.append(text)
            else:
                slots.release(state)
                feed.done(state.window, partial(_unchanged, decoded))
        if batch.states:
            batch.pending = self._align(batch)
        return batch

    def _align(self, batch: _AlignmentBatch) -> PendingAlignment:
        """Queue the pass that gives the batch's tokens their times."""
        indices = [state.slot for state in batch.states]
        return align(self._model, self._cache, self.device, indices, batch.texts, self.tokenizer)

    def _finish_alignment(self, slots: Slots, feed: Feed, batch: _AlignmentBatch) -> None:
        """Return a batch's windows with their token times to the feed."""
        alignments = batch.pending.wait() if batch.pending else ()
        for state, decoded, alignment in zip(batch.states, batch.decoded, alignments, strict=True):
            slots.release(state)
            feed.done(state.window, partial(_aligned, decoded, alignment))

    def _decoded(self, state: SlotState) -> Decoded:
        best = _best(state)
        return make_decoded(
            self.tokenizer,
            best.tokens,
            state.decoding,
            language=state.language,
            language_probability=state.language_probability,
            avg_logprob=best.score / (len(best.tokens) + 1),
            no_speech_prob=state.no_speech,
        )


@dataclass(slots=True)
class _AlignmentBatch:
    """Finished windows whose token times are being computed. They keep their slots until then."""

    states: list[SlotState] = field(default_factory=list)
    decoded: list[Decoded] = field(default_factory=list)
    texts: list[AlignmentText] = field(default_factory=list)
    pending: PendingAlignment | None = None


class _BatchFeed:
    """A feed of the windows of one call, in which a window may come several times."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._waiting = deque(windows)
        self._indices: dict[int, list[int]] = {}
        for index, window in enumerate(windows):
            self._indices.setdefault(id(window), []).append(index)
        self.results: dict[int, Result] = {}

    def take(self, most: int, *, at_least: int = 1) -> Sequence[Window]:
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def done(self, window: Window, result: Result) -> None:
        self.results[self._indices[id(window)].pop()] = result


def _unchanged(decoded: Decoded) -> Decoded:
    """A result without tokens to align."""
    return decoded


def _aligned(decoded: Decoded, alignment: Alignment) -> Decoded:
    """`decoded` with the times of its tokens."""
    return with_times(decoded, *alignment.times())


def _best(state: SlotState) -> Hypothesis:
    scores = [hypothesis.score for hypothesis in state.hypotheses]
    lengths = [len(hypothesis.tokens) for hypothesis in state.hypotheses]
    return state.hypotheses[likeliest_sequence(scores, lengths, state.decoding.length_penalty)]


def _as_engine_error(error: Exception) -> EngineError:
    if lacks_memory(error):
        return OutOfMemory(f"no memory to decode on: {first_line(error)}")
    return EngineError(f"engine 'torch' failed: {first_line(error)}")
