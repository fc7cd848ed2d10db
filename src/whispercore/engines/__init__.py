"""Engines: windows in, `Decoded` out. One file or folder per engine; this file holds their interface and the loader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast, runtime_checkable

import numpy as np

from ..catalogue import ENGINES, installation
from ..devices import choose_device, choose_engine, decoding_threads, has_torch
from ..errors import ConfigurationError
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import SAMPLE_RATE, Decoded, Decoding, Window

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What the scheduler needs of an engine.

    `decode` is called from one thread at a time, with 1 to `max_batch` windows that share one `batch_key`. It returns one `Decoded` per
    window, in their order. It raises `OutOfMemory` when the device has no room for the batch, which the scheduler then halves, and
    `EngineError` for any other failure. The catalogue lists the options that an engine cannot honour. `n_mels`: mel bands of its
    spectrograms.
    """

    name: str
    max_batch: int
    n_mels: int
    tokenizer: Tokenizer

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Windows with equal keys may be decoded in one call."""
        ...

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode a batch."""
        ...

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch: printed at start and kept with measurements."""
        ...

    def free_memory(self) -> None:
        """Give cached device memory back after an OutOfMemory, as `torch.cuda.empty_cache` does."""
        ...

    def close(self) -> None:
        """Free the weights and the device's memory."""
        ...


Result = Callable[[], Decoded]
"""Makes a window's `Decoded` of what the device computed: the text, the times of its words. May raise EngineError."""


class Feed(Protocol):
    """Where a `RefillingEngine` takes windows from and returns results to. The thread that decodes calls both methods."""

    def take(self, most: int, *, at_least: int = 1) -> Sequence[Window]:
        """Up to `most` queued windows, without waiting; all windows of one `decode_feed` share a `batch_key`.

        Empty when fewer than `at_least` are queued, or when a window with another `batch_key` comes first: the engine then
        finishes the windows it has.
        """
        ...

    def done(self, window: Window, result: Result) -> None:
        """Return a window as soon as it is decoded. `result` may be called later, on another thread."""
        ...


@runtime_checkable
class RefillingEngine(Engine, Protocol):
    """An engine with continuous batching: a new window takes the slot of a finished one while the others still decode.

    `decode` is `decode_feed` with a feed of the windows of one batch.
    """

    def decode_feed(self, feed: Feed) -> None:
        """Take windows whenever slots are free, at first at least one, until the feed is empty and all windows are done.

        Raises as `decode`. The engine drops its unfinished windows then. The caller decodes them again: fewer at once after
        `OutOfMemory`, one by one after another `EngineError`.
        """
        ...


@runtime_checkable
class ParallelEngine(Engine, Protocol):
    """An engine that decodes several batches at a time, on several threads, each batch on some of its lanes.

    `lanes`: how many it has, each a part of its cores. The widths of the batches that are decoded at the same time come to `lanes` at
    most. `decode` takes all of them. `any_width`: whether a batch gains by several lanes that are not all of them.
    """

    lanes: int
    any_width: bool

    def decode_on(self, width: int, windows: Sequence[Window]) -> list[Decoded]:
        """Decode a batch on `width` lanes. It is as `decode`, but for at most `max_batch // lanes` windows."""
        ...


def load_engines(settings: Settings) -> list[Engine]:
    """The engine of `load_engine`, and one more for each further GPU when the engine supports that. Raises ConfigurationError."""
    first = load_engine(settings)
    if not ENGINES[first.name].every_gpu or choose_device(settings) != "cuda":
        return [first]
    import torch  # here: not every engine needs it

    module = import_module(f".{first.name}", __package__)
    with _memory_errors_as_configuration(settings):
        return [first, *(cast(Engine, module.load(settings, "cuda", index)) for index in range(1, torch.cuda.device_count()))]


def load_engine(settings: Settings) -> Engine:
    """The engine that `settings` name; auto is torch on a GPU and ct2 on a CPU. Raises ConfigurationError with what to do.

    The engine that auto chooses for a GPU is tried first. Where it fails, engine openai serves, which runs wherever PyTorch does.
    """
    device = choose_device(settings)
    name = choose_engine(settings, device)
    with _memory_errors_as_configuration(settings):
        return _load(name, settings, device) if settings.engine != "auto" or device != "cuda" else _load_and_try(name, settings, device)


def _load_and_try(name: str, settings: Settings, device: str) -> Engine:
    """The engine when it works, else engine openai."""
    with ExitStack() as failed:
        try:
            engine = _load(name, settings, device)
            failed.callback(engine.close)
            _try(engine)
            failed.pop_all()
            return engine
        except ConfigurationError:
            raise
        except Exception:
            logger.exception("engine '%s' does not work on this GPU: engine 'openai' serves instead", name)
    return _load("openai", settings, device)


@contextmanager
def _memory_errors_as_configuration(settings: Settings) -> Iterator[None]:
    """Turn a runtime's error about memory, raised while it loads, into a ConfigurationError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        from .rules import first_line, lacks_memory  # here: the fake engine needs no torch

        if not lacks_memory(error):
            raise
        message = f"'{settings.model}' does not fit into the memory ({first_line(error)}): choose a smaller model, dtype or batch_size"
        raise ConfigurationError(message, param="model") from error


def precisions(name: str, device: str) -> tuple[str, ...]:
    """The dtypes that engine `name` computes in on `device`, the first for auto. Raises ConfigurationError when its package is missing."""
    return cast(tuple[str, ...], _module(name).precisions(device))


def _load(name: str, settings: Settings, device: str) -> Engine:
    module = _module(name)
    if device == "cpu":
        _set_torch_threads(name, settings)
    return cast(Engine, module.load(settings, device))


def _set_torch_threads(name: str, settings: Settings) -> None:
    """The threads of PyTorch, by the engine's entry in the catalogue. They are the process's: the engine loaded last sets them."""
    if (threads := ENGINES[name].torch_threads) != "unchanged" and has_torch():
        import torch  # here: not every engine needs it

        torch.set_num_threads(decoding_threads(settings) if threads == "all" else 1)


def _module(name: str) -> ModuleType:
    """The engine's module: `load(settings, device)` makes the engine, `precisions(device)` lists its dtypes."""
    try:
        return import_module(f".{name}", __package__)
    except ImportError as error:
        raise ConfigurationError(f"engine '{name}' cannot be imported ({error}); {installation(name)}", param="engine") from error


def _try(engine: Engine) -> None:
    """Decode a second of faint noise, alone and in a batch, with word times."""
    noise = np.random.default_rng(0).normal(scale=1e-3, size=SAMPLE_RATE).astype(np.float32)
    window = Window(noise, 0.0, Decoding(max_tokens=16, alignment="all"))
    for count in (1, min(4, engine.max_batch)):
        engine.decode([window] * count)
