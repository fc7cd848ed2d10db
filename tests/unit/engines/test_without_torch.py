"""Engine ct2 where PyTorch is not installed, as in the image of the Lambda function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whispercore.checkpoints import load_checkpoint
from whispercore.checkpoints.conversion import convert

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import importlib.util, sys

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find_spec(name, package)
for name in ("torch", "numba", "librosa", "transformers", "tokenizers", "safetensors", "huggingface_hub"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError

from whispercore import Transcriber
import whispercore.serving.intake

with Transcriber(sys.argv[1], engine="ct2", dtype="int8") as transcriber:
    for options in ({}, {"strategy": "sequential"}, {"word_timestamps": True}, {"temperature": 0.2}, {"beam_size": 2}):
        print(transcriber("samples/timer.flac", **options).text)
print({"whisper", "faster_whisper"} & sys.modules.keys())
"""


@pytest.mark.slow
def test_ct2_transcribes_without_pytorch(tmp_path: Path) -> None:
    """Files of the packages whisper and faster_whisper are read, but the packages are not imported."""
    nano = load_checkpoint(ROOT / "whisper-models" / "nano.pt")
    convert(nano.dims, nano.state, tmp_path / "nano", "int8", alignment_heads=nano.alignment_heads)
    command, environment = [sys.executable, "-c", PROGRAM, str(tmp_path / "nano")], {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*["Set a timer for five minutes."] * 5, "set()"]
