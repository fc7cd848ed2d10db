"""Folders of ONNX graphs: the weights of our own exports are read, mapped; what is broken or somebody else's is told in one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip(
    "onnx", reason="the package onnx, which reads and writes graphs, is not installed: pip install -r requirements-onnx.txt"
)

import onnx
import torch
from whisper.model import AudioEncoder, ModelDimensions

from whispercore.checkpoints import Checkpoint, exported_folder, graphs, load_checkpoint, locate, prepare, sha256, write_random
from whispercore.checkpoints.locations import form_of
from whispercore.checkpoints.onnx_export import export
from whispercore.checkpoints.sherpa_export import export as sherpa_export
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings

SMALL = ModelDimensions(128, 1500, 64, 2, 1, 51_866, 448, 64, 4, 3)
HEADS = [(2, 3), (0, 1)]

Made = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Dimensions of which no two of encoder and decoder are equal by chance, biases that are none of them zero."""
    path = tmp_path_factory.mktemp("pt") / "small.pt"
    write_random(SMALL, path, dtype=torch.float32)
    read = load_checkpoint(path)
    generator = torch.Generator().manual_seed(1)
    biases = {name: torch.randn(tensor.shape, generator=generator) / 9 for name, tensor in read.state.items() if name.endswith("bias")}
    return replace(read, state=read.state | biases)


