"""The engine: windows from a feed into slots, `Decoded` back as each is done."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ...checkpoints import Checkpoint, load_checkpoint, locate
from ...devices import decoding_threads
from ...errors import EngineError, OutOfMemory, WhisperError
from ...settings import Settings
from ...tokenizer import Tokenizer
from ...types import Decoded, Decoding, Window
from .. import Feed, RefillingEngine
from ..rules import Text, decoded, lacks_memory, likeliest_sequence, reason, text_to_align, with_times
from .admission import Flight, Hypothesis
from .alignment import Aligning, align
from .cache import cache_bytes, make_cache
from .compiling import check_compiler
from .device import Device, make_device
from .model import load_model
from .precision import Precision, choose_precision
from .slots import Search, Slots, search

logger = logging.getLogger(__name__)

_MAX_BATCH = {"cpu": 8, "cuda": 128}
_ENCODED_AT_ONCE = {"cpu": 2, "cuda": 8}
"""Between two rounds of steps: whoever is being decoded waits for it."""
_WARM_SECONDS = {"cpu": 0.0, "cuda": 10.0}
"""At 0 one step is run."""
_COMPILE_SECONDS = 120.0
_ROWS_A_WINDOW = {"cpu": 5, "cuda": 2}
"""Rows for beams and samples: on a CPU they take memory only when used."""
_MOST_ROWS = 16
"""The largest beam_size and best_of."""
_CACHE_SHARE = 0.7
"""Of the GPU's free memory, what the caches may take; the rest is for encoding."""


def load(settings: Settings, device: str, index: int = 0) -> RefillingEngine:
    """The engine with the settings' checkpoint on `device`, on a GPU on that of `index`. Raises ConfigurationError."""
    precision = choose_precision(settings.dtype, device)
    if device == "cpu":
        torch.set_num_threads(decoding_threads(settings))
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
    engine.warm_up(_COMPILE_SECONDS if settings.compile else _WARM_SECONDS[device])
    return engine


