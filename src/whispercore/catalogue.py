"""The facts of each engine that do not need its package: read by settings, loader, checkpoints, reference, set-up and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Form = Literal["checkpoint", "ct2", "onnx", "sherpa"]
"""The form of the weights that an engine reads. `checkpoint`: any form, converted in memory as it loads."""

TorchThreads = Literal["all", "one", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """An engine's facts.

    `package`: the package it runs on, as pip names it; empty: none. `module`: the same as Python imports it.
    `extra`: the engine needs more than requirements.txt, namely requirements-NAME.txt, which is also the pip extra NAME.
    `reads`: the form of its weights. `unsupported`: options, by their names in `Options`, that it cannot honour; another value than
    the default is refused with a 400. `every_gpu`: it can be loaded on a GPU of a given index, so that all GPUs of a machine are used.
    `torch_threads`: PyTorch's threads on a CPU. `all`: the setting `threads`. `one`: the engine's runtime has threads of its own, and
    PyTorch's, which make spectrograms, would spin against them. `unchanged`: it does not use PyTorch.
    """

    package: str
    module: str
    extra: bool = False
    reads: Form = "checkpoint"
    unsupported: frozenset[str] = frozenset()
    every_gpu: bool = False
    torch_threads: TorchThreads = "all"

    @property
    def aligns(self) -> bool:
        """Whether it can time words."""
        return "word_timestamps" not in self.unsupported


_REPETITION = frozenset({"repetition_penalty", "no_repeat_ngram_size"})
_SEARCH = frozenset({"beam_size", "best_of", "patience", "length_penalty", "suppress_tokens"})

ENGINES: Mapping[str, EngineEntry] = MappingProxyType(
    {
        "openai": EngineEntry(package="openai-whisper", module="whisper", unsupported=_REPETITION),
        "torch": EngineEntry(package="torch", module="torch", every_gpu=True),
        "ct2": EngineEntry(package="ctranslate2", module="ctranslate2", reads="ct2", torch_threads="one"),
        "hf": EngineEntry(package="transformers", module="transformers", extra=True, unsupported=frozenset({"patience"})),
        "jax": EngineEntry(package="jax", module="jax", extra=True, unsupported=_REPETITION),
        "onnx": EngineEntry(package="onnxruntime", module="onnx", extra=True, reads="onnx", unsupported=_REPETITION, torch_threads="one"),
        "sherpa": EngineEntry(
            package="sherpa-onnx",
            module="sherpa_onnx",
            extra=True,
            reads="sherpa",
            torch_threads="unchanged",
            unsupported=_REPETITION
            | _SEARCH
            | {"languages", "initial_prompt", "carry_initial_prompt", "hotwords", "temperature", "suppress_blank", "max_initial_timestamp"}
            | {"max_new_tokens", "word_timestamps", "token_logprobs"},
        ),
        "fake": EngineEntry(package="", module="", unsupported=_REPETITION | _SEARCH, torch_threads="unchanged"),
    }
)
"""The engines by name, in the order in which pages list them. `fake` answers from the samples alone; tests of the server use it."""

GRAPH_PRECISIONS: Mapping[str, tuple[str, ...]] = MappingProxyType({"cpu": ("float32", "int8", "uint8"), "cuda": ("float16", "float32")})
"""The precisions of exported ONNX graphs on each device, for engines onnx and sherpa. The first stands for auto."""

EXTRAS = tuple(name for name, entry in ENGINES.items() if entry.extra)
"""The engines that have a pip extra and a requirements file of their own."""


def installation(name: str) -> str:
    """What to do when a package that engine `name` needs is missing."""
    if ENGINES[name].extra:
        return f"install its extra: pip install -r requirements-{name}.txt, or pip install '.[{name}]'; an image: --build-arg ENGINE={name}"
    return f"run: pip install {ENGINES[name].package}"
