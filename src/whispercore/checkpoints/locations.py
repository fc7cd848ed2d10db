"""Finds checkpoints by path or name, and names the folders of their conversions for an engine."""

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

from ..devices import choose_device
from ..errors import ConfigurationError
from ..settings import Settings, model_name
from . import graphs, huggingface, modelbin

FILES = {"large": "large-v3", "turbo": "large-v3-turbo"}
"""OpenAI's aliases of two checkpoints, and the names of their files."""
NANO_SHA256, _NANO_BYTES = "1a1c51c651b51878361c081e05985312e7311a1979486f3b18f30392fb8bb2f6", 26_045_733
"""Hash and size of the bundled demonstration model, whisper-models/nano.pt."""
AUTO, BUNDLED = "auto", "nano"
"""The setting that chooses the best model there is, and the bundled demonstration model."""
PREFERRED = {"cpu": ("base",), "cuda": ("large-v3-turbo", "base")}
"""The models that `auto` looks for on a device, in this order."""
_HASH = 12
"""Digits of a checkpoint's SHA-256 in the name of its converted folder."""
_ORIGIN = "origin.txt"
"""A file in a converted folder: the path of the original checkpoint."""


def choose_model(settings: Settings, *, look: bool = True) -> Settings:
    """The settings with a model's name in place of `auto`: the first of PREFERRED in `models_dir`, else the bundled
    model.

    Without `look`, and for the fake engine, always the bundled model. A path to a folder that holds one checkpoint, as
    platforms make it that unpack a model there, becomes that checkpoint's path. Raises ConfigurationError when there
    are several, and when the settings require a GPU and there is none.
    """
    if settings.model != AUTO:
        inside = _only_checkpoint(Path(settings.model)) if look else None
        return replace(settings, model=str(inside)) if inside else settings
    names = PREFERRED[choose_device(settings)] if look and settings.engine != "fake" else ()
    candidates = (replace(settings, model=name) for name in names)
    return next((candidate for candidate in candidates if _find(candidate)), replace(settings, model=BUNDLED))


def locate(settings: Settings) -> Path:
    """The checkpoint's path: `model` itself if that is a path, else the model of that name in `models_dir`.

    For `auto` see `choose_model`.

    A name is looked for as NAME.pt, then as the folder NAME (which may be OWNER/NAME, as on the Hugging Face Hub), then
    as the folder of the repository that faster-whisper downloads for NAME. Raises ConfigurationError with a list of the
    models there are.
    """
    settings = choose_model(settings)
    path = _find(settings)
    if path is None:
        raise ConfigurationError(_missing(settings, next(_candidates(settings))), param="model")
    return path


def _find(settings: Settings) -> Path | None:
    return next((path for path in _candidates(settings) if path.is_file() or is_folder(path)), None)


def _candidates(settings: Settings) -> Iterator[Path]:
    model = Path(settings.model).expanduser()
    if model.suffix == ".pt" or len(model.parts) > 1:
        yield model
    else:
        yield settings.models_path / f"{FILES.get(settings.model, settings.model)}.pt"
    if not model.is_absolute():
        yield settings.models_path / model
    if repository := faster_whisper_repository(settings.model):
        yield settings.models_path / repository


def _only_checkpoint(model: Path) -> Path | None:
    """The checkpoint in the folder at `model`; None when `model` is no path, a checkpoint itself, or has none in it."""
    folder = model.expanduser()
    if len(model.parts) < 2 or not folder.is_dir() or is_folder(folder):
        return None
    found = sorted([*folder.glob("*.pt"), *filter(is_folder, folder.glob("*/"))])
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigurationError(f"{model} holds several checkpoints: {names}; set WHISPER_MODEL to the path of one", param="model")
    return found[0] if found else None


def is_demonstration(settings: Settings) -> bool:
    """Whether the model is the bundled nano. A file is recognised by its content, a converted folder by its name."""
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
    """Whether `path` is a CTranslate2 folder. A folder that also has safetensors counts as Hugging Face's."""
    return modelbin.is_folder(path) and not list(path.glob("*.safetensors"))


def form_of(folder: Path) -> ModuleType:
    """The module that reads the folder's weights: `huggingface` if there are safetensors, else `modelbin` or `graphs`."""
    if is_ct2(folder):
        return modelbin
    return graphs if graphs.is_folder(folder) and not list(folder.glob("*.safetensors")) else huggingface