class TorchEngine:
    """Whisper in slots. Not thread-safe; one per device, each with its own stream."""

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
        """`max_batch`: windows decoded side by side at most, 0: as many as are good for the device and fit into its memory.

        `int8`: the weights in 8 bits. `compiles`: parts of the model by torch.compile.
        """
        self.tokenizer = Tokenizer(checkpoint.dims.n_vocab)
        self.n_mels = checkpoint.dims.n_mels
        self._model_name, self._kind, self._precision, self._compiles = checkpoint.name, device, Precision(dtype, int8), compiles
        self._device: Device = make_device(device, index)
        self._encoded_at_once = _ENCODED_AT_ONCE[device]
        with self._device.working():
            self._model = load_model(checkpoint, self._device.torch, dtype, int8=int8, compiles=compiles)
            self.max_batch = self._fitting(max_batch or _MAX_BATCH[device])
            rows = max(_MOST_ROWS, self.max_batch * _ROWS_A_WINDOW[device])
            self._cache = make_cache(checkpoint.dims, self.max_batch, rows, dtype, self._device.torch)
            self._slots: Slots | None = Slots(self._model, self._cache, self.tokenizer, self._device, self._encoded_at_once)

    def warm_up(self, seconds: float) -> None:
        """Run, compile and capture what common requests need, for about so long, so that the first one finds it there."""
        began, slots = time.monotonic(), self._opened()
        encodes = self._device.captures or self._compiles
        try:
            with self._at_work(slots):
                shapes = slots.warm(began + seconds, together=self._encoded_at_once, encodes=encodes)
            logger.info("engine 'torch' is warm: %d sizes of batches in %.1f s", shapes, time.monotonic() - began)
        except OutOfMemory as error:
            self._encoded_at_once = max(1, self._encoded_at_once // 2)
            self.free_memory()
            logger.warning("%s: at most %d windows are encoded at once", error.message, self._encoded_at_once)

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Only the number of rows a window must be equal: everything else is each row's own."""
        return search(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`, through `decode_feed`."""
        feed = _Batch(windows)
        self.decode_feed(feed)
        return [feed.found[index] for index in range(len(windows))]

    def decode_feed(self, feed: Feed) -> None:
        """Decode until the feed has nothing more and all that was taken from it is done."""
        waiting: deque[Window] = deque()
        landings: deque[_Landing] = deque()
        slots = self._opened()
        with self._at_work(slots):
            while self._refill(slots, feed, waiting):
                decoding = sum(len(each.flights) for each in landings) < len(slots.flights)
                if decoding:
                    slots.advance()
                    landings.append(self._land(slots, feed))
                while landings and (len(landings) > self._device.lag or not decoding):
                    self._time(slots, feed, landings.popleft())

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {
            "engine": self.name,
            "model": self._model_name,
            "device": torch.cuda.get_device_name(self._device.torch) if self._kind == "cuda" else "cpu",
            "precision": str(self._precision),
            "compiled": self._compiles,
            "threads": torch.get_num_threads(),
            "batch": self.max_batch,
        }

    def free_memory(self) -> None:
        """Give the GPU memory of the graphs, which are made again as they are used, and what PyTorch caches back to the device."""
        self._device.forget()

    def close(self) -> None:
        """Free the weights, the caches and the graphs."""
        self._slots = None
        vars(self).pop("_model", None)
        vars(self).pop("_cache", None)
        self.free_memory()

    def _opened(self) -> Slots:
        if self._slots is None:
            raise EngineError("the engine is closed")
        return self._slots

    def _fitting(self, windows: int) -> int:
        """As many windows as the GPU's free memory has room for."""
        if self._kind == "cpu":
            return windows
        self._device.forget()  # what loading took
        own, cross = cache_bytes(self._model.dims, self._precision.dtype)
        free, _ = torch.cuda.mem_get_info(self._device.torch)
        return max(1, min(windows, int((free * _CACHE_SHARE - _MOST_ROWS * own) / (cross + _ROWS_A_WINDOW["cuda"] * own))))

    @contextmanager
    def _at_work(self, slots: Slots) -> Iterator[None]:
        """On the device, with its errors as ours; whatever happens, the slots are empty afterwards."""
        try:
            with torch.no_grad(), self._device.working():
                try:
                    yield
                finally:
                    slots.begin(Search(1))
        except (RuntimeError, ValueError, MemoryError) as error:
            raise error if isinstance(error, WhisperError) else _ours(error) from error

    def _refill(self, slots: Slots, feed: Feed, waiting: deque[Window]) -> bool:
        """Fill free slots from the feed; whether there is anything to decode."""
        if not slots.flights and not waiting:
            waiting.extend(feed.take(self._encoded_at_once))
            if waiting:
                slots.begin(search(waiting[0].decoding))
        # one lot between two rounds of steps, so that those who are being decoded never wait for a whole batch's encoding
        if (room := min(slots.free, self._encoded_at_once)) > 0:
            if len(waiting) < room:
                waiting.extend(feed.take(room - len(waiting)))
            if waiting:
                self._admit(slots, [waiting.popleft() for _ in range(min(room, len(waiting)))])
        return bool(slots.flights)

    def _admit(self, slots: Slots, windows: list[Window]) -> None:
        """Encode windows; fewer at once from now on when the memory is short, so that those in the slots need not begin again."""
        try:
            slots.admit(windows)
        except torch.OutOfMemoryError:
            if len(windows) == 1:
                raise
            self.free_memory()
            self._encoded_at_once = half = len(windows) // 2
            self._admit(slots, windows[:half])
            self._admit(slots, windows[half:])

    def _land(self, slots: Slots, feed: Feed) -> _Landing:
        """Hand back what is done; the times of the others' words are on their way, while the next steps are queued."""
        landing = _Landing()
        for flight in slots.landed():
            found = self._untimed(flight, _best(flight))
            text = text_to_align(self.tokenizer, flight.window, found)
            if text.tokens:
                landing.flights.append(flight)
                landing.found.append(found)
                landing.texts.append(text)
            else:
                slots.release(flight)
                feed.done(flight.window, found)
        if landing.flights:
            places, openai = [flight.slot for flight in landing.flights], self.tokenizer.openai
            tokens = {"no_timestamps": openai.no_timestamps, "eot": openai.eot}
            landing.aligning = align(self._model, self._cache, self._device, places, landing.texts, **tokens)
        return landing

    def _time(self, slots: Slots, feed: Feed, landing: _Landing) -> None:
        """Hand back a landing's windows with the times of their words."""
        times = landing.aligning.wait() if landing.aligning else ()
        for flight, found, of_text in zip(landing.flights, landing.found, times, strict=True):
            slots.release(flight)
            feed.done(flight.window, with_times(found, *of_text))

    def _untimed(self, flight: Flight, best: Hypothesis) -> Decoded:
        return decoded(
            self.tokenizer,
            best.tokens,
            flight.decoding,
            language=flight.language,
            language_probability=flight.language_probability,
            avg_logprob=best.score / (len(best.tokens) + 1),
            no_speech_prob=flight.no_speech,
        )


@dataclass(slots=True)
class _Landing:
    """Windows that are done but for the times of their words, which keep their slots until these are there."""

    flights: list[Flight] = field(default_factory=list)
    found: list[Decoded] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    aligning: Aligning | None = None


class _Batch:
    """A feed of the windows of one call."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._waiting = deque(windows)
        self._places: dict[int, list[int]] = {}
        for place, window in enumerate(windows):
            self._places.setdefault(id(window), []).append(place)
        self.found: dict[int, Decoded] = {}

    def take(self, most: int) -> Sequence[Window]:
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def done(self, window: Window, result: Decoded) -> None:
        self.found[self._places[id(window)].pop()] = result


def _best(flight: Flight) -> Hypothesis:
    found = flight.hypotheses
    lengths = [len(each.tokens) for each in found]
    return found[likeliest_sequence([each.score for each in found], lengths, flight.decoding.length_penalty)]


def _ours(error: Exception) -> EngineError:
    if lacks_memory(error):
        return OutOfMemory(f"no memory to decode on: {reason(error)}")
    return EngineError(f"engine 'torch' failed: {reason(error)}")
