"""Engine sherpa: sherpa-onnx hears on our export what openai-whisper hears; it tells no scores and no more than its own decoder can."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sherpa_onnx", reason="engine sherpa is not installed: pip install -r requirements-sherpa.txt")

import numpy as np
import soundfile

from tests.unit.engines.heldout import HELDOUT, NANO
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import converted_folder, load_checkpoint, prepare
from whispercore.engines import load_engine
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.sherpa import SherpaEngine
from whispercore.errors import ConfigurationError, EngineError, InvalidRequest
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Decoding, Samples, Window

LISTED = [item for item in json.loads((HELDOUT / "manifest.json").read_text()) if item["kind"] == "synthetic"][:6]
ENGLISH = Decoding(language="en")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("converted")
    section = {"engine": "sherpa", "device": "cpu", "threads": 1, "model": str(NANO), "converted_dir": str(folder)}
    return Settings.load(section, environ={})


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Iterator[SherpaEngine]:
    assert "standard deviations" in prepare(settings)
    assert prepare(settings).endswith("is ready for engine 'sherpa'")
    loaded = load_engine(settings)
    assert isinstance(loaded, SherpaEngine)
    yield loaded


def windows(decoding: Decoding = ENGLISH) -> list[Window]:
    return [Window(read_samples(HELDOUT / item["file"]), 0.0, decoding) for item in LISTED]


@pytest.mark.parametrize("timestamps", [True, False])
def test_it_hears_the_words_of_engine_openai_at_its_times(engine: SherpaEngine, timestamps: bool) -> None:
    decoding = replace(ENGLISH, timestamps=timestamps)
    reference = OpenAIEngine(load_checkpoint(NANO)).decode(windows(decoding))
    begin, apart = engine.tokenizer.timestamp_begin, list[int]()
    for ours, theirs in zip(engine.decode(windows(decoding)), reference, strict=True):
        assert ours.text == theirs.text and ours.text
        times = [[token - begin for token in each.tokens if token >= begin] for each in (ours, theirs)]
        assert bool(times[0]) == timestamps
        apart += [abs(one - other) for one, other in zip(*times, strict=True)]
        assert [token for token in ours.tokens if token < begin] == [token for token in theirs.tokens if token < begin]
    # its spectrogram is its own, and the bundled model tells times in tenths of a second
    assert apart.count(0) >= 0.75 * len(apart) and max(apart, default=0) <= 5


def test_languages_are_each_windows_own(engine: SherpaEngine) -> None:
    samples = windows()[0].samples
    each = [Window(samples, 0.0, Decoding(language=language)) for language in (None, "de", None)]
    assert [decoded.language for decoded in engine.decode(each)] == ["en", "de", "en"]


def test_the_margin_is_not_heard(engine: SherpaEngine) -> None:
    (one, other) = (windows()[0].samples, windows()[2].samples)
    joined = Window(np.concatenate([other, one, other]), 0.0, ENGLISH, margin=(len(other), len(other)))
    assert engine.decode([joined]) == engine.decode([Window(one, 0.0, ENGLISH)])


@pytest.mark.parametrize("length", [1, 160, 30 * SAMPLE_RATE])
def test_windows_of_any_length(engine: SherpaEngine, length: int) -> None:
    speech: Samples = np.resize(windows()[0].samples, length)
    (decoded,) = engine.decode([Window(speech, 0.0, ENGLISH)])
    assert all(0 <= token - engine.tokenizer.timestamp_begin <= 1500 for token in decoded.tokens if token >= engine.tokenizer.eot)


def test_eight_bits_hear_the_same_words(settings: Settings) -> None:
    chosen = replace(settings, dtype="int8")
    prepare(chosen)
    loaded = load_engine(chosen)
    assert loaded.describe()["precision"] == "int8"
    assert sum(decoded.text == item["text"] for decoded, item in zip(loaded.decode(windows()), LISTED, strict=True)) >= 5


def test_through_the_transcriber(settings: Settings, engine: SherpaEngine) -> None:
    file = io.BytesIO()
    soundfile.write(file, windows()[0].samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with Transcriber(settings, engine=load_engine(settings)) as transcriber:
        assert transcriber.submit(file.getvalue(), Options()).result(60.0).text.strip() == LISTED[0]["text"]
        for options in (Options(beam_size=2), Options(word_timestamps=True), Options(initial_prompt="Hello.")):
            with pytest.raises(InvalidRequest):
                transcriber.submit(file.getvalue(), options)


def test_an_export_is_served_without_its_checkpoint(settings: Settings, engine: SherpaEngine, tmp_path: Path) -> None:
    folder = converted_folder(settings, NANO, "float32-sherpa")
    alone = replace(settings, model=str(folder), converted_dir=str(tmp_path))
    assert prepare(alone) == f"{folder} is ready for engine 'sherpa'"
    assert load_engine(alone).decode(windows()) == engine.decode(windows())


def test_graphs_of_the_other_form_are_converted(settings: Settings, engine: SherpaEngine, tmp_path: Path) -> None:
    folder, decoding = converted_folder(settings, NANO, "float32-sherpa"), replace(ENGLISH, timestamps=False)
    there = replace(settings, model=str(folder), engine="onnx", converted_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match="not exported for engine 'onnx' in this precision yet") as caught:
        load_engine(there)
    assert caught.value.param == "model" and prepare(there).startswith(f"exported {folder} for engine 'onnx'")
    (made,) = tmp_path.iterdir()
    back = replace(settings, model=str(made), converted_dir=str(tmp_path))
    assert prepare(back).startswith(f"exported {made} for engine 'sherpa'")
    assert load_engine(back).decode(windows()) == engine.decode(windows())
    heard = load_engine(there).decode(windows(decoding))
    assert [one.text for one in heard] == [one.text for one in engine.decode(windows(decoding))]


def test_the_tokens_file_holds_every_text_token(settings: Settings, engine: SherpaEngine) -> None:
    lines = (converted_folder(settings, NANO, "float32-sherpa") / "tokens.txt").read_text().splitlines()
    assert len(lines) == engine.tokenizer.eot
    name, number = lines[engine.tokenizer.encode(" London")[0]].split()
    assert base64.b64decode(name) == b" London" and int(number) == engine.tokenizer.encode(" London")[0]


@pytest.mark.parametrize(
    ("change", "param"), [({"device": "cuda"}, "device"), ({"fixed_tokens": 4}, "fixed_tokens"), ({"dtype": "float16"}, "dtype")]
)
def test_bad_settings(settings: Settings, change: dict[str, str], param: str) -> None:
    from whispercore.engines.sherpa import load

    with pytest.raises(ConfigurationError) as caught:
        load(replace(settings, **change), "cpu")
    assert caught.value.param == param


def test_not_exported_and_closed(settings: Settings, engine: SherpaEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="prepare"):
        load_engine(replace(settings, converted_dir=str(tmp_path)))
    closed = load_engine(settings)
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.decode(windows())
