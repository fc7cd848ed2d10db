"""convert_model.py: every form of the bundled model is the same model, to us, to transformers, to faster-whisper and to openai-whisper."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "clients"))

import convert_model  # noqa: E402
import download_model  # noqa: E402
from convert_model import conversion, difference, main  # noqa: E402
from whisper.model import ModelDimensions  # noqa: E402

from whispercore.checkpoints import Checkpoint, load_checkpoint, prepare, write_checkpoint, write_random  # noqa: E402
from whispercore.engines import load_engine  # noqa: E402
from whispercore.errors import ConfigurationError  # noqa: E402
from whispercore.serving.transcriber import Transcriber  # noqa: E402
from whispercore.settings import Settings  # noqa: E402

NANO = ROOT / "whisper-models" / "nano.pt"
SPEECH = ROOT / "samples" / "timer.flac"
WORDS = "Set a timer for five minutes."

Convert = Callable[..., Path]


SMALL = ModelDimensions(80, 1500, 64, 2, 2, 51_865, 448, 64, 2, 2)
"""A third of nano's weights: for tests that compare weights and need no words."""


@pytest.fixture(scope="session")
def nano() -> Checkpoint:
    return load_checkpoint(NANO)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of random weights in float16 that names its alignment heads, as nano does."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    write_random(SMALL, path)
    random = load_checkpoint(path)
    write_checkpoint(SMALL, {name: tensor.clone() for name, tensor in random.state.items()}, path, heads=[(0, 0)])
    return load_checkpoint(path)


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """The bundled model, or `source`, in a form; made once."""
    folder, made = tmp_path_factory.mktemp("models"), dict[tuple[str, ...], Path]()

    def path(form: str, dtype: str | None = None, source: Path = NANO) -> Path:
        if form in ("onnx", "sherpa"):
            pytest.importorskip("onnx", reason="the package onnx, which writes graphs, is not installed")
        key = (form, str(dtype), str(source))
        if key not in made:
            todo = conversion(str(source), form, dtype, folder=folder / str(len(made)))
            todo.run()
            made[key] = todo.out
        return made[key]

    return path


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.state.keys() == other.state.keys() and all(
        torch.equal(other.state[name].float(), one.state[name].float()) for name in one.state
    )


_EXACT = [
    ("hf", None),
    ("ct2", "float32"),
    ("ct2", "float16"),
    ("pt", "float32"),
    ("onnx", "float32"),
    ("onnx", "float16"),
    ("sherpa", "float32"),
]


@pytest.mark.parametrize(("form", "dtype"), _EXACT)
def test_there_and_back_is_the_same_model(convert: Convert, small: Checkpoint, form: str, dtype: str | None) -> None:
    there = convert(form, dtype, small.path)
    back = convert("pt", source=there)
    for path in (there, back):
        read = load_checkpoint(path)
        assert read.dims == small.dims and same(small, read)
        assert read.heads == small.heads == ((0, 0),)
    assert {tensor.dtype for tensor in load_checkpoint(back).state.values()} == {getattr(torch, dtype or "float16")}


_ROUNDED = [
    ("ct2", "int8", 1e-4, 5e-3),
    ("ct2", "int16", 1e-5, 1e-3),
    ("ct2", "bfloat16", 1e-4, 4e-3),
    ("onnx", "int8", 1e-4, 5e-3),
    ("onnx", "uint8", 1e-4, 5e-3),
]


@pytest.mark.parametrize(("form", "dtype", "least", "most"), _ROUNDED)
def test_rounded_weights_are_near(convert: Convert, small: Checkpoint, form: str, dtype: str, least: float, most: float) -> None:
    there = convert(form, dtype, small.path)
    read, back = load_checkpoint(there), load_checkpoint(convert("pt", source=there))
    assert read.state.keys() == small.state.keys() and read.heads == small.heads
    assert least < difference(small, read) <= most
    assert same(read, back) and back.heads == small.heads


def test_eight_bits_are_the_same_eight_bits_again(convert: Convert, small: Checkpoint) -> None:
    once = convert("ct2", "int8", small.path)
    again = convert("ct2", "int8", source=convert("hf", source=once))
    assert same(load_checkpoint(once), load_checkpoint(again))


