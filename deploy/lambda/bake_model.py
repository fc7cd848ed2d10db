#!/usr/bin/env python3
"""Writes a checkpoint in CTranslate2's form and 8 bits: a quarter of the bytes, and nothing is converted when a function starts.

python3 deploy/lambda/bake_model.py CHECKPOINT FOLDER [int8|float32]
"""

from __future__ import annotations

import sys
from pathlib import Path

from whispercore.checkpoints import load_checkpoint
from whispercore.checkpoints.conversion import convert
from whispercore.errors import ConfigurationError


def bake(path: Path, folder: Path, precision: str = "int8") -> None:
    """Convert the checkpoint at `path`, in any form, into `folder`. Raises ConfigurationError."""
    checkpoint = load_checkpoint(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    convert(checkpoint.dims, checkpoint.state, folder, precision, alignment_heads=checkpoint.alignment_heads)


def main(arguments: list[str]) -> int:
    """The command: exit status 0, or 1 after one line on standard error."""
    if len(arguments) not in (2, 3):
        print("usage: bake_model.py CHECKPOINT FOLDER [int8|float32]", file=sys.stderr)
        return 2
    try:
        bake(Path(arguments[0]), Path(arguments[1]), *arguments[2:])
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
