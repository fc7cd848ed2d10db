"""The command that prepares a checkpoint for an engine, or writes one with random weights for benchmarks.

python -m whispercore.checkpoints prepare [--config config/model-config.yaml] [--model NAME|PATH]
python -m whispercore.checkpoints random --size base --out PATH [--dtype float16]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from ..errors import ConfigurationError
from ..settings import Settings
from .preparing import prepare
from .random_weights import SIZES, dimensions, write_random


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: exit status 0, or 1 after one line on standard error."""
    description = "Prepare a checkpoint for an engine, or write one with random weights."
    parser = argparse.ArgumentParser(prog="python -m whispercore.checkpoints", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_parser = commands.add_parser("prepare", help="check the checkpoint and convert it for the engine")
    prepare_parser.add_argument("--config", type=Path, help="model-config.yaml, whose section 'whisper' holds settings")
    prepare_parser.add_argument("--model", help="a model to use instead of the one in the settings")
    random_parser = commands.add_parser("random", help="write a checkpoint with random weights, for benchmarks")
    random_parser.add_argument("--size", required=True, help=", ".join(SIZES))
    random_parser.add_argument("--out", type=Path, required=True)
    random_parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parsed = parser.parse_args(arguments)
    try:
        print(_prepare(parsed.config, parsed.model) if parsed.command == "prepare" else _random(parsed.size, parsed.out, parsed.dtype))
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare(config: Path | None, model: str | None) -> str:
    settings = Settings.load(_section(config) if config else None)
    if model:
        return prepare(replace(settings, model=model))
    return "\n".join(prepare(replace(settings, model=each)) for each in (settings.model, *settings.other_models))


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


if __name__ == "__main__":
    sys.exit(main())
