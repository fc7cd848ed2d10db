#!/usr/bin/env python3
"""Convert a Whisper checkpoint into another form, offline: OpenAI's .pt, a folder of Hugging Face's or CTranslate2's,
ONNX graphs for ONNX Runtime or for sherpa-onnx. Each of them is a source, too.

python clients/convert_model.py nano --to hf
python clients/convert_model.py whisper-models/my-tuned --to ct2 --dtype float16 --out whisper-models/my-tuned-ct2

Unlike the other clients it needs the server's packages: pip install -r requirements.txt; for onnx and sherpa
requirements-onnx.txt too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import environment

environment.enter()

sys.path.insert(0, str(environment.ROOT / "src"))  # the core need not be installed

import torch  # noqa: E402

from whispercore.checkpoints import Checkpoint, huggingface, load_checkpoint, locate, write_checkpoint  # noqa: E402
from whispercore.checkpoints.staging import staged  # noqa: E402
from whispercore.errors import ConfigurationError  # noqa: E402
from whispercore.settings import Settings  # noqa: E402

_FLOATS = ("float32", "float16", "bfloat16")
DTYPES = {
    "pt": _FLOATS,
    "hf": _FLOATS,
    "ct2": (*_FLOATS, "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16"),
    "onnx": ("float32", "float16", "int8", "uint8"),
    "sherpa": ("float32", "int8", "uint8"),
}
"""The forms, and what each can hold."""
_LIMITS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 4e-3, "int8": 5e-3, "int16": 1e-3}
"""How far a weight may be off, for the largest of its tensor: half a step of the type, and something for rounding
twice."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """One file or folder to make of a checkpoint.

    The methods return what they found when they compared it with the checkpoint.
    """

    checkpoint: Checkpoint
    form: str
    dtype: str
    out: Path

    def run(self) -> str:
        """Write it, complete or not at all. Raises ConfigurationError."""
        if self.out.exists():
            raise ConfigurationError(f"{self.out} exists already: move it away, or choose another --out", param="out")
        return self._export() if self.form in ("onnx", "sherpa") else self._weights()

    def _weights(self) -> str:
        with staged(self.out) as made:
            self._write(made)
            off = difference(self.checkpoint, load_checkpoint(made))
            if not off <= _LIMITS[self.dtype.partition("_")[0]]:
                message = f"weights in {self.dtype} are {off:.2g} of their tensor's largest off: choose another --dtype"
                raise ConfigurationError(message, param="dtype")
        return f"weights differ by {off:.2g} of their tensor's largest at most"

    def _write(self, made: Path) -> None:
        dims, state, heads = self.checkpoint.dims, self.checkpoint.state, self.checkpoint.alignment_heads
        if self.form == "ct2":
            try:
                from whispercore.checkpoints.conversion import convert  # here: other forms need no ctranslate2
            except ImportError as error:
                raise ConfigurationError(f"form 'ct2' needs ctranslate2 ({error}); run: pip install -r requirements.txt") from error
            return convert(dims, state, made, self.dtype, alignment_heads=heads)
        cast = {name: tensor.to(getattr(torch, self.dtype)).contiguous() for name, tensor in state.items()}
        if self.form == "hf":
            return huggingface.write(dims, cast, made, alignment_heads=heads)
        return write_checkpoint(dims, cast, made, heads=heads)

    def _export(self) -> str:
        try:
            from whispercore.checkpoints import onnx_export, sherpa_export  # here: other forms need no onnx
        except ImportError as error:
            raise ConfigurationError(f"form '{self.form}' needs more ({error}); run: pip install -r requirements-onnx.txt") from error
        dims, state, heads = self.checkpoint.dims, self.checkpoint.state, self.checkpoint.alignment_heads
        export = (sherpa_export if self.form == "sherpa" else onnx_export).export
        off = export(dims, state, self.out, self.dtype, alignment_heads=heads)
        return f"logits are {off:.2g} standard deviations off PyTorch's at most"


def difference(one: Checkpoint, other: Checkpoint) -> float:
    """The largest difference between two checkpoints' weights, for the largest weight of the tensor it is in."""
    if one.dims != other.dims or one.alignment_heads != other.alignment_heads:
        raise ConfigurationError(f"what was made of {one.path} has other dimensions or alignment heads")
    found = [_off(other.state[name].float(), tensor.float()) for name, tensor in one.state.items()]
    return float(torch.stack(found).max())  # not a number when one of them is not


def _off(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo().tiny)


def conversion(model: str, form: str, dtype: str | None = None, out: Path | None = None, folder: Path = environment.MODELS) -> Conversion:
    """What is to be done for the command's arguments; `folder`: of checkpoints, by name and for the result.

    Raises ConfigurationError.
    """
    if dtype is not None and dtype not in DTYPES[form]:
        raise ConfigurationError(f"form '{form}' holds {', '.join(DTYPES[form])}; not {dtype}", param="dtype")
    checkpoint = load_checkpoint(locate(Settings(model=model, models_dir=str(folder))))
    name = "-".join(part for part in (checkpoint.name, "" if form == "pt" else form, dtype) if part)
    chosen = dtype or ("float32" if form in ("onnx", "sherpa") else _own(checkpoint))
    return Conversion(checkpoint, form, chosen, out or folder / (f"{name}.pt" if form == "pt" else name))


def _own(checkpoint: Checkpoint) -> str:
    """The precision that all its weights are in; float32 when they differ."""
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}
    return found.pop() if len(found) == 1 and found <= set(_FLOATS) else "float32"


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, in one line on standard output; 1 not, in one line on standard error; 130 Ctrl-C."""
    parser = argparse.ArgumentParser(description="Convert a Whisper checkpoint into another form.")
    parser.add_argument("source", metavar="SOURCE", help="a .pt, a folder of any of the forms, or a name in --models-dir")
    parser.add_argument("--to", required=True, choices=DTYPES, dest="form", help="the form to make")
    known = "; ".join(f"{form}: {', '.join(dtypes)}" for form, dtypes in DTYPES.items())
    parser.add_argument("--dtype", help=f"{known}; default: as it is, float32 for graphs")
    parser.add_argument("--out", type=Path, help="default: NAME-FORM in --models-dir, NAME.pt for pt")
    parser.add_argument("--models-dir", type=Path, default=environment.MODELS, help="default: whisper-models")
    given = parser.parse_args(argv)
    try:
        todo = conversion(given.source, given.form, given.dtype, given.out, given.models_dir)
        found = todo.run()
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{todo.out}: {todo.form} in {todo.dtype}, {size(todo.out) / 1e6:.1f} MB; {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
