"""`python -m whispercore.checkpoints`: prepares a checkpoint, or writes one with random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whispercore import checkpoints
from whispercore.checkpoints import (
    dimensions,
    load_checkpoint,
)
from whispercore.checkpoints.__main__ import main


def test_the_command(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "model-config.yaml"
    config.write_text(f"handler: {{}}\nwhisper:\n  models_dir: {small.parent}\n  engine: openai\n  model: nothing\n")
    monkeypatch.delenv("WHISPER_MODEL", raising=False)
    assert main(["prepare", "--config", str(config), "--model", "small-random"]) == 0
    assert capsys.readouterr().out == f"{small} is ready for engine 'openai'\n"
    assert main(["prepare", "--config", str(config)]) == 1
    assert capsys.readouterr().err.startswith("error: no checkpoint at")
    assert main(["prepare", "--config", str(tmp_path / "none.yaml")]) == 1
    config.write_text("whisper: [1, 2]")
    assert main(["prepare", "--config", str(config)]) == 1
    config.write_text("whisper: {modle: x}")
    assert main(["prepare", "--config", str(config)]) == 1
    assert "unknown setting 'modle'" in capsys.readouterr().err


def test_the_command_makes_random_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models" / "random.pt"
    assert main(["random", "--size", "tiny", "--out", str(out)]) == 0
    assert load_checkpoint(out).dims == dimensions("tiny")
    assert main(["random", "--size", "huge", "--out", str(out)]) == 1
    assert "unknown size 'huge'; known: tiny, base" in capsys.readouterr().err


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "whispercore.checkpoints", "prepare", "--model", str(tmp_path / "none.pt")]
    source = {"PYTHONPATH": str(Path(checkpoints.__file__).parents[2])}  # the core is not installed into the environment
    run = subprocess.run(command, env=os.environ | source, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 1
    assert run.stderr.startswith("error: no checkpoint at") and run.stderr.count("\n") == 1
