"""The bundled model, loaded once into every engine, and recordings with references."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from whispercore.audio.recording import read_samples
from whispercore.catalogue import ENGINES as CATALOGUE
from whispercore.checkpoints import Checkpoint, load_checkpoint, prepare
from whispercore.devices import multiplies_bfloat16
from whispercore.engines import Engine, load_engine
from whispercore.settings import Settings
from whispercore.types import Samples

ROOT = Path(__file__).resolve().parents[2]
ENGINES = {
    "openai": {"engine": "openai", "dtype": "float32"},
    "torch-float32": {"engine": "torch", "dtype": "float32"},
    "torch-bfloat16": {"engine": "torch", "dtype": "bfloat16"},
    "ct2-float32": {"engine": "ct2", "dtype": "float32"},
    "ct2-int8": {"engine": "ct2", "dtype": "int8"},
    "onnx-float32": {"engine": "onnx", "dtype": "float32"},
    "onnx-int8": {"engine": "onnx", "dtype": "int8"},
    "fake": {"engine": "fake"},
}
for extra in [name for name in CATALOGUE if name not in {choice["engine"] for choice in ENGINES.values()}]:
    if find_spec(package := CATALOGUE[extra].module):
        ENGINES[f"{extra}-float32"] = {"engine": extra, "dtype": "float32"}
    else:
        warnings.warn(f"engine {extra} is left out: {package} is not installed: pip install -r requirements-{extra}.txt", stacklevel=1)
if not multiplies_bfloat16():
    # PyTorch then emulates bfloat16, which takes 10 times as long; test_precisions.py still runs it.
    del ENGINES["torch-bfloat16"]
    warnings.warn("torch-bfloat16 is left out: this processor has no bfloat16 instructions", stacklevel=1)
WEIGHTED = [name for name in ENGINES if name != "fake"]
"""The engines that run the bundled model: all but `fake`."""
LIKELY = "token_logprobs"
"""The option that only engines with log-probabilities support."""


def honours(name: str, *options: str) -> bool:
    """Whether the engine supports these options of `Options`."""
    return CATALOGUE[ENGINES[name]["engine"]].unsupported.isdisjoint(options)


def having(*options: str, among: Iterable[str] = ENGINES) -> pytest.MarkDecorator:
    """Parametrize a test with every engine of `among` that supports the options."""
    return pytest.mark.parametrize("name", [name for name in among if honours(name, *options)])


@dataclass(frozen=True)
class Recording:
    """A held-out recording: its samples and its reference text."""

    file: str
    kind: str
    text: str
    samples: Samples


@pytest.fixture(scope="session")
def nano() -> Checkpoint:
    """The bundled checkpoint."""
    return load_checkpoint(ROOT / "whisper-models" / "nano.pt")


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The bundled model on the CPU. Conversions go into a folder of the test run."""
    folder = tmp_path_factory.mktemp("converted")
    # One thread: the model is small, and on a busy machine two threads wait for each other
    section = {"model": "nano", "models_dir": str(ROOT / "whisper-models"), "converted_dir": str(folder), "device": "cpu", "threads": 1}
    return Settings.load(section, environ={})


@pytest.fixture(scope="session")
def engines(settings: Settings) -> Iterator[dict[str, Engine]]:
    """Every engine, by name."""
    threads = torch.get_num_threads()
    loaded = {name: _loaded(settings, choice) for name, choice in ENGINES.items()}
    yield loaded
    for engine in loaded.values():
        engine.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def converted(settings: Settings, engines: dict[str, Engine]) -> Path:
    """The bundled model converted to 8 bits, which loading the engines has written."""
    (folder,) = settings.converted_path.glob("nano-*-int8")
    return folder


@pytest.fixture(scope="session")
def heldout() -> list[Recording]:
    """The recordings of tests/data/heldout, which are not in the model's training data."""
    folder = ROOT / "tests" / "data" / "heldout"
    entries = json.loads((folder / "manifest.json").read_text())
    return [Recording(entry["file"], entry["kind"], entry["text"], read_samples(folder / entry["file"])) for entry in entries]


@pytest.fixture(scope="session")
def speech(heldout: list[Recording]) -> list[Samples]:
    """A few synthetic sentences."""
    return [recording.samples for recording in heldout if recording.kind == "synthetic"][:5]


def _loaded(settings: Settings, choice: dict[str, str]) -> Engine:
    chosen = replace(settings, **choice)
    prepare(chosen)
    return load_engine(chosen)
