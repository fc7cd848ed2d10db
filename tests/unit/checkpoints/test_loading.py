"""Checkpoints are loaded and checked: a broken one is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import whisper

from tests.unit.checkpoints.doubles import SMALL, truncated
from whispercore.checkpoints import (
    Checkpoint,
    dimensions,
    load_checkpoint,
    write_random,
)
from whispercore.errors import ConfigurationError


def test_a_checkpoint_loads_in_openai_whisper_and_here(small: Path) -> None:
    theirs, ours = whisper.load_model(str(small), device="cpu"), load_checkpoint(small)
    assert ours.dims == theirs.dims == SMALL
    assert ours.name == "small-random"
    assert ours.state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, ours.state[name]) for name, tensor in theirs.state_dict().items())
    assert ours.alignment_heads == [tuple(pair) for pair in theirs.alignment_heads.indices().T.tolist()]


def test_a_checkpoint_may_name_its_own_alignment_heads(small: Path, tmp_path: Path) -> None:
    content = torch.load(small, weights_only=True)
    torch.save({**content, "alignment_heads": [[0, 1], [0, 0]]}, tmp_path / "named.pt")
    assert load_checkpoint(tmp_path / "named.pt").alignment_heads == [(0, 1), (0, 0)]


def test_published_models_have_openais_alignment_heads() -> None:
    dims = dimensions("large-v3-turbo")
    checkpoint = Checkpoint(Path("large-v3-turbo.pt"), dims, {})
    assert checkpoint.alignment_heads == [(2, 4), (2, 11), (3, 3), (3, 6), (3, 11), (3, 14)]


def text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def ggml(path: Path) -> None:
    path.write_bytes(b"lmgg" + bytes(100))


def without_weights(path: Path) -> None:
    torch.save({"dims": asdict(SMALL)}, path)


def other_dimensions(path: Path) -> None:
    torch.save({"dims": {"width": 3}, "model_state_dict": {}}, path)


def no_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x02}q\x01u.")  # its reader: pop from empty list


def without_names(path: Path) -> None:
    torch.save({"dims": asdict(SMALL), "model_state_dict": [torch.zeros(1)]}, path)


def added_tokens(path: Path) -> None:
    write_random(replace(SMALL, n_vocab=51_872), path)


def shorter_windows(path: Path) -> None:
    write_random(replace(SMALL, n_audio_ctx=750), path)


def uneven_heads(path: Path) -> None:
    write_random(replace(SMALL, n_audio_head=5), path)


def missing_tensor(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content["model_state_dict"]["decoder.ln.weight"]
    torch.save(content, path)


def with_code(path: Path) -> None:
    torch.save({"dims": Path("x"), "model_state_dict": {}}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "cannot be read as a checkpoint, it may be cut short"),
        (text, "cannot be read as a checkpoint"),
        (empty, "cannot be read as a checkpoint"),
        (with_code, r"cannot be read as a checkpoint, .*\(it holds no tensors, or more than these\)"),
        (no_pickle, "cannot be read as a checkpoint"),
        (ggml, "is whisper.cpp's, which no engine here reads"),
        (without_weights, "needs 'dims' and 'model_state_dict'"),
        (without_names, "needs 'dims' and 'model_state_dict'"),
        (other_dimensions, "other dimensions than a Whisper model's"),
        (added_tokens, "other dimensions than a Whisper model's: n_vocab is 51872, not 51864 or 51865 or 51866"),
        (shorter_windows, "other dimensions than a Whisper model's: n_audio_ctx is 750, not 1500"),
        (uneven_heads, "other dimensions than a Whisper model's: its heads do not share its width evenly"),
        (missing_tensor, "does not fit its own dimensions: decoder.ln.weight and 0 other"),
    ],
)
def test_a_broken_checkpoint_is_one_clear_line(small: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(small.read_bytes())
    spoil(path)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["model.bin", "model.safetensors", "encoder.onnx", "config.json"])
def test_a_part_of_a_folder_is_not_a_checkpoint(tmp_path: Path, part: str) -> None:
    (tmp_path / part).write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=f"is a part of a checkpoint: name the folder it is in, {tmp_path}$"):
        load_checkpoint(tmp_path / part)