def faster_whisper_repository(name: str) -> str | None:
    """The Hugging Face repository, OWNER/NAME, that faster-whisper downloads for `name`; None for an unknown name."""
    try:
        from faster_whisper.utils import _MODELS  # here: it imports the Hub's client, which most checkpoints do not need
    except ImportError:
        return None
    repository: str | None = _MODELS.get(name)
    return repository


def ct2_folder(settings: Settings, checkpoint: Path, quantization: str) -> Path:
    """The folder that engine ct2 reads: the checkpoint itself if it is a complete CTranslate2 folder, else its
    conversion.

    A CTranslate2 folder is converted again when it names no alignment heads (old converters left them out) or those of
    the larger model that it was distilled from, because words would have no times. A folder without its vocabulary is
    converted again because CTranslate2 cannot load it.
    """
    if is_ct2(checkpoint) and modelbin.has_valid_heads(checkpoint) and any(checkpoint.glob("vocabulary.*")):
        return checkpoint
    return converted_folder(settings, checkpoint, quantization)


def converted_folder(settings: Settings, checkpoint: Path, quantization: str) -> Path:
    """The folder for a checkpoint's conversion. Its name holds a hash of the checkpoint's content."""
    return settings.converted_path / f"{model_name(checkpoint)}-{sha256(checkpoint)[:_HASH]}-{quantization}"


def exported_folder(settings: Settings, engine: str, dtype: str) -> Path:
    """The folder with the graphs for engine onnx or sherpa: the model's own if it holds such graphs, else that of its
    conversion.

    Raises ConfigurationError when the graphs are broken.
    """
    settings = choose_model(settings)
    for folder in (Path(settings.model).expanduser(), settings.models_path / settings.model):
        if graphs.is_for(folder, engine):
            return folder
    return converted_folder(settings, locate(settings), f"{dtype}-{engine}")


def replace_outdated(folder: Path, checkpoint: Path) -> None:
    """Record the origin of a newly converted folder, and remove conversions of the same path's earlier content."""
    origin, current = os.fsencode(checkpoint.resolve()), folder.name[: len(model_name(checkpoint)) + 1 + _HASH]
    (folder / _ORIGIN).write_bytes(origin)
    for note in folder.parent.glob(f"*/{_ORIGIN}"):
        with suppress(OSError):  # another process may be removing it
            if note.read_bytes() == origin and not note.parent.name.startswith(current):
                shutil.rmtree(note.parent, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of the file, or of a folder's configuration and weights, in hexadecimal."""
    digest = hashlib.sha256()
    for part in _hashed_files(path):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def size(path: Path) -> int:
    """The bytes of the file, or of a folder's configuration and weights."""
    return sum(part.stat().st_size for part in _hashed_files(path))


def _hashed_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    configuration = [path / "config.json", path / "generation_config.json"]
    return [*filter(Path.is_file, configuration), *form_of(path).weight_files(path)]


def _missing(settings: Settings, path: Path) -> str:
    if path.is_dir():
        content = ", ".join(sorted(item.name for item in path.iterdir())) or "nothing"
        return f"no checkpoint in {path}, which holds {content}: a checkpoint is a .pt file or a folder (docs/engines.md)"
    folder = settings.models_path
    subfolders = (*folder.glob("*/"), *folder.glob("*/*/"))
    folders = {str(path.relative_to(folder)) for path in subfolders if is_folder(path)}
    available = ", ".join(sorted({*folders, *(file.stem for file in folder.glob("*.pt"))})) or "none"
    is_published = settings.model in _openai_names() or faster_whisper_repository(settings.model)
    download = f"; get it: python3 clients/download_model.py {settings.model}" if is_published or is_repository(settings.model) else ""
    return f"no checkpoint at {path}; in {folder}: {available}{download}"


def _openai_names() -> list[str]:
    """OpenAI's names of its models; none where openai-whisper cannot be imported, for lack of PyTorch."""
    try:
        from whisper import available_models  # here: it imports PyTorch, and engine ct2 works without
    except ImportError:
        return []
    return list(available_models())


def is_repository(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME of the Hugging Face Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not name.endswith(".pt")
