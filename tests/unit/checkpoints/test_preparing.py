"""A checkpoint is converted for its engine once, and what cannot be converted is one clear line."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import ctranslate2
import pytest
import torch
from whisper.model import ModelDimensions

from tests.unit.checkpoints.doubles import SMALL, truncated
from whispercore import checkpoints
from whispercore.checkpoints import (
    load_checkpoint,
    modelbin,
    prepare,
    write_random,
)
from whispercore.checkpoints.compute_types import precision
from whispercore.engines import load_engine
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings


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