@pytest.fixture(scope="module")
def made(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The graphs for an engine in a precision; made once. Not to be changed."""
    models = tmp_path_factory.mktemp("graphs")

    def folder(engine: str, dtype: str) -> Path:
        path, write = models / f"{engine}-{dtype}", {"onnx": export, "sherpa": sherpa_export}[engine]
        if not path.exists():
            write(small.dims, small.state, path, dtype, alignment_heads=HEADS)
        return path

    return folder


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made("onnx", "float32"), tmp_path / "mine"))


@pytest.mark.parametrize(("engine", "dtype"), [("onnx", "float32"), ("onnx", "float16"), ("sherpa", "float32")])
def test_floats_are_the_same_floats(small: Checkpoint, made: Made, engine: str, dtype: str) -> None:
    read = load_checkpoint(made(engine, dtype))
    assert asdict(read.dims) == asdict(SMALL) and read.heads == tuple(HEADS)
    assert read.state.keys() == small.state.keys()
    for name, tensor in small.state.items():
        assert torch.equal(read.state[name], tensor.to(getattr(torch, dtype))), name


@pytest.mark.parametrize(("engine", "dtype", "steps"), [("onnx", "int8", 0.51), ("onnx", "uint8", 1.01), ("sherpa", "int8", 0.51)])
def test_only_matrices_are_off_by_a_part_of_a_step(small: Checkpoint, made: Made, engine: str, dtype: str, steps: float) -> None:
    """The zero point, which uint8 has, is rounded as well."""
    read = load_checkpoint(made(engine, dtype))
    assert read.dims == SMALL and read.heads == tuple(HEADS) and read.state.keys() == small.state.keys()
    for name, tensor in small.state.items():
        off = (read.state[name] - tensor).abs()
        if name == "decoder.token_embedding.weight":
            assert torch.equal(read.state[name], tensor.half().float())
        elif tensor.dim() == 2 and name.endswith("weight"):
            assert off.max() > 0 and (off <= steps * tensor.abs().amax(dim=1, keepdim=True) / 127).all(), name
        else:
            assert off.max() == 0, name


def test_eight_bits_are_the_same_eight_bits_again(made: Made, tmp_path: Path) -> None:
    once = load_checkpoint(made("onnx", "int8"))
    export(once.dims, once.state, tmp_path / "again", "int8", alignment_heads=HEADS)
    again = load_checkpoint(tmp_path / "again")
    assert all(torch.equal(again.state[name], tensor) for name, tensor in once.state.items())


def test_weights_are_mapped_not_held(made: Made) -> None:
    """What lies in a data file is a view of it, whole parts of a product too: large-v3 in float32 takes no memory of its own."""
    state = graphs.read_state(made("onnx", "float32"))
    names = ("conv1.weight", "blocks.0.attn.key.weight", "blocks.0.attn.value.weight", "blocks.0.mlp.0.weight", "positional_embedding")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("encoder.onnx.data")]
    ranges = [tuple(int(end, 16) for end in each[0].split("-")) for each in maps]
    for name in names:
        assert any(start <= state[f"encoder.{name}"].data_ptr() < end for start, end in ranges), name


def test_names() -> None:
    def parts(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in graphs.openai_parts(name, torch.zeros(shape))}

    assert parts("encoder.conv1.weight", 4, 2, 3) == {"encoder.conv1.weight": (4, 2, 3)}
    assert parts("decoder.blocks.3.mlp.0.weight.T", 4, 16) == {"decoder.blocks.3.mlp.0.weight": (16, 4)}
    weights = {f"decoder.blocks.0.attn.{part}.weight": (4, 4) for part in ("query", "key", "value")}
    assert parts("decoder.blocks.0.attn.qkv.weight.T", 4, 12) == weights
    assert parts("decoder.blocks.0.attn.qkv.bias", 12) == {f"decoder.blocks.0.attn.{part}.bias": (4,) for part in ("query", "value")}
    for nothing in ("heads.0", "layer.0", "axis 0", "by heads", "scale"):
        assert parts(nothing, 1) == {}


def test_the_hash_is_of_graphs_and_data(folder: Path) -> None:
    found = {sha256(folder)}
    for name in ("encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        found.add(sha256(folder))
    assert len(found) == 5


def _cut(file: str, left: int) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:left]) and None


def _without(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _pointer(folder: Path) -> None:
    (folder / "decoder.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _other_layers(folder: Path) -> None:
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False)
    (bias,) = (each for each in graph.graph.initializer if each.name == "decoder.blocks.2.cross_attn.value.bias")
    bias.name = "decoder.blocks.2.cross_attn.gate.bias"
    (folder / "encoder.onnx").write_bytes(graph.SerializeToString())


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        (_cut("encoder.onnx", 500), "encoder.onnx", "cannot be read, it may be cut short"),
        (_cut("decoder.onnx", 0), "decoder.onnx", "cannot be read, it may be cut short .it holds no graph"),
        (
            _cut("decoder.onnx.data", 100_000),
            "decoder.onnx.data",
            "cut short .it has 100000 bytes, and decoder.token_embedding.weight ends at",
        ),
        (_cut("encoder.onnx.data", 0), "encoder.onnx.data", "cannot be read, it may be cut short"),
        (_without("decoder.onnx.data"), "decoder.onnx.data", "cannot be read, it may be cut short .*No such file"),
        (_pointer, "decoder.onnx", "cannot be read, it may be cut short"),
        (_other_layers, "", "does not fit its own dimensions: decoder.blocks.2.cross_attn.gate.bias and 1 other"),
    ],
)
def test_what_is_broken_is_one_clear_line(folder: Path, spoil: Callable[[Path], None], file: str, message: str) -> None:
    spoil(folder)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder / file) in str(caught.value) and "\n" not in str(caught.value)


def _exported(folder: Path, *names: str) -> None:
    """Graphs as PyTorch's own exporter writes them, which gives weights that it transposed names of its own: onnx::MatMul_123."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        model = AudioEncoder(80, 20, 8, 2, 1).eval()
        torch.onnx.export(model, (torch.zeros(1, 80, 40),), folder / name, dynamo=False, opset_version=17)
        assert any(each.name.startswith("onnx::MatMul_") for each in onnx.load(folder / name).graph.initializer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("names", "configured"),
    [
        (("encoder_model.onnx", "decoder_model.onnx"), True),
        (("onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"), True),
        (("tiny-encoder.int8.onnx", "tiny-decoder.int8.onnx"), False),
        (("encoder.onnx", "decoder.onnx"), False),
    ],
    ids=str,
)
def test_graphs_of_others_are_told(tmp_path: Path, names: tuple[str, ...], configured: bool) -> None:
    theirs = tmp_path / "someone" / "theirs"
    _exported(theirs, *names)
    if configured:
        (theirs / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    for engine in ("torch", "ct2", "onnx", "sherpa"):
        settings = Settings(model="someone/theirs", models_dir=str(tmp_path), converted_dir=str(tmp_path), engine=engine, device="cpu")
        assert locate(settings) == theirs
        with pytest.raises(ConfigurationError, match=r"holds ONNX graphs of another form.* name what they were made from") as caught:
            prepare(settings)
        assert caught.value.param == "model" and str(theirs) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["someone"]


def test_numbers_that_pytorch_does_not_know_are_others(folder: Path) -> None:
    graph = onnx.load(folder / "decoder.onnx", load_external_data=False)
    graph.graph.initializer.append(onnx.helper.make_tensor("names", onnx.TensorProto.STRING, [1], [b"a"]))  # type: ignore[list-item]
    (folder / "decoder.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ConfigurationError, match="of another form"):
        load_checkpoint(folder)


def test_sherpa_onnx_runs_what_tells_so_of_itself_whoever_wrote_it(folder: Path, tmp_path: Path) -> None:
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False)
    onnx.helper.set_model_props(graph, {"sot_sequence": "1,2,3"})
    (folder / "encoder.onnx").write_bytes(graph.SerializeToString())
    settings = Settings(model=str(folder), converted_dir=str(tmp_path))
    assert exported_folder(settings, "sherpa", "float32") == folder != exported_folder(settings, "onnx", "float32")


def test_no_weights_come_from_outside_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "decoder.onnx.data", tmp_path / "elsewhere.data")
    graph = onnx.load(folder / "decoder.onnx", load_external_data=False)
    for each in graph.graph.initializer:
        for entry in each.external_data:
            entry.value = "../elsewhere.data" if entry.key == "location" else entry.value
    (folder / "decoder.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ConfigurationError, match=f"{folder / 'elsewhere.data'} cannot be read"):
        load_checkpoint(folder)


def test_safetensors_beside_graphs_are_what_is_read(folder: Path) -> None:
    from whispercore.checkpoints import huggingface

    assert form_of(folder) is graphs
    (folder / "model.safetensors").write_bytes(b"x")
    assert form_of(folder) is huggingface


def test_a_missing_package_is_named(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("onnx", "float32")
    settings = Settings(model=str(folder), engine="torch", device="cpu")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert locate(settings) == folder and len(sha256(folder)) == 64
    with pytest.raises(ConfigurationError, match=r"holds ONNX graphs.*\(.*onnx.*\); run: pip install -r requirements-onnx.txt"):
        prepare(settings)


def test_each_engine_takes_its_own_form_and_converts_the_other(made: Made, tmp_path: Path) -> None:
    for engine, other in (("onnx", "sherpa"), ("sherpa", "onnx")):
        settings = Settings(model=str(made(engine, "float32")), engine=engine, device="cpu", converted_dir=str(tmp_path))
        assert exported_folder(settings, engine, "float32") == made(engine, "float32")
        assert exported_folder(settings, other, "float32").parent == tmp_path
        assert prepare(replace(settings, engine=other)).startswith(f"exported {made(engine, 'float32')} for engine '{other}'")
        converted = exported_folder(settings, other, "float32")
        assert graphs.is_for(converted, other) and not graphs.is_for(converted, engine)
        one, there = load_checkpoint(made(engine, "float32")), load_checkpoint(converted)
        assert there.heads == tuple(HEADS) and all(torch.equal(there.state[name], tensor) for name, tensor in one.state.items())
