"""Where a checkpoint lies, by path or by name, and where what is made of it for an engine is kept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import whisper

from ..devices import choose_device
from ..errors import ConfigurationError
from ..settings import Settings, model_name
from . import graphs, huggingface, modelbin

FILES = {"large": "large-v3", "turbo": "large-v3-turbo"}
"""OpenAI's second names of two checkpoints, and the names of their files."""
NANO_SHA256, _NANO_BYTES = "1a1c51c651b51878361c081e05985312e7311a1979486f3b18f30392fb8bb2f6", 26_045_733
"""Of the bundled demonstration model, whisper-models/nano.pt."""
AUTO, BUNDLED = "auto", "nano"
"""The model that is chosen from what is there, and the demonstration model that always is."""
PREFERRED = {"cpu": ("base",), "cuda": ("large-v3-turbo", "base")}
"""What `auto` takes on a device, first found first."""
_HASH = 12
"""Digits of a checkpoint's SHA-256 in the name of what is made of it."""
_ORIGIN = "origin.txt"
"""In a folder that was made here: the path of the checkpoint that it was made from."""


def choose_model(settings: Settings, *, look: bool = True) -> Settings:
    """The settings with the name of a model in place of `auto`: the first of PREFERRED in `models_dir`, else the bundled one.

    Without `look`, and for the fake engine, the bundled one whatever is there. Raises ConfigurationError when a GPU is asked for and
    there is none.
    """
    if settings.model != AUTO:
        return settings
    names = PREFERRED[choose_device(settings)] if look and settings.engine != "fake" else ()
    chosen = (replace(settings, model=name) for name in names)
    return next((one for one in chosen if _find(one)), replace(settings, model=BUNDLED))


def locate(settings: Settings) -> Path:
    """The checkpoint's path: `model` itself when that is a path, else what is in `models_dir`; for `auto` see `choose_model`.

    There, first found: NAME.pt, the folder NAME (NAME may be OWNER/NAME, as on the Hugging Face Hub), the folder that faster-whisper
    means by NAME. Raises ConfigurationError with what there is.
    """
    settings = choose_model(settings)
    found = _find(settings)
    if found is None:
        raise ConfigurationError(_missing(settings, next(_candidates(settings))), param="model")
    return found


def _find(settings: Settings) -> Path | None:
    return next((path for path in _candidates(settings) if path.is_file() or is_folder(path)), None)


def _candidates(settings: Settings) -> Iterator[Path]:
    given = Path(settings.model).expanduser()
    if given.suffix == ".pt" or len(given.parts) > 1:
        yield given
    else:
        yield settings.models_path / f"{FILES.get(settings.model, settings.model)}.pt"
    if not given.is_absolute():
        yield settings.models_path / given
    if repository := faster_whisper_repository(settings.model):
        yield settings.models_path / repository


def is_demonstration(settings: Settings) -> bool:
    """Whether the model is the bundled nano: a file by its content, a folder that was converted from it by its name."""
    try:
        path = locate(settings)
    except ConfigurationError:
        return settings.model_id == "nano"
    if path.is_dir():
        return path.name == "nano" or path.name.startswith(f"nano-{NANO_SHA256[:_HASH]}")
    return path.stat().st_size == _NANO_BYTES and sha256(path) == NANO_SHA256


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder of weights: Hugging Face's, CTranslate2's, or one of ONNX graphs."""
    return huggingface.is_folder(path) or modelbin.is_folder(path) or graphs.is_folder(path)


def is_ct2(path: Path) -> bool:
    """Whether CTranslate2 reads the folder `path`; one with safetensors beside model.bin is taken for Hugging Face's."""
    return modelbin.is_folder(path) and not list(path.glob("*.safetensors"))


def form_of(folder: Path) -> ModuleType:
    """What reads the folder's weights: `huggingface` where there are safetensors, else `modelbin` or `graphs`."""
    if is_ct2(folder):
        return modelbin
    return graphs if graphs.is_folder(folder) and not list(folder.glob("*.safetensors")) else huggingface


def faster_whisper_repository(name: str) -> str | None:
    """The repository of the Hugging Face Hub, OWNER/NAME, that faster-whisper fetches for `name`."""
    try:
        from faster_whisper.utils import _MODELS  # here: it imports the Hub's client, and most checkpoints are found without
    except ImportError:
        return None
    repository: str | None = _MODELS.get(name)
    return repository


def ct2_folder(settings: Settings, checkpoint: Path, quantization: str) -> Path:
    """What engine ct2 reads: a folder of CTranslate2's as it is, else the one converted from the checkpoint.

    A folder that names no alignment heads, as old converters left them out, or those of the larger model that it was distilled from is
    converted too: words would have no times. So is one that has lost its vocabulary, which CTranslate2 does not load.
    """
    if is_ct2(checkpoint) and modelbin.tells_heads(checkpoint) and any(checkpoint.glob("vocabulary.*")):
        return checkpoint
    return converted_folder(settings, checkpoint, quantization)


def converted_folder(settings: Settings, checkpoint: Path, quantization: str) -> Path:
    """Where the checkpoint converted for an engine is kept: its name changes with the checkpoint's content."""
    return settings.converted_path / f"{model_name(checkpoint)}-{sha256(checkpoint)[:_HASH]}-{quantization}"


def exported_folder(settings: Settings, engine: str, dtype: str) -> Path:
    """Where the graphs for engine onnx or sherpa are: `model` itself, or the folder of its name in `models_dir`, when it holds such.

    Raises ConfigurationError when they are broken.
    """
    settings = choose_model(settings)
    for given in (Path(settings.model).expanduser(), settings.models_path / settings.model):
        if graphs.is_for(given, engine):
            return given
    return converted_folder(settings, locate(settings), f"{dtype}-{engine}")


def replace_outdated(folder: Path, checkpoint: Path) -> None:
    """Note in a newly converted folder what it was made from; remove those made from the same file when its content was another."""
    origin, current = os.fsencode(checkpoint.resolve()), folder.name[: len(model_name(checkpoint)) + 1 + _HASH]
    (folder / _ORIGIN).write_bytes(origin)
    for note in folder.parent.glob(f"*/{_ORIGIN}"):
        with suppress(OSError):  # which another process is removing
            if note.read_bytes() == origin and not note.parent.name.startswith(current):
                shutil.rmtree(note.parent, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of the file, or of a folder's configuration and weights, in hexadecimal."""
    digest = hashlib.sha256()
    for each in _files(path):
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    told = [path / "config.json", path / "generation_config.json"]
    return [*filter(Path.is_file, told), *form_of(path).weight_files(path)]


def _missing(settings: Settings, path: Path) -> str:
    folder = settings.models_path
    folders = {str(each.relative_to(folder)) for each in (*folder.glob("*/"), *folder.glob("*/*/")) if is_folder(each)}
    there = ", ".join(sorted({*folders, *(file.stem for file in folder.glob("*.pt"))})) or "none"
    known = settings.model in whisper.available_models() or faster_whisper_repository(settings.model)
    download = f"; get it: python3 clients/download_model.py {settings.model}" if known or is_repository(settings.model) else ""
    return f"no checkpoint at {path}; in {folder}: {there}{download}"


def is_repository(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME of the Hugging Face Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not name.endswith(".pt")