def test_openai_whisper_hears_the_same_in_what_was_made_for_it(convert: Convert) -> None:
    for path in (NANO, convert("pt", source=convert("ct2", "float16"))):
        # Samples: openai-whisper reads a file by the program ffmpeg, which need not be installed.
        heard = whisper.load_model(str(path), device="cpu").transcribe(_samples(), language="en", fp16=False)
        assert heard["text"].strip() == WORDS


def test_faster_whisper_hears_the_same_in_what_was_made_for_it(convert: Convert) -> None:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(convert("ct2", "float16")), device="cpu", compute_type="float32", cpu_threads=1, local_files_only=True)
    segments, told = model.transcribe(str(SPEECH), beam_size=1, word_timestamps=True)
    heard = list(segments)
    assert told.language == "en" and model.feature_extractor.mel_filters.shape[0] == 80
    assert " ".join(segment.text.strip() for segment in heard) == WORDS
    assert [word.word for word in heard[0].words or []] == [" Set", " a", " timer", " for", " five", " minutes."]


def test_transformers_hears_the_same_in_what_was_made_for_it(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, which is to load what was made, is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, sound = convert("hf"), _samples()
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    features = processor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    tokens = model.generate(features, language="en", task="transcribe", return_timestamps=True)
    assert processor.batch_decode(tokens, skip_special_tokens=True)[0].strip() == WORDS
    assert processor.batch_decode(tokens, decode_with_timestamps=True)[0].startswith("<|")
    assert model.generation_config.alignment_heads == [[0, 0]]
    assert processor.tokenizer.encode(WORDS, add_special_tokens=False) == list(whisper.tokenizer.get_tokenizer(True).encode(WORDS))


def _samples() -> Any:
    import soundfile

    return soundfile.read(SPEECH, dtype="float32")[0]


def test_ctranslate2s_own_converter_makes_the_same_folder(convert: Convert, nano: Checkpoint, tmp_path: Path) -> None:
    """What faster-whisper's models were made by, from what was made for transformers."""
    pytest.importorskip("transformers", reason="transformers, by which CTranslate2's converter reads, is not installed")
    from ctranslate2.converters import TransformersConverter

    theirs, ours = (
        Path(TransformersConverter(str(convert("hf"))).convert(str(tmp_path / "theirs"), quantization="float16")),
        convert("ct2", "float16"),
    )
    read = load_checkpoint(theirs)
    assert same(nano, read) and read.heads == nano.heads
    for name in ("model.bin", "config.json", "vocabulary.json"):
        assert (theirs / name).read_bytes() == (ours / name).read_bytes(), name


@pytest.mark.parametrize("engine", ["openai", "torch", "ct2"])
def test_a_ctranslate2_folder_serves_on_every_engine(convert: Convert, tmp_path: Path, engine: str) -> None:
    folder = convert("ct2", "float16")
    settings = Settings(
        model=folder.name, models_dir=str(folder.parent), converted_dir=str(tmp_path), engine=engine, device="cpu", threads=1
    )
    assert str(folder) in prepare(settings)
    with Transcriber(settings) as transcriber:
        assert transcriber(str(SPEECH), language="en").text.strip() == WORDS
    assert list(tmp_path.iterdir()) == []


def test_a_ctranslate2_folder_in_eight_bits_is_served_as_it_is(convert: Convert) -> None:
    settings = Settings(model=str(convert("ct2", "int8")), engine="ct2", device="cpu", threads=1)
    assert prepare(settings).endswith("is ready for engine 'ct2', as it is")
    engine = load_engine(settings)
    assert engine.describe()["model"] == "nano-ct2-int8"
    assert engine.describe()["encoder"] == engine.describe()["precision"] == "int8_float32"  # no floats for PyTorch to encode by
    engine.close()


@pytest.mark.parametrize("engine", ["openai", "torch", "ct2", "hf", "jax"])
def test_graphs_serve_on_every_engine(convert: Convert, tmp_path: Path, engine: str) -> None:
    package = {"hf": "transformers", "jax": "jax"}.get(engine, "torch")
    pytest.importorskip(package, reason=f"engine {engine} is not installed: pip install -r requirements-{engine}.txt")
    settings = Settings(converted_dir=str(tmp_path), engine=engine, dtype="float32", device="cpu", threads=1)
    onnx, sherpa = convert("onnx"), convert("sherpa", source=convert("ct2", "float16"))
    heard = []
    for named in ({"model": str(NANO)}, {"model": onnx.name, "models_dir": str(onnx.parent)}, {"model": str(sherpa)}):
        chosen = replace(settings, **named)
        assert str({onnx.name: onnx}.get(chosen.model, chosen.model)) in prepare(chosen)
        with Transcriber(chosen) as transcriber:
            heard.append(transcriber(str(SPEECH), language="en", word_timestamps=True))
    assert [each.text.strip() for each in heard] == [WORDS] * 3
    times = [[(word.word, word.start, word.end) for segment in each.segments for word in segment.words or ()] for each in heard]
    assert len(times[0]) == 6 and times[0] == times[1] == times[2]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nano"
    assert main(["nano", "--to", "hf", "--dtype", "float32", "--out", str(out)]) == 0
    megabytes = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    assert capsys.readouterr().out == f"{out}: hf in float32, {megabytes:.1f} MB; weights differ by 0 of their tensor's largest at most\n"
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert main(["nano", "--to", "hf", "--out", str(out)]) == 1
    assert f"{out} exists already: move it away" in capsys.readouterr().err
    assert main(["nano", "--to", "hf", "--dtype", "int8"]) == 1
    assert "form 'hf' holds float32, float16, bfloat16; not int8" in capsys.readouterr().err
    assert main(["none", "--to", "hf", "--models-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(f"none.pt; in {tmp_path}: nano\n")
    with pytest.raises(SystemExit, match="2"):
        main(["nano", "--to", "gguf"])


def documented(script: str) -> list[tuple[list[str], str]]:
    """The arguments of the commands with `script` in docs/engines.md, and their comments."""
    block = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "engines.md").read_text(), re.DOTALL)
    lines = [line for line in "".join(block).splitlines() if line.startswith(f"python3 clients/{script} ")]
    return [(shlex.split(line, comments=True)[2:], line.partition("#")[2].strip()) for line in lines]


def test_the_documented_conversions(small: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the package onnx, which writes graphs, is not installed")
    (tmp_path / "nano.pt").symlink_to(small.path)  # the commands name nano
    commands = documented("convert_model.py")
    assert {arguments[arguments.index("--to") + 1] for arguments, _ in commands} == set(convert_model.DTYPES)
    for arguments, comment in commands:
        assert main([*arguments, "--models-dir", str(tmp_path)]) == 0
        assert (tmp_path / Path(comment.partition(",")[0]).name).exists()


def test_the_documented_downloads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = documented("download_model.py")
    assert len(commands) >= 4
    for arguments, _ in commands:
        assert download_model.main([*arguments, *["--verify"] * ("--verify" not in arguments), "--dir", str(tmp_path)]) == 1
        assert "is not there; get it" in capsys.readouterr().err


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = conversion(str(NANO), "hf", folder=tmp_path)
    monkeypatch.setattr(convert_model, "difference", lambda one, other: float("nan"))
    with pytest.raises(ConfigurationError, match="weights in float16 are nan of their tensor's largest off"):
        todo.run()
    assert list(tmp_path.iterdir()) == []

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(convert_model.huggingface, "write", full)
    with pytest.raises(ConfigurationError, match=r"nano-hf cannot be written: .*No space left"):
        todo.run()
    assert list(tmp_path.iterdir()) == []


def test_what_half_precision_cannot_hold_is_told(nano: Checkpoint, tmp_path: Path) -> None:
    large = {name: tensor.float() for name, tensor in nano.state.items()}
    large["encoder.conv1.weight"] = large["encoder.conv1.weight"] * 1e6
    todo = convert_model.Conversion(replace(nano, state=large), "pt", "float16", tmp_path / "large.pt")
    with pytest.raises(ConfigurationError, match=r"weights in float16 are inf .*choose another --dtype"):
        todo.run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "package"), [("ct2", "ctranslate2"), ("onnx", "onnx")])
def test_a_missing_package_is_named(form: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whispercore import checkpoints

    todo = conversion(str(NANO), form, folder=tmp_path)
    for module in [package, *(module for module in sys.modules if module.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("conversion", "compute_types", "onnx_export", "sherpa_export"):
        monkeypatch.delitem(sys.modules, f"whispercore.checkpoints.{name}", raising=False)
        monkeypatch.delattr(checkpoints, name, raising=False)
    with pytest.raises(ConfigurationError, match=f"form '{form}' needs .*{package}.*pip install"):
        todo.run()
    assert list(tmp_path.iterdir()) == []
