"""Engines: windows in, `Decoded` out. One file per engine; this one holds the seam and the loader."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast, runtime_checkable

import numpy as np

from ..catalogue import ENGINES, installation
from ..devices import choose_device, choose_engine
from ..errors import ConfigurationError
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import SAMPLE_RATE, Decoded, Decoding, Window

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """The seam.

    `decode` is called from one thread at a time, with 1 to `max_batch` windows that share one `batch_key`, and answers one
    `Decoded` per window, in their order. It raises `OutOfMemory` when the device has no room for the batch (the scheduler
    halves it and tries again) and `EngineError` for any other failure. What an engine cannot honour of `Options` is in the catalogue.
    `n_mels`: mel bands of its spectrograms.
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
        """What it runs on: engine, model, device, precision, threads, batch; printed at start, kept with measurements."""
        ...

    def free_memory(self) -> None:
        """Give cached device memory back, after an out of memory: `torch.cuda.empty_cache` and its like."""
        ...

    def close(self) -> None:
        """Free the weights and the device's memory."""
        ...


class Feed(Protocol):
    """Where a `RefillingEngine` gets windows from and puts what became of them. Both are called from the thread that decodes."""

    def take(self, most: int) -> Sequence[Window]:
        """Up to `most` windows that wait now, without waiting for any; all of one `decode_feed` share a `batch_key`.

        None when none waits, or when a window of another `batch_key` has the better right: the engine then finishes what it has.
        """
        ...

    def done(self, window: Window, result: Decoded) -> None:
        """What became of a window, as soon as it is known."""
        ...


@runtime_checkable
class RefillingEngine(Engine, Protocol):
    """An engine that puts new windows into the places of finished ones while others still decode: a long window holds up nobody.

    `decode` is `decode_feed` with a feed of the windows of one batch.
    """

    def decode_feed(self, feed: Feed) -> None:
        """Take windows whenever there is room, at least one at first, until the feed has none and all that were taken are done.

        Raises as `decode`. What was taken and is not done then has to be decoded again, fewer at once after `OutOfMemory`, one by one
        after another `EngineError`; the engine has forgotten it.
        """
        ...


def load_engines(settings: Settings) -> list[Engine]:
    """The engine that `settings` asks for, once for each GPU when it can be told which. Raises ConfigurationError with what to do."""
    first = load_engine(settings)
    if not ENGINES[first.name].every_gpu or choose_device(settings) != "cuda":
        return [first]
    import torch  # here: not every engine needs it

    module = import_module(f".{first.name}", __package__)
    with _short_memory_told(settings):
        return [first, *(cast(Engine, module.load(settings, "cuda", index)) for index in range(1, torch.cuda.device_count()))]


def load_engine(settings: Settings) -> Engine:
    """The engine that `settings` asks for: auto is torch on a GPU and ct2 on a CPU. Raises ConfigurationError with what to do.

    What auto has chosen for a GPU is tried first; where it fails, openai-whisper's own code serves, which runs wherever PyTorch does.
    """
    device = choose_device(settings)
    name = choose_engine(settings, device)
    with _short_memory_told(settings):
        return _load(name, settings, device) if settings.engine != "auto" or device != "cuda" else _load_and_try(name, settings, device)


def _load_and_try(name: str, settings: Settings, device: str) -> Engine:
    """The engine when it works, else openai-whisper's own code."""
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
def _short_memory_told(settings: Settings) -> Iterator[None]:
    """What a runtime says of short memory while it loads, as a ConfigurationError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        from .rules import lacks_memory, reason  # here: the fake engine needs no torch

        if not lacks_memory(error):
            raise
        message = f"'{settings.model}' does not fit into the memory ({reason(error)}): choose a smaller model, dtype or batch_size"
        raise ConfigurationError(message, param="model") from error


def precisions(name: str, device: str) -> tuple[str, ...]:
    """The dtypes that engine `name` computes in on `device`, the first for auto. Raises ConfigurationError when its package is missing."""
    return cast(tuple[str, ...], _module(name).precisions(device))


def _load(name: str, settings: Settings, device: str) -> Engine:
    return cast(Engine, _module(name).load(settings, device))


def _module(name: str) -> ModuleType:
    """The engine's module: `load(settings, device)` makes the engine, `precisions(device)` tells what it computes in."""
    try:
        return import_module(f".{name}", __package__)
    except ImportError as error:
        raise ConfigurationError(f"engine '{name}' cannot be imported ({error}); {installation(name)}", param="engine") from error


def _try(engine: Engine) -> None:
    """Decode a second of faint noise, alone and in company, with the times of its words."""
    noise = np.random.default_rng(0).normal(scale=1e-3, size=SAMPLE_RATE).astype(np.float32)
    window = Window(noise, 0.0, Decoding(max_tokens=16, alignment="all"))
    for count in (1, min(4, engine.max_batch)):
        engine.decode([window] * count)
