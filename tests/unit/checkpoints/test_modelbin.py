"""CTranslate2's folders: its own writer's files are read, and what is broken or another model's is told in one line."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from whisper.model import ModelDimensions

from whispercore.checkpoints import Checkpoint, load_checkpoint, modelbin, write_random
from whispercore.checkpoints.__main__ import main
from whispercore.checkpoints.conversion import convert
from whispercore.errors import ConfigurationError

SMALL = ModelDimensions(128, 1500, 64, 2, 1, 51_866, 448, 64, 4, 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Dimensions of which no two of encoder and decoder are equal by chance."""
    path = tmp_path_factory.mktemp("pt") / "small.pt"
    write_random(SMALL, path, dtype=torch.float32)
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def folder(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ct2") / "faster-whisper-small"
    convert(small.dims, small.state, path, "int8", alignment_heads=[(2, 3), (0, 1)])
    return path


def test_what_ctranslate2_writes_is_read(small: Checkpoint, folder: Path) -> None:
    assert modelbin.read_dimensions(folder) == asdict(SMALL)
    assert modelbin.read_alignment_heads(folder) == ((2, 3), (0, 1))
    state = modelbin.read_state(folder)
    assert {name: tensor.shape for name, tensor in state.items()} == {name: tensor.shape for name, tensor in small.state.items()}
    assert not modelbin.is_float(folder)
    for name, tensor in small.state.items():
        step = tensor.abs().reshape(len(tensor), -1).amax(dim=1).max() / 127 if tensor.dim() > 1 else tensor.new_tensor(0.0)
        assert (state[name] - tensor).abs().max() <= step * 0.51


def test_names() -> None:
    assert modelbin.openai_names("encoder/layer_3/self_attention/linear_0/bias") == tuple(
        f"encoder.blocks.3.attn.{part}.bias" for part in ("query", "key", "value")
    )
    assert modelbin.openai_names("decoder/layer_12/attention/layer_norm/gamma") == ("decoder.blocks.12.cross_attn_ln.weight",)
    assert modelbin.openai_names("decoder/layer_0/attention/linear_1/weight") == (
        "decoder.blocks.0.cross_attn.key.weight",
        "decoder.blocks.0.cross_attn.value.weight",
    )
    assert modelbin.openai_names("encoder/position_encodings/encodings") == ("encoder.positional_embedding",)
    for nothing in ("decoder/num_heads", "decoder/projection/weight", "decoder/embeddings/weight_scale"):
        assert modelbin.openai_names(nothing) == ()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200_000])


def _cut_in_a_name(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _translator(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\x0c\x00WhisperSpec\x00", b"\x10\x00TransformerSpec\x00", 1))


def _older(path: Path) -> None:
    path.write_bytes(struct.pack("<I", 4) + path.read_bytes()[4:])


def _other_layer(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"decoder/layer_0/ffn/linear_1/bias", b"decoder/layer_0/ffn/gated__1/bias", 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "cannot be read, it may be cut short"),
        (_cut_in_a_name, "cannot be read, it may be cut short"),
        (_empty, "cannot be read, it may be cut short"),
        (_pointer, "cannot be read, it may be cut short"),
        (_translator, r"holds no Whisper model .* 'TransformerSpec'"),
        (_older, r"holds no Whisper model of CTranslate2 4's: its model.bin says \(4, "),
        (_other_layer, "does not fit its own dimensions: decoder.blocks.0.ffn/gated__1.bias and 1 other"),
    ],
)
def test_what_is_broken_is_one_clear_line(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    spoil(broken / "model.bin")
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_checkpoint(broken)
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_cut_short_is_told_before_anything_is_served(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    _cut(broken / "model.bin")
    monkeypatch.setenv("WHISPER_ENGINE", "ct2")
    monkeypatch.setenv("WHISPER_DEVICE", "cpu")
    assert main(["prepare", "--model", str(broken)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {broken / 'model.bin'} cannot be read, it may be cut short") and told.count("\n") == 1


def test_a_configuration_need_not_name_heads(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    config = json.loads((plain / "config.json").read_text())
    del config["alignment_heads"]
    (plain / "config.json").write_text(json.dumps(config))
    assert modelbin.read_alignment_heads(plain) is None
    assert load_checkpoint(plain).alignment_heads == [(layer, head) for layer in (1, 2) for head in range(4)]
    (plain / "config.json").unlink()
    assert load_checkpoint(plain).dims == SMALL
