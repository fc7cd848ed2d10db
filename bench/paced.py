"""A stand-in for a GPU: engine `torch` with all its host work, on a device that computes nothing and answers after a programmed time.

It shows how well the host feeds a fast device on a machine without one. The engine's own code takes windows from the
scheduler, fills the buffers of an admission, queues steps, reads snapshots and makes the texts. Only the device's share
is replaced: an admission, a step and an alignment take the time that an NVIDIA H200 takes, times `slowdown`, and the
tokens come from a fixed text. Like a GPU, the device works off what is queued while the host goes on, and the host
sleeps when it waits for a snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whispercore.checkpoints import dimensions
from whispercore.engines.pytorch.cache import make_cache
from whispercore.engines.rules import AlignmentText
from whispercore.engines.torch import TorchEngine
from whispercore.engines.torch.admission import Admission, AdmissionShape, SlotState
from whispercore.engines.torch.alignment import PendingAlignment
from whispercore.engines.torch.decoding import StepShape
from whispercore.engines.torch.device import Cuda, Host, Snapshot
from whispercore.engines.torch.engine import _AlignmentBatch
from whispercore.engines.torch.precision import Precision
from whispercore.engines.torch.slots import Slots
from whispercore.engines.torch.state import Detections, Rows
from whispercore.tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer
from whispercore.types import Window

SIZE, MOST_WINDOWS, ENCODED_AT_ONCE = "large-v3-turbo", 128, 8
STEPS = {1: 0.62e-3, 8: 0.70e-3, 128: 2.73e-3}
"""Windows in a step, and the seconds it takes on an H200 in float16 with large-v3-turbo. Between them the time is linear."""
ENTRY, ENTRY_OVERHEAD = 46e-3, 3e-3
"""Seconds of an admission of 8 windows, measured on the same GPU; and an estimate of the part that does not depend on their number."""
ALIGNMENT = 2e-3
"""Seconds of a pass that aligns finished windows: an estimate, three steps."""
SLOWDOWN = 8.0
"""The measured H200 was served by 16 cores. Two cores serve one that is eight times slower."""
TOKENS_PER_SECOND = 4.0
"""Of speech: 120 tokens a window."""
SEGMENT_SECONDS = 5.0
LOGPROB = -0.2
TEXT = (
    " The harbour was quiet that morning, and a thin fog lay over the water. Two men carried a crate of oranges up the steps,"
    " while a girl in a blue coat counted the gulls on the wall. Nobody had slept well, because the storm of the night before"
    " had torn several boats from their moorings. My grandfather used to say that weather like this brings letters from abroad."
    " He kept every one of them in a wooden box, sorted by year, with dried flowers between the pages. When the bell rang at"
    " eight, the baker opened his door and handed out yesterday's bread to anyone who asked for it. Later we walked along the"
    " railway line as far as the old signal box, which has been empty since the war. From its window you can see three villages,"
    " a windmill without sails, and the long straight road to the capital. I asked him how far it was. He laughed, lit his pipe,"
    " and told me that nobody who was happy had ever needed to measure it."
)


class PacedDevice(Host):
    """A device with a GPU's manner of work. `seconds`: how long it has computed in all. `launches`: admissions so far."""

    snapshots_in_flight, steps_per_snapshot, captures = Cuda.snapshots_in_flight, Cuda.steps_per_snapshot, True
    bucket, kv_length, encoder_batches, prompt_width = Cuda.bucket, Cuda.kv_length, Cuda.encoder_batches, Cuda.prompt_width

    def __init__(self, slowdown: float) -> None:
        super().__init__()
        self.seconds, self.launches = 0.0, 0
        self._slowdown, self._free_at = slowdown, 0.0

    def work(self, seconds: float) -> None:
        """Queue work that takes an H200 this long."""
        self.seconds += seconds * self._slowdown
        self._free_at = max(self._free_at, time.monotonic()) + seconds * self._slowdown

    def run(self, key: Hashable | None, step: Callable[[], None]) -> None:
        """Raises NotImplementedError: `PacedSlots` and `PacedAdmission` queue work of known duration instead."""
        raise NotImplementedError(key)

    def snapshot(self, tensors: Iterable[Tensor]) -> Snapshot:
        """Copies that arrive when all work queued so far is done."""
        return _PacedSnapshot([tensor.clone() for tensor in tensors], self._free_at)


class _PacedSnapshot:
    def __init__(self, tensors: list[Tensor], ready_at: float) -> None:
        self._tensors, self._ready_at = tensors, ready_at

    def wait(self) -> list[Tensor]:
        time.sleep(max(0.0, self._ready_at - time.monotonic()))
        return self._tensors


class PacedAdmission(Admission):
    """Fills the buffers as the real one does. The device then writes each window's text into its row, to be revealed step by step."""

    def _run(self, shape: AdmissionShape, rows: Rows, detections: Detections, states: Sequence[SlotState]) -> None:
        device = self._device
        assert isinstance(device, PacedDevice)
        device.work(entry_seconds(shape.windows))
        device.launches += 1
        for state in states:
            begin, tokens = len(state.start), [*text_of(self._tokenizer, state.window), self._tokenizer.eot]
            row = state.slot * shape.group
            rows.tokens[row, begin : begin + len(tokens)] = torch.tensor(tokens)
            rows.length[row], rows.limit[row], rows.done[row] = begin, begin + len(tokens), False
            rows.score[row] = LOGPROB * len(tokens)
            detections.language[state.slot] = self._tokenizer.languages.index("en")
            detections.language_probability[state.slot] = 1.0


