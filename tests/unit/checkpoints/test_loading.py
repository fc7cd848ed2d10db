"""Checkpoints: found, checked with one clear line, converted once, and made up with a real model's shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import ctranslate2
import pytest
import torch
import whisper
from whisper.model import ModelDimensions

from whispercore import checkpoints
from whispercore.checkpoints import (
    Checkpoint,
    choose_model,
    dimensions,
    load_checkpoint,
    locate,
    locations,
    modelbin,
    prepare,
    write_random,
)
from whispercore.checkpoints.__main__ import main
from whispercore.checkpoints.conversion import precision
from whispercore.checkpoints.locations import FILES
from whispercore.engines import load_engine
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings

SMALL = ModelDimensions(80, 1500, 64, 2, 2, 51_865, 448, 64, 2, 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a width no published model has, with random weights."""
    path = tmp_path_factory.mktemp("models") / "small-random.pt"
    write_random(SMALL, path, dtype=torch.float32)
    return path


@pytest.fixture
def settings(small: Path, tmp_path: Path) -> Settings:
    section = {"model": "small-random", "models_dir": str(small.parent), "converted_dir": str(tmp_path / "converted"), "device": "cpu"}
    return Settings.load(section, environ={})


def test_a_name_and_a_path_are_the_same_checkpoint(settings: Settings, small: Path) -> None:
    assert locate(settings) == small
    assert locate(replace(settings, model=str(small))) == small


@pytest.mark.parametrize(("name", "file"), [("turbo", "large-v3-turbo.pt"), ("large", "large-v3.pt"), ("base.en", "base.en.pt")])
def test_openai_names_are_the_files_that_openai_serves(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    assert locate(Settings(model=name, models_dir=str(tmp_path))) == tmp_path / file
    assert whisper._MODELS[name].endswith(f"/{file}")


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("my-tuned.en", "my-tuned.en", ["config.json", "model.safetensors"]),
        ("my-converted", "my-converted", ["config.json", "model.bin"]),
        ("someone/my-tuned", "someone/my-tuned", ["config.json", "model.safetensors"]),
        ("distil-large-v3", "Systran/faster-distil-whisper-large-v3", ["config.json", "model.bin"]),
        ("large-v3", "Systran/faster-whisper-large-v3", ["model.bin"]),
        ("turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo", ["model.bin"]),
        ("graphs", "graphs", ["encoder.onnx", "decoder.onnx"]),
    ],
)
def test_folders_are_found_by_name(tmp_path: Path, name: str, folder: str, files: list[str]) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)
    for file in files:
        (path / file).write_bytes(b"x")
    assert locate(Settings(model=name, models_dir=str(tmp_path))) == path
    assert locate(Settings(model=folder, models_dir=str(tmp_path))) == path
    assert locate(Settings(model=str(path), models_dir="elsewhere")) == path
    (tmp_path / f"{FILES.get(name, Path(name).name)}.pt").write_bytes(b"x")
    if "/" not in name:
        assert locate(Settings(model=name, models_dir=str(tmp_path))).suffix == ".pt"
    with pytest.raises(ConfigurationError, match=rf"no checkpoint at .*; in {tmp_path}: .*{folder}.*"):
        locate(Settings(model="none", models_dir=str(tmp_path)))


def test_a_missing_model_says_what_there_is_and_how_to_get_it(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match=r"large-v3-turbo\.pt.*: small-random; get it: python3 clients/download_model\.py turbo"):
        locate(replace(settings, model="turbo"))
    with pytest.raises(ConfigurationError, match=r"get it: python3 clients/download_model\.py distil-large-v3$"):
        locate(replace(settings, model="distil-large-v3"))
    with pytest.raises(ConfigurationError, match=r"small-random$"):
        locate(replace(settings, model="my-own"))


def test_auto_takes_base_where_it_is_and_the_bundled_model_else(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "choose_device", lambda settings: settings.dtype if settings.dtype == "cuda" else "cpu")
    auto = Settings(models_dir=str(tmp_path))
    gpu = replace(auto, dtype="cuda")
    assert auto.model == "auto"
    assert [choose_model(one).model for one in (auto, gpu)] == ["nano", "nano"]
    (tmp_path / "base.pt").symlink_to(small)
    assert [choose_model(one).model for one in (auto, gpu)] == ["base", "base"]
    assert locate(auto) == tmp_path / "base.pt"
    (tmp_path / "large-v3-turbo").mkdir()
    assert choose_model(gpu).model == "base", "an empty folder is no checkpoint"
    (tmp_path / "large-v3-turbo.pt").symlink_to(small)
    assert [choose_model(one).model for one in (auto, gpu)] == ["base", "large-v3-turbo"]
    assert choose_model(replace(gpu, model="nano")).model == "nano"
    assert choose_model(replace(auto, engine="fake")).model == choose_model(auto, look=False).model == "nano"


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


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


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


