#!/usr/bin/env python3
"""Convert a Whisper checkpoint into another form, offline.

The forms, each of which can be the source too: OpenAI's .pt, folders of Hugging Face and CTranslate2, ONNX graphs for
ONNX Runtime and for sherpa-onnx.

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
"""The forms, and the precisions of each."""
_LIMITS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 4e-3, "int8": 5e-3, "int16": 1e-3}
"""The largest allowed error of a weight, relative to the largest of its tensor: half a step of the type, plus double
rounding."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The conversion of a checkpoint into `form` at `out`. Its result is compared with the checkpoint."""

    checkpoint: Checkpoint
    form: str
    dtype: str
    out: Path

    def run(self) -> str:
        """Write the result, complete or not at all, and return a phrase on its difference.

        Raises ConfigurationError.
        """
        if self.out.exists():
            raise ConfigurationError(f"{self.out} exists already: move it away, or choose another --out", param="out")
        return self._export() if self.form in ("onnx", "sherpa") else self._weights()

    def _weights(self) -> str:
        with staged(self.out) as temporary:
            self._write(temporary)
            error = difference(self.checkpoint, load_checkpoint(temporary))
            if not error <= _LIMITS[self.dtype.partition("_")[0]]:
                message = f"weights in {self.dtype} are {error:.2g} of their tensor's largest off: choose another --dtype"
                raise ConfigurationError(message, param="dtype")
        return f"weights differ by {error:.2g} of their tensor's largest at most"

    def _write(self, path: Path) -> None:
        dims, state, heads = self.checkpoint.dims, self.checkpoint.state, self.checkpoint.alignment_heads
        if self.form == "ct2":
            try:
                from whispercore.checkpoints.conversion import convert  # here: other forms need no ctranslate2
            except ImportError as error:
                raise ConfigurationError(f"form 'ct2' needs ctranslate2 ({error}); run: pip install -r requirements.txt") from error
            return convert(dims, state, path, self.dtype, alignment_heads=heads)
        cast = {name: tensor.to(getattr(torch, self.dtype)).contiguous() for name, tensor in state.items()}
        if self.form == "hf":
            return huggingface.write(dims, cast, path, alignment_heads=heads)
        return write_checkpoint(dims, cast, path, heads=heads)

    def _export(self) -> str:
        try:
            from whispercore.checkpoints import onnx_export, sherpa_export  # here: other forms need no onnx
        except ImportError as error:
            raise ConfigurationError(f"form '{self.form}' needs more ({error}); run: pip install -r requirements-onnx.txt") from error
        dims, state, heads = self.checkpoint.dims, self.checkpoint.state, self.checkpoint.alignment_heads
        export = (sherpa_export if self.form == "sherpa" else onnx_export).export
        deviations = export(dims, state, self.out, self.dtype, alignment_heads=heads)
        return f"logits are {deviations:.2g} standard deviations off PyTorch's at most"


def difference(original: Checkpoint, converted: Checkpoint) -> float:
    """The largest difference between two checkpoints' weights, relative to the largest weight of its tensor."""
    if original.dims != converted.dims or original.alignment_heads != converted.alignment_heads:
        raise ConfigurationError(f"the conversion of {original.path} has other dimensions or alignment heads")
    errors = [_relative_error(converted.state[name].float(), tensor.float()) for name, tensor in original.state.items()]
    return float(torch.stack(errors).max())  # NaN if any of them is


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (actual - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo().tiny)


def conversion(model: str, form: str, dtype: str | None = None, out: Path | None = None, folder: Path = environment.MODELS) -> Conversion:
    """The conversion for the command's arguments.

    `folder`: checkpoints are found there by name, and the result goes there.

    Raises ConfigurationError.
    """
    if dtype is not None and dtype not in DTYPES[form]:
        raise ConfigurationError(f"form '{form}' holds {', '.join(DTYPES[form])}; not {dtype}", param="dtype")
    checkpoint = load_checkpoint(locate(Settings(model=model, models_dir=str(folder))))
    name = "-".join(part for part in (checkpoint.name, "" if form == "pt" else form, dtype) if part)
    precision = dtype or ("float32" if form in ("onnx", "sherpa") else _common_dtype(checkpoint))
    return Conversion(checkpoint, form, precision, out or folder / (f"{name}.pt" if form == "pt" else name))


def _common_dtype(checkpoint: Checkpoint) -> str:
    """The precision of all weights; float32 when they differ."""
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(_FLOATS) else "float32"


def size(path: Path) -> int:
    """The size of a file, or of all files in a folder, in bytes."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, with a line on standard output; 1 failed, with a line on standard error; 130 Ctrl-C."""
    parser = argparse.ArgumentParser(description="Convert a Whisper checkpoint into another form.")
    parser.add_argument("source", metavar="SOURCE", help="a .pt, a folder of any of the forms, or a name in --models-dir")
    parser.add_argument("--to", required=True, choices=DTYPES, dest="form", help="the form of the result")
    precisions = "; ".join(f"{form}: {', '.join(dtypes)}" for form, dtypes in DTYPES.items())
    parser.add_argument("--dtype", help=f"{precisions}; default: the checkpoint's; float32 for onnx and sherpa")
    parser.add_argument("--out", type=Path, help="default: NAME-FORM in --models-dir, NAME.pt for pt")
    parser.add_argument("--models-dir", type=Path, default=environment.MODELS, help="default: whisper-models")
    parsed = parser.parse_args(argv)
    try:
        job = conversion(parsed.source, parsed.form, parsed.dtype, parsed.out, parsed.models_dir)
        result = job.run()
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{job.out}: {job.form} in {job.dtype}, {size(job.out) / 1e6:.1f} MB; {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