class PacedSlots(Slots):
    """Slots whose steps reveal one token of each row."""

    def __init__(self, model: Any, cache: Any, tokenizer: Tokenizer, device: PacedDevice, together: int) -> None:
        super().__init__(model, cache, tokenizer, device, together)
        self._admission = PacedAdmission(model, cache, tokenizer, device, together)
        self._paced = device

    def step(self, shape: StepShape) -> None:
        """Queue a step. Greedy search only."""
        self._paced.work(step_seconds(shape.windows))
        rows = self._rows.first(shape.rows)
        rows.length.add_(~rows.done)
        rows.done.logical_or_(rows.length >= rows.limit)


class PacedEngine(TorchEngine):
    """Engine `torch` on a `PacedDevice`."""

    device: PacedDevice

    def __init__(self, slowdown: float = SLOWDOWN, *, max_batch: int = MOST_WINDOWS) -> None:
        torch.set_num_threads(1)  # as the engine does on a GPU
        dims = dimensions(SIZE)
        self.tokenizer, self.n_mels, self.max_batch = Tokenizer(dims.n_vocab), dims.n_mels, max_batch
        self._model_name, self._device_name, self._precision, self._compiles = SIZE, "cpu", Precision(torch.float16, False), False
        self.device, self._encoded_at_once, self._slowdown = PacedDevice(slowdown), ENCODED_AT_ONCE, slowdown
        self._cache = make_cache(dims, max_batch, max_batch, torch.float16, torch.device("meta"))
        self._model: Any = _Shape(dims)
        self._slots = PacedSlots(self._model, self._cache, self.tokenizer, self.device, ENCODED_AT_ONCE)

    def describe(self) -> dict[str, str | int | float | bool]:
        """What it stands for."""
        return super().describe() | {"engine": "torch, paced", "device": "an H200's times", "slowdown": self._slowdown}

    def _align(self, batch: _AlignmentBatch) -> PendingAlignment:
        self.device.work(ALIGNMENT)
        return PendingAlignment(self.device.snapshot([tensor for text in batch.texts for tensor in _alignment(text)]))


class _Shape:
    """A model of which only the dimensions are known."""

    def __init__(self, dims: Any) -> None:
        self.dims = dims


def entry_seconds(windows: int) -> float:
    """How long an admission of so many windows takes an H200."""
    return ENTRY_OVERHEAD + (ENTRY - ENTRY_OVERHEAD) * windows / ENCODED_AT_ONCE


def step_seconds(windows: int) -> float:
    """How long a step of so many windows takes an H200."""
    return float(np.interp(windows, list(STEPS), list(STEPS.values())))


def text_of(tokenizer: Tokenizer, window: Window) -> list[int]:
    """The window's tokens: as many as speech of its duration has; with timestamps when its decoding asks for them."""
    offset = round(TOKENS_PER_SECOND * window.start)
    if not window.decoding.timestamps:
        return list(_words(tokenizer, offset, round(TOKENS_PER_SECOND * window.duration)))[: window.decoding.max_sampled]
    return [token for segment in _segments(tokenizer, offset, window.duration) for token in segment][: window.decoding.max_sampled]


def _segments(tokenizer: Tokenizer, offset: int, seconds: float) -> Iterator[list[int]]:
    """A timestamp, words and a timestamp for each 5 s."""
    for begin in np.arange(0.0, seconds, SEGMENT_SECONDS).tolist():
        end = min(begin + SEGMENT_SECONDS, seconds)
        words = _words(tokenizer, offset + round(TOKENS_PER_SECOND * begin), max(1, round(TOKENS_PER_SECOND * (end - begin)) - 2))
        first, last = (tokenizer.timestamp_begin + round(second / SECONDS_PER_TIMESTAMP) for second in (begin, end))
        yield [first, *words, last]


def _words(tokenizer: Tokenizer, offset: int, count: int) -> Iterator[int]:
    text = _text(tokenizer)
    return (text[(offset + number) % len(text)] for number in range(count))


@lru_cache
def _text(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tokenizer.encode(TEXT)


def _alignment(text: AlignmentText) -> tuple[Tensor, Tensor]:
    """An attention matrix (tokens + 1, steps) whose path spreads the tokens evenly, and their probabilities (tokens,)."""
    return _matrix(len(text.tokens) + 1, max(1, text.frames // 2)), torch.full((len(text.tokens),), 0.9)


@lru_cache(maxsize=64)
def _matrix(rows: int, columns: int) -> Tensor:
    matrix = np.random.default_rng(0).normal(scale=0.3, size=(rows, columns)).astype(np.float32)
    for row, (begin, end) in enumerate(zip(_edges(rows, columns), _edges(rows, columns)[1:], strict=False)):
        matrix[row, begin:end] += 3.0
    return torch.from_numpy(matrix)


def _edges(rows: int, columns: int) -> list[int]:
    return [round(edge) for edge in np.linspace(0, columns, rows + 1)]