def test_preparing_converts_once(settings: Settings) -> None:
    ct2 = replace(settings, engine="ct2", dtype="int8")
    with pytest.raises(ConfigurationError, match=r"python -m whispercore\.checkpoints prepare"):
        load_engine(ct2)
    assert prepare(ct2).startswith("converted ")
    (folder,) = settings.converted_path.iterdir()
    assert folder.name.startswith("small-random-") and folder.name.endswith("-int8")
    before = (folder / "model.bin").stat()
    assert "is ready" in prepare(ct2)
    assert (folder / "model.bin").stat() == before
    engine = load_engine(ct2)
    assert engine.tokenizer.vocabulary == SMALL.n_vocab
    engine.close()


def test_another_checkpoint_of_the_same_name_is_another_folder(settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "small-random.pt"
    write_random(SMALL, other, seed=1)
    first = checkpoints.converted_folder(settings, locate(settings), "int8")
    assert first != checkpoints.converted_folder(settings, other, "int8")


def test_what_was_made_of_an_older_content_is_removed_and_nothing_else(settings: Settings, small: Path, tmp_path: Path) -> None:
    own, others = tmp_path / "one" / "mine.pt", tmp_path / "two" / "mine.pt"
    for seed, path in enumerate((own, others)):
        write_random(SMALL, path, seed=seed)
    ct2 = replace(settings, engine="ct2", model=str(own))
    users = settings.converted_path / "mine-0123456789ab-int8"
    users.mkdir(parents=True)
    (users / "model.bin").write_bytes(b"a user's own")
    for chosen in (replace(ct2, model=str(others)), ct2, replace(ct2, dtype="float32")):
        prepare(chosen)
    before = {path.name for path in settings.converted_path.iterdir()}
    old = {name for name in before if name.startswith(f"mine-{checkpoints.sha256(own)[:12]}-")}
    assert len(before) == 4 and len(old) == 2
    write_random(SMALL, own, seed=2)
    prepare(ct2)
    new = f"mine-{checkpoints.sha256(own)[:12]}-int8"
    assert {path.name for path in settings.converted_path.iterdir()} == before - old | {new}


def test_two_workers_convert_at_once(settings: Settings, tmp_path: Path) -> None:
    ct2 = replace(settings, engine="ct2", model=str(tmp_path / "mine.pt"))
    for seed, workers in enumerate((1, 2)):  # which remove, each of them, what was made of the first content
        write_random(SMALL, Path(ct2.model), seed=seed)
        with ThreadPoolExecutor(workers) as pool:
            assert [told.split()[0] for told in pool.map(prepare, [ct2] * workers)] == ["converted"] * workers
        assert [path.name for path in settings.converted_path.iterdir()] == [f"mine-{checkpoints.sha256(Path(ct2.model))[:12]}-int8"]


def test_a_note_that_vanishes_while_it_is_read_is_passed_over(settings: Settings) -> None:
    (settings.converted_path / "vanishing" / "origin.txt").mkdir(parents=True)  # which cannot be read either
    assert prepare(replace(settings, engine="ct2")).startswith("converted ")


def test_a_folder_without_alignment_heads_is_converted(settings: Settings, small: Path, tmp_path: Path) -> None:
    from whispercore.checkpoints.conversion import convert

    checkpoint, folder = load_checkpoint(small), tmp_path / "old"
    convert(checkpoint.dims, checkpoint.state, folder, "float16", alignment_heads=[(1, 0)])
    ct2 = replace(settings, engine="ct2", model=str(folder))
    assert prepare(ct2) == f"{folder} is ready for engine 'ct2', as it is"
    assert not settings.converted_path.exists()
    (folder / "config.json").write_text("{}")
    assert prepare(ct2).startswith(f"converted {folder} for engine 'ct2'")
    (made,) = settings.converted_path.iterdir()
    assert load_checkpoint(made).heads == tuple(checkpoint.alignment_heads)


def test_a_distilled_folder_that_names_its_teachers_heads_is_converted(settings: Settings, small: Path, tmp_path: Path) -> None:
    import numpy as np

    from whispercore.checkpoints.conversion import convert
    from whispercore.types import Decoding, Window

    checkpoint, folder = load_checkpoint(small), tmp_path / "distilled"
    convert(checkpoint.dims, checkpoint.state, folder, "float32", alignment_heads=[(10, 12), (1, 1)])
    ct2 = replace(settings, engine="ct2", model=str(folder), dtype="float32")
    assert prepare(ct2).startswith(f"converted {folder} for engine 'ct2'")  # CTranslate2 would end the process
    engine = load_engine(ct2)
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    (decoded,) = engine.decode([Window(noise, 0.0, Decoding(language="en", max_tokens=8, ignore_eot=True, alignment="all"))])
    assert len(decoded.token_times) == len(decoded.token_probs) + 1 > 1
    engine.close()


def test_a_folder_of_ctranslate2s_with_added_tokens_is_told(
    settings: Settings, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whispercore.checkpoints.conversion import convert

    checkpoint, folder = load_checkpoint(small), tmp_path / "added"
    convert(checkpoint.dims, checkpoint.state, folder, "float32", alignment_heads=checkpoint.alignment_heads)
    monkeypatch.setattr(modelbin, "read_dimensions", lambda path: asdict(replace(SMALL, n_vocab=51_900)))  # ours converts no such
    with pytest.raises(ConfigurationError, match=r"added has other dimensions .* n_vocab is 51900"):
        prepare(replace(settings, engine="ct2", model=str(folder)))


@pytest.mark.parametrize("heads", ["[1, 2]", '[["a", "b"]]', "7"])
def test_heads_that_are_no_pairs_are_one_clear_line(settings: Settings, small: Path, tmp_path: Path, heads: str) -> None:
    from whispercore.checkpoints.conversion import convert

    checkpoint, folder = load_checkpoint(small), tmp_path / "folder"
    convert(checkpoint.dims, checkpoint.state, folder, "float32", alignment_heads=checkpoint.alignment_heads)
    (folder / "config.json").write_text(f'{{"alignment_heads": {heads}}}')
    with pytest.raises(ConfigurationError, match=r"config\.json: alignment_heads must be pairs of a layer and a head$"):
        prepare(replace(settings, engine="ct2", model=str(folder)))


def test_conversion_leaves_the_checkpoint_as_it_was(settings: Settings, small: Path, tmp_path: Path) -> None:
    from whispercore.checkpoints.conversion import convert

    checkpoint = load_checkpoint(small)
    before = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    convert(checkpoint.dims, checkpoint.state, tmp_path / "out", "int8", alignment_heads=checkpoint.alignment_heads)
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.state.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_converted_folder_cut_short_is_one_clear_line(settings: Settings) -> None:
    ct2 = replace(settings, engine="ct2", dtype="float32")
    prepare(ct2)
    (folder,) = settings.converted_path.iterdir()
    truncated(folder / "model.bin")
    with pytest.raises(ConfigurationError, match="delete it and run"):
        load_engine(ct2)


def test_a_converted_model_too_large_for_the_machine_need_not_be_deleted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from whispercore.engines import ct2 as engine

    def full(*arguments: object, **options: object) -> None:
        raise RuntimeError("CUDA failed with error out of memory")

    prepare(replace(settings, engine="ct2"))
    monkeypatch.setattr(engine, "Whisper", full)
    with pytest.raises(ConfigurationError, match=r"^'small-random' does not fit into the memory \(CUDA failed with error out of memory\)"):
        load_engine(replace(settings, engine="ct2"))


def test_a_folder_that_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        prepare(replace(settings, engine="ct2", converted_dir=str(tmp_path / "file" / "below")))


@pytest.mark.parametrize("dims", [replace(SMALL, n_vocab=51_864), replace(SMALL, n_vocab=51_866, n_mels=128)], ids=["english", "large-v3"])
def test_the_other_vocabularies_convert_and_decode(settings: Settings, tmp_path: Path, dims: ModelDimensions) -> None:
    import numpy as np

    from whispercore.types import Decoding, Window

    write_random(dims, tmp_path / "other.pt")
    chosen = replace(settings, model=str(tmp_path / "other.pt"), engine="ct2", dtype="float32")
    prepare(chosen)
    window = Window(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32), 0.0, Decoding(max_tokens=8, ignore_eot=True))
    for engine in (load_engine(chosen), load_engine(replace(chosen, engine="openai"))):
        assert engine.tokenizer.vocabulary == dims.n_vocab
        (decoded,) = engine.decode([window])
        assert len(decoded.tokens) == 8
        assert decoded.language in engine.tokenizer.languages
        engine.close()


def test_a_precision_the_processor_lacks(settings: Settings) -> None:
    assert precision(settings, "cpu") == "int8"
    assert "float16" not in ctranslate2.get_supported_compute_types("cpu")
    with pytest.raises(ConfigurationError, match=r"computes in .*int8.*; not in float16"):
        load_engine(replace(settings, engine="ct2", dtype="float16"))
    with pytest.raises(ConfigurationError, match=r"computes in float32, bfloat16; not in int8"):
        load_engine(replace(settings, engine="openai", dtype="int8"))


def test_a_gpu_that_is_not_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="PyTorch sees no GPU"):
        load_engine(replace(settings, device="cuda"))


def test_a_missing_package_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    for name in ("whispercore.engines.ct2", "whispercore.checkpoints.conversion"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigurationError, match="pip install ctranslate2"):
        load_engine(replace(settings, engine="ct2"))


@pytest.mark.parametrize("size", ["tiny", "base", "small", "medium", "large-v2", "large-v3", "turbo"])
def test_sizes_have_the_published_number_of_weights(size: str) -> None:
    millions = {"tiny": 37.8, "base": 72.6, "small": 240.6, "medium": 762.3, "large-v2": 1541.4, "large-v3": 1541.6, "turbo": 807.0}
    state = checkpoints.empty_model(dimensions(size)).state_dict()
    assert sum(map(torch.numel, state.values())) / 1e6 == pytest.approx(millions[size], rel=0.005)


def test_random_checkpoints_decode_to_finite_scores_and_repeat(tmp_path: Path) -> None:
    for name, dtype in (("one", torch.float16), ("two", torch.float16)):
        write_random(SMALL, tmp_path / f"{name}.pt", dtype=dtype)
    one, two = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert all(tensor.dtype == torch.float16 and torch.equal(tensor, two.state[name]) for name, tensor in one.state.items())


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
