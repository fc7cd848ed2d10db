"""Checkpoints, OpenAI's .pt files or Hugging Face's folders: found, checked, loaded; made ready for the engine, or made up for benchmarks.

python -m whispercore.checkpoints prepare [--config config/model-config.yaml] [--model NAME|PATH]
python -m whispercore.checkpoints random --size base --out PATH [--dtype float16]
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import pickle
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
import yaml
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, Whisper, sinusoids

from . import huggingface
from .devices import choose_device, choose_engine
from .errors import ConfigurationError
from .settings import Settings

FILES = {"large": "large-v3", "turbo": "large-v3-turbo"}
"""OpenAI's second names of two checkpoints, and the names of their files."""

SIZES = {
    "tiny": (384, 6, 4, 4),
    "base": (512, 8, 6, 6),
    "small": (768, 12, 12, 12),
    "medium": (1024, 16, 24, 24),
    "large-v2": (1280, 20, 32, 32),
    "large-v3": (1280, 20, 32, 32),
    "large-v3-turbo": (1280, 20, 32, 4),
}
"""Width, heads, layers of the encoder and of the decoder of OpenAI's multilingual models."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: where it came from, the model's dimensions, and its tensors by OpenAI's names.

    `heads`: its own alignment heads, when it names some: a .pt under `alignment_heads`, as (layer, head) pairs.
    """

    path: Path
    dims: ModelDimensions
    state: dict[str, torch.Tensor]
    heads: tuple[tuple[int, int], ...] | None = None

    @property
    def name(self) -> str:
        """The file's name without .pt, or the folder's: nano, large-v3-turbo, …"""
        return self.path.name.removesuffix(".pt")

    @property
    def alignment_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the decoder's heads that follow the audio: its own, OpenAI's list for its models, else the upper half's."""
        shape = (self.dims.n_text_layer, self.dims.n_text_head)
        if self.heads and all(layer < shape[0] and head < shape[1] for layer, head in self.heads):
            return list(self.heads)
        dump = whisper._ALIGNMENT_HEADS.get(self.name.removeprefix("whisper-"))
        heads = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool) if dump else np.empty(0)
        if heads.size != shape[0] * shape[1]:
            heads = np.repeat(np.arange(shape[0]) >= shape[0] // 2, shape[1])
        return [(int(layer), int(head)) for layer, head in np.argwhere(heads.reshape(shape))]


def locate(settings: Settings) -> Path:
    """The checkpoint's path: `model` itself when it is a file or looks like a path, else NAME.pt or the folder NAME in `models_dir`."""
    given = Path(settings.model).expanduser()
    if given.suffix == ".pt" or len(given.parts) > 1:
        path = given
    else:
        path = settings.models_path / f"{FILES.get(settings.model, settings.model)}.pt"
        if not path.is_file() and huggingface.is_folder(path.with_suffix("")):
            path = path.with_suffix("")
    if not path.is_file() and not huggingface.is_folder(path):
        raise ConfigurationError(_missing(settings, path), param="model")
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its tensors mapped from the file. Raises ConfigurationError when it is not one, or is cut short."""
    content = _read_folder(path) if path.is_dir() else _read(path)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise ConfigurationError(f"{path} is not a Whisper checkpoint: it needs 'dims' and 'model_state_dict'", param="model")
    try:
        dims = ModelDimensions(**content["dims"])
        expected = {name: tensor.shape for name, tensor in empty_model(dims).state_dict().items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{path} has other dimensions than a Whisper model's: {error}", param="model") from None
    state = content["model_state_dict"]
    wrong = sorted(name for name in expected.keys() | state.keys() if name not in state or expected.get(name) != state[name].shape)
    if wrong:
        raise ConfigurationError(
            f"{path} does not fit its own dimensions: {wrong[0]} and {len(wrong) - 1} other tensors differ", param="model"
        )
    heads = huggingface.read_alignment_heads(path) if path.is_dir() else content.get("alignment_heads")
    return Checkpoint(path, dims, state, tuple((int(layer), int(head)) for layer, head in heads) if heads else None)


def empty_model(dims: ModelDimensions) -> Whisper:
    """A model of these dimensions whose weights hold no memory: for shapes, and to load weights into without initialising it.

    Whisper's own constructor cannot run on the meta device (it makes a sparse tensor), so only its two halves are made there.
    """
    model = Whisper(replace(dims, n_vocab=1, n_audio_layer=0, n_text_layer=0))
    model.dims = dims
    with torch.device("meta"):
        model.encoder = AudioEncoder(dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
        model.decoder = TextDecoder(dims.n_vocab, dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer)
    return model


def dimensions(size: str) -> ModelDimensions:
    """The dimensions of OpenAI's model `size`. Raises ConfigurationError for an unknown one."""
    size = FILES.get(size, size)
    if size not in SIZES:
        raise ConfigurationError(f"unknown size '{size}'; known: {', '.join(SIZES)}", param="size")
    width, heads, encoder, decoder = SIZES[size]
    newest = size.startswith("large-v3")
    return ModelDimensions(
        n_mels=128 if newest else 80,
        n_audio_ctx=1500,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=encoder,
        n_vocab=51_866 if newest else 51_865,
        n_text_ctx=448,
        n_text_state=width,
        n_text_head=heads,
        n_text_layer=decoder,
    )


def write_random(dims: ModelDimensions, out: Path, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> None:
    """Write a checkpoint of random weights: a trained model's shapes and costs, no words. Equal seeds give equal files' weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in empty_model(dims).state_dict().items()}
    state = {name: _random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"dims": asdict(dims), "model_state_dict": state}, out)


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normalisations as they start, biases zero, weights so small that the logits stay finite in float16."""
    if name == "encoder.positional_embedding":
        positions: torch.Tensor = sinusoids(*shape)
        return positions
    if len(shape) == 1:
        return torch.ones(shape) if "ln" in name and name.endswith("weight") else torch.zeros(shape)
    fan_in = shape[1:].numel()
    return torch.randn(shape, generator=generator).div(fan_in**0.5)


def prepare(settings: Settings) -> str:
    """Check the checkpoint, convert it when the engine needs that and it is not done yet; one line that says what was done."""
    device = choose_device(settings)
    engine = choose_engine(settings, device)
    if engine == "fake":
        return "engine 'fake' needs no checkpoint"
    if engine in ("onnx", "sherpa"):
        return _export(settings, engine, device)
    path = locate(settings)
    if engine != "ct2":
        load_checkpoint(path)
        return f"{path} is ready for engine '{engine}'"
    from .conversion import convert, precision  # here: the other engines work without ctranslate2

    quantization = precision(settings, device)
    folder = converted_folder(settings, path, quantization)
    if (folder / "model.bin").is_file():
        return f"{folder} is ready for engine 'ct2'"
    checkpoint = load_checkpoint(path)
    convert(checkpoint.dims, checkpoint.state, folder, quantization, alignment_heads=checkpoint.alignment_heads)
    return f"converted {path} for engine 'ct2': {folder}"


def _export(settings: Settings, engine: str, device: str) -> str:
    """`prepare` for engines onnx and sherpa, which runs on the CPU only."""
    try:
        from . import onnx_export, sherpa_export  # here: the other engines work without the package onnx
    except ImportError as error:
        message = f"engine '{engine}' cannot export ({error}); run: pip install -r requirements-onnx.txt"
        raise ConfigurationError(message, param="engine") from error
    dtype = onnx_export.precision(settings, device if engine == "onnx" else "cpu")
    folder = exported_folder(settings, engine, dtype)
    if (folder / "decoder.onnx").is_file():
        return f"{folder} is ready for engine '{engine}'"
    path = locate(settings)
    checkpoint = load_checkpoint(path)
    if engine == "sherpa":
        difference = sherpa_export.export(checkpoint.dims, checkpoint.state, folder, dtype)
    else:
        difference = onnx_export.export(checkpoint.dims, checkpoint.state, folder, dtype, alignment_heads=checkpoint.alignment_heads)
    return f"exported {path} for engine '{engine}': {folder}; its logits are {difference:.1g} standard deviations off PyTorch's at most"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: exit status 0, or 1 after one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m whispercore.checkpoints", description="Make checkpoints ready, or make them up.")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="check the checkpoint and convert it for the engine")
    preparing.add_argument("--config", type=Path, help="model-config.yaml, whose section 'whisper' holds settings")
    preparing.add_argument("--model", help="instead of the settings' model")
    making = commands.add_parser("random", help="write a checkpoint with random weights, for benchmarks")
    making.add_argument("--size", required=True, help=", ".join(SIZES))
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    given = parser.parse_args(arguments)
    try:
        print(_prepare(given.config, given.model) if given.command == "prepare" else _random(given.size, given.out, given.dtype))
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare(config: Path | None, model: str | None) -> str:
    settings = Settings.load(_section(config) if config else None)
    return prepare(replace(settings, model=model) if model else settings)


def _random(size: str, out: Path, dtype: str) -> str:
    write_random(dimensions(size), out, dtype=torch.float16 if dtype == "float16" else torch.float32)
    return f"wrote {out}: {size}, random weights, {dtype}"


def _section(config: Path) -> dict[str, Any]:
    """The `whisper:` section of model-config.yaml."""
    try:
        content = yaml.safe_load(config.read_text())
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{config} is not YAML: {' '.join(str(error).split())}", param="config") from None
    section = content.get("whisper") if isinstance(content, dict) else None
    if section is not None and not isinstance(section, dict):
        raise ConfigurationError(f"{config}: section 'whisper' must map settings to values", param="config")
    return section or {}


def converted_folder(settings: Settings, checkpoint: Path, quantization: str) -> Path:
    """Where the checkpoint converted for an engine is kept: its name changes with the checkpoint's content."""
    return settings.converted_path / f"{checkpoint.name.removesuffix('.pt')}-{sha256(checkpoint)[:12]}-{quantization}"


def exported_folder(settings: Settings, engine: str, dtype: str) -> Path:
    """Where the graphs for engine onnx or sherpa are: `model` itself, or the folder of its name in `models_dir`, when it holds some."""
    for given in (Path(settings.model).expanduser(), settings.models_path / settings.model):
        if (given / "decoder.onnx").is_file():
            return given
    return converted_folder(settings, locate(settings), f"{dtype}-{engine}")


def sha256(path: Path) -> str:
    """The SHA-256 of the file, or of a folder's configuration and weights, in hexadecimal."""
    digest = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = [*filter(Path.is_file, (path / "config.json", path / "generation_config.json")), *huggingface.weight_files(path)]
    for each in files:
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_folder(folder: Path) -> dict[str, object]:
    """A folder of Hugging Face's as the content of a .pt file."""
    return {"dims": huggingface.read_dimensions(folder), "model_state_dict": huggingface.read_state(folder)}


def _read(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{path} cannot be read as a checkpoint, it may be cut short ({reason[:120]}); get it again: clients/download_model.py"
        raise ConfigurationError(message, param="model") from None


def _missing(settings: Settings, path: Path) -> str:
    folders = [config.parent.name for config in settings.models_path.glob("*/config.json")]
    there = ", ".join(sorted({*folders, *(file.stem for file in settings.models_path.glob("*.pt"))})) or "none"
    known = settings.model in whisper.available_models()
    download = f"; get it: clients/download_model.py {settings.model}" if known else ""
    return f"no checkpoint at {path}; in {settings.models_path}: {there}{download}"


if __name__ == "__main__":
    sys.exit(main())
